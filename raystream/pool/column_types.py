"""The one type of a column whose files hold it in several, as tables whose schema has changed do, and writers that spell types differently.

Integers of one signedness, float32 and float64, and decimals of one scale become the wider one; strings, binary and lists one spelling.
Times that are stored as INT96 have the zone of the others, and a column that is all null in a file is of the others' type.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from raystream.errors import PoolError
from raystream.lake import reason
from raystream.pool.columns import plain_type
from raystream.pool.footers import INT96, Footer
from raystream.pool.images import is_binary

_WRITE_ANEW = "expected one type in the whole pool, so write one of them anew"


def pool_types(footers: Sequence[Footer], folders: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Return the type of each column that the footers tell of, and of each hive key.

    A key that only some files have as a folder is a column of the others.

    Args:
        footers: of the pool's files.
        folders: the type of each hive key, from `partition_types`; what a table declares decides.

    Raises:
        PoolError: a column has types that no wider one takes in.
    """
    types: dict[str, pa.DataType] = {}
    first: dict[str, tuple[pa.DataType, str]] = {}
    instants: dict[str, str] = {}
    nulls: set[str] = set()
    seen: pa.Schema | None = None
    for footer in footers:
        if footer.schema is seen:  # as of thousands of files that are written alike
            continue
        seen = footer.schema
        for field in footer.schema:
            zone = (field.metadata or {}).get(INT96)
            if pa.types.is_null(field.type):
                nulls.add(field.name)
                continue
            if zone == b"":
                instants.setdefault(field.name, footer.file.path)
                continue
            type_ = pa.timestamp("us", zone.decode()) if zone else field.type
            met, path = first.setdefault(field.name, (type_, footer.file.path))
            common = wider(types.get(field.name, type_), type_)
            if common is None:
                raise PoolError(f"column {field.name} is {met} in {path} but {type_} in {footer.file.path}; {_WRITE_ANEW}")
            types[field.name] = common
    for name, path in instants.items():
        met, where = first.setdefault(name, (pa.timestamp("us"), path))
        if not pa.types.is_timestamp(met):
            raise PoolError(f"column {name} is {met} in {where} but a time, stored as INT96, in {path}; {_WRITE_ANEW}")
        types[name] = pa.timestamp("us", met.tz)
    types = dict.fromkeys(nulls, pa.null()) | types
    declared = {name for footer in footers if footer.file.table for name, _ in footer.file.partitions if name in footer.file.table.types}
    for name in folders.keys() & first.keys() - declared:
        if not _fits_folder(plain_type(types[name]), folders[name]):
            folder = next(footer.file.path for footer in footers if name in dict(footer.file.partitions))
            raise PoolError(
                f"column {name} is {first[name][0]} in {first[name][1]}, but a hive folder ({folders[name]}) in {folder}; "
                "expected one type in the whole pool, so rename the column or the folders"
            )
    return types | dict(folders)


def widened(footers: Sequence[Footer], types: Mapping[str, pa.DataType], names: Collection[str]) -> tuple[tuple[str, pa.DataType], ...]:
    """Return those of the columns that some file holds in another type than the pool's, with the pool's."""
    plain = {name: plain_type(types[name]) for name in dict.fromkeys(names)}
    mixed = {name for footer in footers for name, type_ in plain.items() if not _has(footer, name, type_)}
    return tuple((name, type_) for name, type_ in plain.items() if name in mixed)


def casts(footer: Footer, to: Sequence[tuple[str, pa.DataType]]) -> tuple[tuple[str, pa.DataType], ...]:
    """Return those of the `widened` columns that a file holds in a narrower type."""
    return tuple((name, type_) for name, type_ in to if name in footer.schema.names and not _has(footer, name, type_))


def cast(array: pa.Array | pa.ChunkedArray, type_: pa.DataType, what: str) -> pa.Array | pa.ChunkedArray:
    """Cast the same values to that type.

    Raises:
        PoolError: it can't hold them; `what` names the column and where it is.
    """
    if array.type.equals(type_):
        return array
    if pa.types.is_null(array.type):  # which Arrow can't cast to every type
        return pa.nulls(len(array), type_)
    try:
        return array.cast(type_)
    except pa.ArrowException as error:
        raise PoolError(f"{what} is {array.type} and can't become {type_}, the pool's type: {reason(error)}; write it as such") from None


def cast_columns(batch: pa.RecordBatch, to: Sequence[tuple[str, pa.DataType]], place: str) -> pa.RecordBatch:
    """Return the batch with those of these columns that it holds in the types given; `place` is where it is from."""
    for name, type_ in to:
        index = batch.schema.get_field_index(name)
        if index >= 0:
            batch = batch.set_column(index, name, cast(batch.column(index), type_, f"{place}: column {name}"))
    return batch


def wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both, however they are encoded and whether or not items may be null; None without one."""
    if _bare(one) == _bare(other):
        return other
    one, other = plain_type(one), plain_type(other)
    both = (one, other)
    if all(map(pa.types.is_signed_integer, both)) or all(map(pa.types.is_unsigned_integer, both)):
        return max(both, key=lambda type_: type_.bit_width)
    if {one, other} == {pa.float32(), pa.float64()}:
        return pa.float64()
    if all(map(pa.types.is_decimal128, both)) and one.scale == other.scale:
        return max(both, key=lambda type_: type_.precision)
    if all(map(is_text, both)):
        return pa.string() if pa.string() in both else pa.large_string()
    if all(map(is_binary, both)):
        return pa.binary() if pa.binary() in both else pa.large_binary()
    if all(map(_is_list, both)):
        return _wider_list(one, other)
    if all(map(pa.types.is_struct, both)) and [field.name for field in one] == [field.name for field in other]:
        fields = [(a.name, _wider_or_null(a.type, b.type)) for a, b in zip(one, other, strict=True)]
        return None if any(type_ is None for _, type_ in fields) else pa.struct(fields)
    return None


def _wider_list(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    item = _wider_or_null(one.value_type, other.value_type)
    if item is None:
        return None
    sizes = [type_.list_size for type_ in (one, other) if pa.types.is_fixed_size_list(type_)]
    if len(sizes) == 2:
        return pa.list_(item, sizes[0]) if sizes[0] == sizes[1] else None
    return pa.large_list(item) if pa.types.is_large_list(one) and pa.types.is_large_list(other) else pa.list_(item)


def _wider_or_null(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the same of what lies inside another type, where a file may hold nothing but nulls."""
    return other if pa.types.is_null(one) else one if pa.types.is_null(other) else wider(one, other)


def _fits_folder(column: pa.DataType, folder: pa.DataType) -> bool:
    """Tell whether a column's values are what folders have in their names: whole numbers, or text."""
    return bool(pa.types.is_integer(column) if pa.types.is_integer(folder) else is_text(column))


def _has(footer: Footer, name: str, type_: pa.DataType) -> bool:
    return bool(plain_type(footer.schema.field(name).type).equals(type_))


def is_text(type_: pa.DataType) -> bool:
    """Tell whether a column holds strings, however they are laid out."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _bare(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return _bare(type_.value_type)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_bare(type_.value_type), type_.list_size)
    if pa.types.is_large_list(type_):
        return pa.large_list(_bare(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, _bare(field.type)) for field in type_])
    return pa.list_(_bare(type_.value_type)) if pa.types.is_list(type_) else type_
