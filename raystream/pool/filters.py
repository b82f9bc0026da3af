"""The pool's row filters, pyarrow's disjunction of conjunctions: what hive folders decide, what statistics decide, what rows decide.

Nulls are treated as pyarrow treats them: they match no comparison, but they are `not in` every list.
A value is compared as Arrow compares it with the column; what can't be compared is refused.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import PoolError, QueryError
from raystream.figures import of_columns
from raystream.lake import reason
from raystream.pool.columns import plain, plain_type
from raystream.pool.files import File
from raystream.pool.footers import Statistics

Value = bool | int | float | str | tuple[bool | int | float | str, ...]
Term = tuple[str, str, Value]
Number = int | float | Decimal

UNCOMPARABLE = (pa.ArrowException, ValueError, TypeError, ArithmeticError)
"""What is raised for a value that a column can't be compared with."""
_COMPARISONS = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_DIGITS = Context(prec=400)
"""Enough for every float, written out."""


def expression(term: Term, type_: pa.DataType, *, stored: bool = False) -> pc.Expression:
    """Make the expression of a term on a column of a type.

    Args:
        term: column, operator and value.
        type_: of the column.
        stored: whether the type is one file's, where the pool's fits the value: then a column may hold nulls alone, and times
            without a zone are UTC where the value has one, since those are stored as INT96.

    Raises:
        UNCOMPARABLE: the value can't be compared with such a column.
    """
    name, op, value = term
    plain_ = plain_type(type_)
    field = pc.field(name)
    if stored and pa.types.is_null(plain_):
        return pc.scalar(op == "not in")  # a null matches nothing else
    if stored and pa.types.is_timestamp(plain_) and plain_.tz is None and _has_zone(value, plain_.unit):
        plain_ = pa.timestamp(plain_.unit, "UTC")
        field = field.cast(plain_)
    if pa.types.is_float16(plain_):
        field = field.cast(pa.float32())  # Arrow compares no halves
    if op in ("in", "not in"):
        if not isinstance(value, tuple):
            raise TypeError("a list is expected")
        found = field.isin(_value_set([_literal(v, plain_) for v in value], plain_))
        return ~found if op == "not in" else found
    if isinstance(value, tuple):
        raise TypeError("one value is expected")
    literal = _literal(value, plain_)
    if _is_exact(plain_):
        return _exact_comparison(field, op, literal, plain_)
    return _COMPARISONS[op](field, literal if isinstance(literal, pa.Scalar) else pa.scalar(literal))


def expected(op: str, value: Value, type_: pa.DataType) -> str:
    """Say what should have been written instead of a value that a column of a plain type can't be compared with."""
    if not _is_comparable(type_):
        return "columns of that type can't be filtered on, so filter by another column"
    if (op in ("in", "not in")) != isinstance(value, tuple):
        return "expected a list" if op in ("in", "not in") else "expected one value, or the operator in"
    if pa.types.is_date(type_):
        return "expected a date, such as 2024-01-02"
    if pa.types.is_timestamp(type_):
        example = "2024-01-02T00:00:00"
        zone = f"with its zone, such as {example}Z or {example}+02:00," if type_.tz else f"without a zone, such as {example},"
        return f"expected a time {zone} no finer than {type_.unit}"
    return "expected a value of that type"


def _is_comparable(type_: pa.DataType) -> bool:
    types = pa.types
    numbers = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    others = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_date, types.is_timestamp)
    return any(is_one(type_) for is_one in (*numbers, *others))


def _value_set(literals: list[Any], type_: pa.DataType) -> pa.Array:
    if _is_exact(type_):
        # No row is equal to the others, but Arrow would truncate 0.5 to 0, or refuse it.
        return pa.array([_floor(v, type_) for v in literals if _holds(type_, v)], type_)
    if pa.types.is_float16(type_):
        with np.errstate(over="ignore"):
            return pa.array(np.array(literals, np.float16).astype(np.float32))
    return pa.array(literals) if literals else pa.array([], type_)


def _has_zone(value: Value, unit: str) -> bool:
    """Tell whether a text, or the first of several, is a time with its zone."""
    first = value[0] if isinstance(value, tuple) and value else value
    try:
        return isinstance(first, str) and bool(pa.scalar(first).cast(pa.timestamp(unit, "UTC")).is_valid)
    except pa.ArrowException:
        return False


def _exact_comparison(field: pc.Expression, op: str, value: Number, type_: pa.DataType) -> pc.Expression:
    """Make a comparison that is exact for every number: Arrow takes large integers to floats, and refuses what the type can't hold."""
    if _holds(type_, value):
        return _COMPARISONS[op](field, pa.scalar(_floor(value, type_), type_))
    least, greatest = _range(type_)
    if value < least or value > greatest:
        # All rows lie on the same side, so that any of them decides.
        return field.is_valid() if _COMPARISONS[op](0, value) else pc.scalar(False)
    if op in ("==", "!=") or value != value:
        return field.is_valid() if op == "!=" else pc.scalar(False)
    below = field <= pa.scalar(_floor(value, type_), type_)
    return below if op in ("<", "<=") else ~below


