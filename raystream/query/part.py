"""What all parts of a query share: strict keys, values that don't change, and errors that name the key."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticKnownError

from raystream.errors import QueryError, did_you_mean
from raystream.figures import shown


def _no_truth_value(value: object) -> object:
    """Refuse true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


def _is_an_id(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("id", "an id, text or a whole number")
    return value


NoTruth = BeforeValidator(_no_truth_value)
Number = Annotated[float, NoTruth]
Positive = Annotated[int, Field(gt=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1), NoTruth]
Id = Annotated[int | str, BeforeValidator(_is_an_id)]

MAX_QUARANTINED = 0.01
"""The share of units that a query may do without, unless it says another: what is left out is what nobody sees."""


class Part(BaseModel):
    """A part of a query; `section` is where it stands in the whole, for messages."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
    section: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _KEYS.update(cls.__annotations__)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise QueryError(_explain(error, type(self))) from None

    @model_validator(mode="before")
    @classmethod
    def _paths_are_text(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return {key: _text_of_path(value) for key, value in values.items()}

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Make the part that a mapping describes.

        Raises:
            QueryError: a key is unknown, or a value is wrong.
        """
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise QueryError(_explain(error, cls)) from None

    def __setattr__(self, name: str, value: object) -> None:
        key = ".".join((*self.section, name))
        known = name in type(self).model_fields
        raise QueryError(
            f"{key} can't be set: {'queries do not change' if known else 'it is not a key of the query'}"
            f"{'' if known else did_you_mean(name, type(self).model_fields)}; "
            f"make another by {type(self).__name__.lower()}.model_copy(update={{...}})"
        )

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return the same with some keys replaced, checked as if it had been written so.

        Raises:
            QueryError: a key is unknown, or a value is wrong.
        """
        if not update:
            return super().model_copy(deep=deep)
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | dict(update))

    def derived(self, **changes: Any) -> Self:
        """Return the same with some values replaced, unchecked: what raystream itself makes of a query that was checked."""
        return super().model_copy(update=changes)

    def _as_yaml(self) -> str:
        """Write the part as YAML, as far as it was given."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def _text_of_path(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple) and any(isinstance(item, os.PathLike) for item in value):
        return [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    return value


def _explain(error: ValidationError, part: type[Part]) -> str:
    """Say the first thing that pydantic found, as one sentence that names the key."""
    details = error.errors()
    section = part.section
    unknown = next((d for d in details if d["type"] == "extra_forbidden" and len(d["loc"]) == 1), None)
    if unknown:
        key = str(unknown["loc"][0])
        return f"{'.'.join((*section, key))} is not a key of the query{did_you_mean(key, part.model_fields)}"
    return _wrong_value(details, section) + _example(details[0], part)


def _example(detail: ErrorDetails, part: type[Part]) -> str:
    """Give the default of a key that takes a list of fixed length."""
    field = part.model_fields.get(str(detail["loc"][0])) if detail["type"] in ("tuple_type", "missing", "too_long") else None
    return f", such as {as_written(field.default)}" if field is not None and isinstance(field.default, tuple) else ""


def _wrong_value(details: Sequence[ErrorDetails], section: tuple[str, ...]) -> str:
    detail = details[0]
    names = [str(part) for part in detail["loc"] if str(part) in _KEYS or isinstance(part, int)]
    where = ".".join((*section, *names))
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    got = detail["input"]
    if detail["type"] == "missing" and not isinstance(detail["loc"][-1], int):
        return f"{'.'.join((*section, *(str(p) for p in detail['loc'])))} is missing from the query"
    if detail["type"] == "missing":
        where = where.rpartition(".")[0]
        return f"{where} is {as_written(got)}, expected one value more"
    same_place = [d for d in details if [str(p) for p in d["loc"] if str(p) in _KEYS or isinstance(p, int)] == names]
    expected = " or ".join(dict.fromkeys(map(_expected, same_place)))
    hint = ""
    if isinstance(got, str):
        options = [option for d in same_place if d["type"] == "literal_error" for option in _options(d)]
        near = did_you_mean(got, options)
        hint = near if near.startswith("; did") else ""
    return f"{where} is {as_written(got)}, expected {expected}{hint}"


def as_written(value: object) -> str:
    """Write a value as a query file has it: `true`, `null`, `'text'`, `[1, 2]`."""
    if value is None or isinstance(value, bool | list | tuple | dict):
        try:
            return shown(json.dumps(value, ensure_ascii=False, default=str))
        except (TypeError, ValueError):
            return shown(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str | int | float):
        return shown(repr(value))
    return f"a {type(value).__name__}"


_WORDS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "keys with values",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "keys with values",
    "none_required": "null",
    "string_pattern_mismatch": "letters, digits, dots, hyphens and underscores, a letter or digit first, 128 at most",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What pydantic expects, in a user's words, by the types of its errors."""
_LIMITS = {"greater_than": ("above", "gt"), "greater_than_equal": ("of at least", "ge"), "less_than": ("below", "lt"),
           "less_than_equal": ("of at most", "le"), "too_long": ("no more than", "max_length"),
           "too_short": ("at least", "min_length")}  # fmt: skip


def _expected(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return f"{words} {detail['ctx'][limit]} of them" if kind.startswith("too_") else f"a number {words} {detail['ctx'][limit]:g}"
    if kind == "literal_error":
        *options, last = _options(detail)
        return f"{', '.join(options)} or {last}" if options else last
    return _WORDS.get(kind) or detail["msg"].removeprefix("Input should be ")


def _options(detail: ErrorDetails) -> list[str]:
    """List the values that a literal may have."""
    listed: str = detail["ctx"]["expected"]
    return listed.replace("' or '", "', '").strip("'").split("', '")


_KEYS: set[str] = set()
"""All keys of all parts: what of a place that pydantic names is a key, rather than the name of a type it tried."""
