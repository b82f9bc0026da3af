"""Where the unlabelled rows are."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from raystream.query.part import Part

FilterValue = bool | int | float | str | list[bool | int | float | str]
FilterTerm = tuple[str, Literal["==", "=", "!=", "<", "<=", ">", ">=", "in", "not in"], FilterValue]


class Pool(Part):
    """The unlabelled rows."""

    section = ("pool",)

    uri: str | list[str]
    id: str | None = None
    inputs: list[str] = []
    filters: list[FilterTerm] | list[list[FilterTerm]] = []
    labelled: list[str] = []
    label: str | None = None
    keep: list[str] = []

    @property
    def uris(self) -> list[str]:
        """The paths as a list, however they were written."""
        return [self.uri] if isinstance(self.uri, str) else self.uri

    @field_validator("labelled", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def disjunction(self) -> list[list[FilterTerm]]:
        """The filters as a list of conjunctions (pyarrow's DNF); empty when there are none."""
        terms = self.filters
        if not terms:
            return []
        if isinstance(terms[0], tuple):
            return [[t for t in terms if isinstance(t, tuple)]]
        return [t for t in terms if isinstance(t, list)]
