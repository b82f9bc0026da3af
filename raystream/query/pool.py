"""Where the unlabelled rows are."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import field_validator

from raystream.errors import QueryError
from raystream.lake.uri import Storage, storage_from
from raystream.query.part import Part

FilterValue = bool | int | float | str | list[bool | int | float | str]
FilterTerm = tuple[str, Literal["==", "=", "!=", "<", "<=", ">", ">=", "in", "not in"], FilterValue]


class Pool(Part):
    """The unlabelled rows."""

    section = ("pool",)

    uri: str | list[str] = []
    """A Parquet file, a folder, a glob, a hive layout, a table, or a list of them; local or in object storage. Needed, except where
    `rs.run(query, pool=rows)` is given rows in memory."""
    id: str | None = None
    """The column that names rows, unique; integers, strings or bytes. Left out, rows are called `path#row`."""
    inputs: list[str] | dict[str, str] = []
    """The columns that the model sees, in order, or a mapping from the model's own names of its inputs to columns. Needed by all
    kinds but `columns`."""
    filters: list[FilterTerm] | list[list[FilterTerm]] = []
    """Terms `[column, op, value]` of which all hold, or a list of such lists of which any holds; pushed down to hive folders,
    tables' partitions and row-group statistics."""
    labelled: list[str] = []
    """Ids that have labels: never chosen, and already covered. Parquet, CSV or JSON Lines in files, folders, buckets or tables, with
    the pool's id column."""
    label: str | None = None
    """The column of labels: in the rows that `model.temperature` names, and wherever a loop reads labels."""
    keep: list[str] = []
    """Columns carried into the selection."""
    storage: dict[str, bool | int | str] = {}
    """How to reach object storage, for all URIs of the query; never secrets."""

    @property
    def uris(self) -> list[str]:
        """The paths as a list, however they were written.

        Raises:
            QueryError: there is none.
        """
        if not self.uri:
            raise QueryError(
                "pool.uri is missing from the query; name a Parquet file, a folder, a glob or a table, or give rows in memory by "
                "rs.run(query, pool=rows)"
            )
        return [self.uri] if isinstance(self.uri, str) else self.uri

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns that the model sees, in order; one that several inputs are made of stands there as often."""
        return tuple(self.inputs.values() if isinstance(self.inputs, dict) else self.inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The model's own names of its inputs, in order; empty if they are given by position."""
        return tuple(self.inputs) if isinstance(self.inputs, dict) else ()

    @field_validator("uri", mode="before")
    @classmethod
    def _is_no_table(cls, value: object) -> object:
        if hasattr(value, "columns") or hasattr(value, "__arrow_c_stream__"):
            raise ValueError(
                f"pool.uri is a {type(value).__name__}, expected the path or URI of Parquet; rows in memory are given beside the query, "
                "by rs.run(query, pool=rows)"
            )
        return value

    @field_validator("labelled", "inputs", "keep", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("filters", mode="before")
    @classmethod
    def _dates_are_text(cls, value: object) -> object:
        _check_form(value)
        return _with_text(value)

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


def _check_form(filters: object) -> None:
    """Refuse filters that are neither a list of terms nor a list of such lists; what is in a term is told by its types."""
    form = "expected terms [column, op, value] of which all hold, or lists of such terms of which any holds, and not both"
    if not isinstance(filters, (list, tuple)):
        raise ValueError(f"pool.filters is {filters!r}; {form}")
    flat = bool(filters) and all(_is_term(item) for item in filters)
    for index, item in enumerate([filters] if flat else filters):
        place = "pool.filters" if flat else f"pool.filters.{index}"
        if isinstance(item, (list, tuple)) and not item:
            raise ValueError(f"{place} is empty, so that every row would pass; remove it, or put terms [column, op, value] into it")
        if not isinstance(item, (list, tuple)) or not all(_is_term(term) for term in item):
            raise ValueError(f"{place} is {item!r}; {form}")
        for number, term in enumerate(item):
            if len(term) != 3:
                raise ValueError(f"{place}.{number} is {term!r}; expected three parts, [column, op, value]")


def _is_term(item: object) -> bool:
    return isinstance(item, (list, tuple)) and bool(item) and not isinstance(item[0], (list, tuple))


def _with_text(value: Any) -> Any:
    """Return the filters with ISO text for dates and times, which YAML makes of unquoted ones: so the query is the same either way."""
    if isinstance(value, (list, tuple)):
        return [_with_text(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
