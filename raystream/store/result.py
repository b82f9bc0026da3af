"""The result of a run: the committed selection with its manifest, or what scoring alone did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from raystream.errors import StoreError
from raystream.figures import number_of
from raystream.lake.uri import absolute
from raystream.store.local import LocalStore
from raystream.store.manifest import Manifest, Seconds
from raystream.store.opening import existing_store
from raystream.store.protocol import Store, StoredFile
from raystream.store.queries import find_query, query_folder, read_manifest, read_parquet
from raystream.store.unit_columns import named


@dataclass(frozen=True, repr=False)
class Result:
    """A committed query.

    `new` is False when the very same query had been committed before; it is then returned as it was. `output` is the table or
    file that holds the selection, too, if the run wrote one or found it there. `html` draws it for notebooks.
    """

    store: Store
    selection: pa.Table
    manifest: Manifest
    new: bool
    output: str | None = None
    html: Callable[[Result], str] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        select = self.manifest.resolved["select"]
        score = f", score {self.manifest.resolved['acquire']['score']}" if self.manifest.gives_scores else ""
        when = "new" if self.new else f"committed {self.manifest.committed}"
        return f"<Result {self.query}: {number_of(self.selection.num_rows, 'row')} by {select['strategy']}{score}; {when}>"

    def _repr_html_(self) -> str | None:
        return None if self.html is None else self.html(self)

    @property
    def query(self) -> str:
        """The query's name in the store."""
        return self.manifest.query

    @property
    def folder(self) -> Path:
        """The query's folder, of a store that is one; elsewhere, `place` says where its files are."""
        if not isinstance(self.store, LocalStore):
            raise StoreError(f"store {self.store.uri} is no folder of this machine; ask result.place(name) for the URI of a file")
        return self.store.path(query_folder(self.query))

    def place(self, name: str) -> str:
        """Return the path or URI of a file of the query's."""
        return self.store.place(f"{query_folder(self.query)}/{name}")

    @property
    def path(self) -> str:
        """The path or URI of the selection."""
        return self.place("selection.parquet")

    @property
    def quarantined(self) -> pa.Table | None:
        """All rows that were left out: the id under its own name, `path`, `row` and `reason`; None if there are none.

        Raises:
            StoreError: the file of them is gone or damaged.
        """
        return committed_table(self.store, self.manifest, self.manifest.quarantined) if self.manifest.quarantined else None

    @property
    def quarantined_named(self) -> list[str]:
        """Lines on the rows that were left out: how many, and one for each of the first ten; empty if none was."""
        table = self.quarantined
        return [] if table is None else named([table], table.num_rows)

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints: what was committed, and how many units were scored for it now."""
        manifest = self.manifest
        return {
            "query": self.query,
            "selection": self.path,
            "output": absolute(self.output) if self.output else None,
            "rows": self.selection.num_rows,
            "new": self.new,
            "committed": manifest.committed,
            "units_scored": manifest.units_scored if self.new else 0,
            "units_reused": manifest.units_reused + (0 if self.new else manifest.units_scored),
            "certificate": asdict(manifest.certificate) if manifest.certificate else None,
            "warnings": manifest.warnings,
            "quarantined": self.place("quarantined.parquet") if manifest.quarantined else None,
            "counts": asdict(manifest.counts),
            "seconds": asdict(manifest.seconds),
            "passes": manifest.passes,
            "facts": manifest.facts,
            "selection_rounds": asdict(manifest.selection_rounds) if manifest.selection_rounds else None,
            "calibration": asdict(manifest.calibration) if manifest.calibration else None,
            "bytes_read": manifest.bytes_read,
        }


@dataclass(frozen=True)
class Scores:
    """The result of scoring alone; `quarantined` counts the rows that were left out, and names the first."""

    query: str
    rows: int
    units_scored: int
    units_reused: int
    warnings: tuple[str, ...]
    seconds: Seconds
    quarantined: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints; nothing was chosen, so there is neither selection nor certificate."""
        found = {"selection": None, "certificate": None, **asdict(self)}
        del found["quarantined"]
        return found


def read_result(store: Store, manifest: Manifest) -> Result:
    """Read the committed query that a manifest belongs to.

    Raises:
        StoreError: its selection, or the file of its quarantined rows, is gone, damaged, or isn't what was committed.
    """
    data = _copy(store, manifest, manifest.selection, "selection.parquet")
    if manifest.quarantined is not None:
        _copy(store, manifest, manifest.quarantined, "quarantined.parquet")
    return Result(store, read_parquet(data), manifest, new=False)


def committed_table(store: Store, manifest: Manifest, file: StoredFile) -> pa.Table:
    """Read one of a query's files that its manifest names.

    Raises:
        StoreError: it is gone or isn't what was committed.
    """
    return read_parquet(_whole(store, manifest, file))


def committed_file(store: Store, manifest: Manifest, file: StoredFile) -> Path:
    """Find one of a query's files that its manifest names, as a file of this machine that may be read piece by piece.

    Raises:
        StoreError: it is gone or isn't what was committed.
    """
    if not store.remote and not store.is_whole(file):  # what is brought here from a bucket is checked on its way
        raise _changed(store, manifest, file)
    return store.local(file)


def _copy(store: Store, manifest: Manifest, file: StoredFile, name: str) -> bytes:
    """Read the copy of a committed file under its plain name; made now if the run that committed ended before it could."""
    place = f"{query_folder(manifest.query)}/{name}"
    if store.size(place) is None:
        store.put(place, _whole(store, manifest, file))
    return _whole(store, manifest, replace(file, name=place), f"move it away, and it is copied again from {file.name}")


def _whole(store: Store, manifest: Manifest, file: StoredFile, advice: str = "") -> bytes:
    """Read a file as it was committed."""
    data = store.read(file.name)
    if xxhash.xxh3_128_hexdigest(data) != file.xxh3:
        raise _changed(store, manifest, file, advice)
    return data


def _changed(store: Store, manifest: Manifest, file: StoredFile, advice: str = "") -> StoreError:
    advice = advice or f"forget the query by raystream gc --drop {manifest.query}"
    return StoreError(f"store: {store.place(file.name)} is damaged or was changed: its content is not what was committed; {advice}")


def load_result(store_uri: str, name: str) -> Result:
    """Load a committed query, by its name or by the beginning of it.

    Raises:
        QueryError: there is none of this name, or several begin with it.
    """
    store = existing_store(store_uri)
    manifest = read_manifest(store, find_query(store, name))
    assert manifest is not None
    return read_result(store, manifest)
