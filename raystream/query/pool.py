"""Where the unlabelled rows are."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from raystream.lake.storage import Storage, storage_from
from raystream.query.part import Part

FilterValue = bool | int | float | str | list[bool | int | float | str]
FilterTerm = tuple[str, Literal["==", "=", "!=", "<", "<=", ">", ">=", "in", "not in"], FilterValue]


class Pool(Part):
    """The unlabelled rows."""

    section = ("pool",)

    uri: str | list[str]
    id: str | None = None
    inputs: list[str] | dict[str, str] = []
    filters: list[FilterTerm] | list[list[FilterTerm]] = []
    labelled: list[str] = []
    label: str | None = None
    keep: list[str] = []
    storage: dict[str, bool | int | str] = {}

    @property
    def uris(self) -> list[str]:
        """The paths as a list, however they were written."""
        return [self.uri] if isinstance(self.uri, str) else self.uri

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns that the model sees, in order; one that several inputs are made of stands there as often."""
        return tuple(self.inputs.values() if isinstance(self.inputs, dict) else self.inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The model's own names of its inputs, in order; empty if they are given by position."""
        return tuple(self.inputs) if isinstance(self.inputs, dict) else ()

    @field_validator("labelled", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("storage", mode="before")
    @classmethod
    def _options_without_secrets(cls, value: object) -> object:
        if isinstance(value, dict):
            storage_from({str(name): option for name, option in value.items()})
        return value

    @property
    def options(self) -> Storage:
        """`storage` as a value that travels."""
        return storage_from(self.storage)

    @property
    def disjunction(self) -> list[list[FilterTerm]]:
        """The filters as a list of conjunctions (pyarrow's DNF); empty when there are none."""
        terms = self.filters
        if not terms:
            return []
        if isinstance(terms[0], tuple):
            return [[t for t in terms if isinstance(t, tuple)]]
        return [t for t in terms if isinstance(t, list)]