def _is_exact(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_decimal(type_))


def _holds(type_: pa.DataType, value: Number) -> bool:
    """Tell whether a number is among an integer or decimal type's values."""
    least, greatest = _range(type_)
    return bool(least <= value <= greatest and value == _floor(value, type_))


def _floor(value: Number, type_: pa.DataType) -> Number:
    """Return the greatest of the type's values that isn't above a number."""
    if isinstance(value, Decimal):
        return value.quantize(Decimal(1).scaleb(-type_.scale), ROUND_FLOOR, _DIGITS)
    return math.floor(value)


def _range(type_: pa.DataType) -> tuple[Number, Number]:
    if pa.types.is_decimal(type_):
        greatest = Decimal(10**type_.precision - 1).scaleb(-type_.scale, _DIGITS)
        return -greatest, greatest
    if pa.types.is_unsigned_integer(type_):
        return 0, 2**type_.bit_width - 1
    return -(2 ** (type_.bit_width - 1)), 2 ** (type_.bit_width - 1) - 1


def _literal(value: Any, type_: pa.DataType) -> Any:
    """Return the value as Arrow compares it with a column of the type; TypeError where it can't."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if pa.types.is_temporal(type_) and isinstance(value, str):
        return pa.scalar(value).cast(type_)
    if pa.types.is_integer(type_) and is_number:
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if pa.types.is_floating(type_) and is_number:
        return float(value)
    if pa.types.is_decimal(type_) and is_number:
        return Decimal(str(value))
    if pa.types.is_boolean(type_) and isinstance(value, bool):
        return value
    if (pa.types.is_string(type_) or pa.types.is_large_string(type_)) and isinstance(value, str):
        return value
    if (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)) and isinstance(value, str):
        return value.encode()
    raise TypeError(f"{type_} is not comparable with {value!r}")


Filters = tuple[tuple[Term, ...], ...]
"""Any of the conjunctions; () lets every row pass. Hashable, and the same as JSON but for tuples."""


def freeze(disjunction: Sequence[Sequence[tuple[str, str, Any]]]) -> Filters:
    """Return `Pool.disjunction` as nested tuples, with `=` written as `==`."""
    return tuple(
        tuple((name, "==" if op == "=" else op, tuple(value) if isinstance(value, list) else value) for name, op, value in conjunction)
        for conjunction in disjunction
    )


def filter_columns(filters: Filters) -> list[str]:
    """Return the columns that filters name, each once, in order."""
    return list(dict.fromkeys(name for conjunction in filters for name, _, _ in conjunction))


def partition_types(files: Sequence[File]) -> dict[str, pa.DataType]:
    """Find the type of each hive key: int64 if every file's value is a whole number of 64 bits, else string; a table's is what it says."""
    values: dict[str, set[str | None]] = {}
    declared: dict[str, pa.DataType] = {}
    for file in files:
        for name, value in file.partitions:
            values.setdefault(name, set()).add(value)
            if file.table is not None and name in file.table.types:
                declared[name] = plain_type(file.table.types[name])
    whole = {name for name, seen in values.items() if seen != {None} and all(_is_integer(value) for value in seen - {None})}
    return {name: pa.int64() if name in whole else pa.string() for name in values} | declared


def partition_value(file: File, name: str, type_: pa.DataType) -> Any:
    """Return the value of one of a file's hive keys, None where it is null.

    Raises:
        PoolError: it isn't of the type.
    """
    text = dict(file.partitions)[name]
    if text is None or pa.types.is_string(type_):
        return text
    try:
        return int(text) if pa.types.is_integer(type_) else pa.scalar(text).cast(type_).as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        raise PoolError(f"partition {name} of {file.path} is {text!r}, expected {type_}; repair the table") from None


def check_filters(filters: Filters, types: Mapping[str, pa.DataType]) -> None:
    """Raise QueryError for a value that its column can't be compared with, PoolError for an unknown column."""
    for conjunction in filters:
        for name, op, value in conjunction:
            if name not in types:
                raise PoolError(f"pool.filters names column {name}, which the pool doesn't hold{of_columns(name, types)}")
            try:
                pa.table({name: pa.array([], plain_type(types[name]))}).filter(expression((name, op, value), types[name]))
            except UNCOMPARABLE:
                shown = list(value) if isinstance(value, tuple) else value
                hint = expected(op, value, plain_type(types[name]))
                raise QueryError(f"pool.filters compares column {name} ({types[name]}) {op} {shown!r}; {hint}") from None


