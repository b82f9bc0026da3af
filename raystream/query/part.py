"""What all parts of a query share: strict keys, and errors that name the key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from raystream.errors import QueryError, did_you_mean

Positive = Annotated[int, Field(gt=0, strict=True)]
Id = int | str


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


def _explain(error: ValidationError, part: type[Part]) -> str:
    """The first thing that pydantic found, as one sentence that names the key."""
    details = error.errors()
    section = part.section
    unknown = next((d for d in details if d["type"] == "extra_forbidden" and len(d["loc"]) == 1), None)
    if unknown:
        key = str(unknown["loc"][0])
        return f"{'.'.join((*section, key))} is not a key of the query{did_you_mean(key, part.model_fields)}"
    return _wrong_value(details, section)


def _wrong_value(details: Sequence[ErrorDetails], section: tuple[str, ...]) -> str:
    detail = details[0]
    names = [str(part) for part in detail["loc"] if str(part) in _KEYS or isinstance(part, int)]
    where = ".".join((*section, *names))
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] == "missing":
        return f"{'.'.join((*section, *(str(p) for p in detail['loc'])))} is missing from the query"
    got = detail["input"]
    same_place = [d for d in details if [str(p) for p in d["loc"] if str(p) in _KEYS or isinstance(p, int)] == names]
    expected = " or ".join(dict.fromkeys(_expected(d) for d in same_place))
    hint = ""
    if isinstance(got, str):
        listed = [d["ctx"]["expected"] for d in same_place if d["type"] == "literal_error"]
        options = [option for text in listed for option in text.replace("' or '", "', '").strip("'").split("', '")]
        near = did_you_mean(got, options)
        hint = near if near.startswith("; did") else ""
    return f"{where} is {'null' if got is None else repr(got)}, expected {expected}{hint}"


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] == "too_short" and "ctx" in detail:
        return f"at least {detail['ctx']['min_length']} of them"
    if detail["type"] == "string_pattern_mismatch":
        return "letters, digits, dots, hyphens and underscores, a letter or digit first, 128 at most"
    message = detail["msg"].removeprefix("Input should be ")
    return message.removeprefix("a valid ").removeprefix("Input should ")


_KEYS: set[str] = set()
"""All keys of all parts: what of a place that pydantic names is a key, rather than the name of a type it tried."""
