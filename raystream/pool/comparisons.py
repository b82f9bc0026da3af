"""One comparison of a filter: its value as Arrow compares it with a column, and what can be compared at all."""

from __future__ import annotations

import math
import operator
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream.pool.columns import plain_type

Value = bool | int | float | str | tuple[bool | int | float | str, ...]
Term = tuple[str, str, Value]
Number = int | float | Decimal

UNCOMPARABLE = (pa.ArrowException, ValueError, TypeError, ArithmeticError)
"""What is raised for a value that a column can't be compared with."""
_COMPARISONS = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_DIGITS = Context(prec=400)
"""Enough for every float, written out."""


def expression(term: Term, type_: pa.DataType, *, stored: bool = False) -> pc.Expression:
    """A term on a column of a type.

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
    """What should have been written instead of a value that a column of a plain type can't be compared with."""
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
    """Whether a text, or the first of several, is a time with its zone."""
    first = value[0] if isinstance(value, tuple) and value else value
    try:
        return isinstance(first, str) and bool(pa.scalar(first).cast(pa.timestamp(unit, "UTC")).is_valid)
    except pa.ArrowException:
        return False


def _exact_comparison(field: pc.Expression, op: str, value: Number, type_: pa.DataType) -> pc.Expression:
    """A comparison that is exact for every number: Arrow takes large integers to floats, and refuses what the type can't hold."""
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
    """Whether a number is among an integer or decimal type's values."""
    least, greatest = _range(type_)
    return bool(least <= value <= greatest and value == _floor(value, type_))


def _floor(value: Number, type_: pa.DataType) -> Number:
    """The greatest of the type's values that isn't above a number."""
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
    """The value as Arrow compares it with a column of the type; TypeError where it can't."""
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