def residual(filters: Filters, file: File, types: Mapping[str, pa.DataType]) -> Filters | None:
    """Return what is left of the filters in a file once its hive folders have decided their terms.

    Args:
        filters: the pool's.
        file: whose partitions decide.
        types: of the hive keys, from `partition_types`.

    Returns:
        The filters that rows must still pass, () when all of them do, None when none can.
    """
    if not filters:
        return ()
    folders = {name for name, _ in file.partitions}
    left: list[tuple[Term, ...]] = []
    for conjunction in filters:
        decided = [term for term in conjunction if term[0] in folders]
        if all(_decide(term, partition_value(file, term[0], types[term[0]]), types[term[0]]) for term in decided):
            rest = tuple(term for term in conjunction if term[0] not in folders)
            if not rest:
                return ()
            left.append(rest)
    return tuple(left) or None


def row_group_may_match(filters: Filters, statistics: Mapping[str, Statistics], rows: int, types: Mapping[str, pa.DataType]) -> bool:
    """Tell whether a row group's statistics leave room for a row that passes; True in every doubt."""
    return not filters or any(all(_may_match(term, statistics[term[0]], rows, types[term[0]]) for term in terms) for terms in filters)


def matching_rows(filters: Filters, batch: pa.RecordBatch, place: str = "a batch") -> npt.NDArray[np.int64]:
    """Return the indices of a batch's rows that pass, in order; `place` says where the batch is from.

    Raises:
        PoolError: a column can't be compared after all, being of another type than its table declares.
    """
    names = filter_columns(filters)
    columns = [plain(batch.column(name)) for name in names]
    # by numbers, since a column may have any name, even none
    table = pa.table([*columns, pa.array(np.arange(batch.num_rows))], names=[str(i) for i in range(len(names) + 1)])
    try:
        passed = table.filter(_disjunction(filters, names, table.schema)).column(len(names))
    except UNCOMPARABLE as error:
        raise PoolError(f"{place}: pool.filters can't be applied: {reason(error)}; change the value that is compared") from None
    rows: npt.NDArray[np.int64] = passed.to_numpy()
    return rows


def _disjunction(filters: Filters, names: Sequence[str], schema: pa.Schema) -> pc.Expression:
    """Return the filters on columns that are called by their numbers among the names."""

    def of(term: Term) -> pc.Expression:
        number = names.index(term[0])
        return expression((str(number), term[1], term[2]), schema.field(number).type, stored=True)

    return functools.reduce(operator.or_, (functools.reduce(operator.and_, map(of, conjunction)) for conjunction in filters))


def _decide(term: Term, value: Any, type_: pa.DataType) -> bool:
    """Decide a term on a hive key, by the same rules as on a column."""
    table = pa.table({term[0]: pa.array([value], type_)})
    return bool(table.filter(expression(term, type_)).num_rows)


def _may_match(term: Term, found: Statistics, rows: int, type_: pa.DataType) -> bool:
    _, op, value = term
    if found.nulls is not None and found.nulls == rows and op != "not in":
        return False
    low, high = found.least, found.greatest
    values = value if isinstance(value, tuple) else (value,)
    if low is None or high is None or low != low or high != high:
        return True
    if not all(_ordered_alike(v, low, high, plain_type(type_), op) for v in values):
        return True
    if op in ("==", "in"):
        return any(low <= v <= high for v in values)
    if op in ("!=", "not in"):
        if pa.types.is_floating(plain_type(type_)):
            return True  # statistics leave NaN out, and NaN differs from everything
        return low != high or low not in values or (op == "not in" and found.nulls != 0)
    return bool(low < value if op == "<" else low <= value if op == "<=" else high > value if op == ">" else high >= value)


def _ordered_alike(value: Any, low: Any, high: Any, type_: pa.DataType, op: str) -> bool:
    """Tell whether Python orders the value among the bounds just as Arrow orders it among the column's rows."""
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return all(isinstance(v, str) for v in (value, low, high))
    if pa.types.is_boolean(type_):
        return all(isinstance(v, bool) for v in (value, low, high))
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    if pa.types.is_floating(type_):
        # A list is rounded to the column's type, a single value is not.
        return op not in ("in", "not in") and isinstance(low, float) and isinstance(high, float)
    # The bounds of wide unsigned columns come back as signed numbers.
    signed = pa.types.is_signed_integer(type_) or (pa.types.is_unsigned_integer(type_) and type_.bit_width <= 16)
    return bool(signed) and isinstance(value, int) and isinstance(low, int) and isinstance(high, int)


def _is_integer(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"[+-]?[0-9]+", text) is not None and -(2**63) <= int(text) < 2**63
