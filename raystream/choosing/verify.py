"""A committed query again: what has changed since, and whether the same rows come out.

Derives a committed selection again, from the store, and compares: the same scores must give the same rows.

Holds a query that is run from a manifest against what that records: the pool's files, the model, the labelled rows, the versions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from raystream.choosing.batch import choose_batch, surroundings
from raystream.choosing.candidates import goes_by_score
from raystream.choosing.constraints import PoolColumns
from raystream.choosing.holding import Actors
from raystream.choosing.labelled import LabelledRows, labelled_rows_of
from raystream.errors import DataError, LabelsError, ModelError, PoolError, StoreError, VerificationError
from raystream.figures import number_of, quoted, several
from raystream.pool import File, Labelled, PoolPlan, read_labelled
from raystream.pool.files import known_files
from raystream.query import Query
from raystream.scoring.class_labels import named_classes
from raystream.scoring.output_kinds import differences, query_identity
from raystream.scoring.plan import ResolvedQuery, candidates_columns, pool_plan, with_temperature
from raystream.scoring.progress import Reporter, Silent
from raystream.scoring.rescore import Rescored, rescore
from raystream.scoring.scored_pool import ScoredPool, merge
from raystream.store.integrity import damaged
from raystream.store.manifest import Certificate, Manifest, changed_versions
from raystream.store.packs import in_threads
from raystream.store.protocol import Store, StoredFile
from raystream.store.queries import StoredUnits, find_query, query_folder, read_manifest, read_query, stored_labelled_units, stored_units
from raystream.store.receipts import EMBEDDINGS, PROBABILITIES, SAMPLES, UnitOutputs
from raystream.store.recorded import Recorded
from raystream.store.result import committed_table, read_result
from raystream.store.unit_columns import quarantined_rows

TOLERANCE = 1e-6
"""By how much of their size gains, distances, probabilities and the certificate may differ: they may be summed up in another order."""

_CLOSE = ("gain", "distance", "probability")
_LATER = frozenset({"turn", "probability"})
"""Columns that selections of before don't have."""
_HASH_THREADS = 4
_FETCH_THREADS = 16
_FILES_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Verified:
    """The parts of a committed query that were found to be as committed.

    `same` columns agree exactly, `close` ones to `tolerance` times their size; `not_compared` are kept columns, which only
    the pool holds. `scored` rows in `units` units of `bytes` bytes are what it was derived from. `rescored` are units that were scored
    again, None if none was asked for.
    """

    query: str
    rows: int
    scored: int
    units: int
    bytes: int
    same: tuple[str, ...]
    close: tuple[str, ...]
    not_compared: tuple[str, ...]
    tolerance: float
    rescored: Rescored | None = None

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def verify(
    store: Store,
    name: str,
    connect: Callable[[Query], AbstractContextManager[Actors]],
    reporter: Reporter | None = None,
    rescored: int = 0,
    seed: int = 0,
) -> Verified:
    """Derive a committed selection again and compare it.

    Scores, embeddings and ids come from the store; the labelled ids from their files; from the pool only columns that
    quotas and costs go by. Nothing is changed, and nothing scored but what `rescored` asks for.

    Args:
        store: holds the query.
        name: the query's, or its beginning.
        connect: where selection actors come from, if the query needs some.
        reporter: told how far it is.
        rescored, seed: how many units, drawn by this seed, are scored again and compared; see `raystream.scoring.rescore`.

    Raises:
        QueryError: there is no such query.
        StoreError: what it was derived from is gone or damaged.
        LabelsError, PoolError: labelled ids, or files of a pool whose columns it needs, have changed since.
        VerificationError: the selection isn't what its scores give, or a unit's outputs aren't what the model gives.
    """
    reporter = reporter or Silent()
    manifest = read_manifest(store, find_query(store, name))
    assert manifest is not None
    query = _query(store, manifest)
    reporter.stage("Checking the stored units")
    units = stored_units(store, manifest)
    elsewhere = stored_labelled_units(store, manifest)
    every = (units.outputs, elsewhere)
    bytes_ = _check_whole(store, chain([manifest.selection], _files(query, every))) - manifest.selection.size
    _compare_quarantined(store, manifest, every)
    reporter.stage(f"Choosing {query.select.budget} rows by {query.select.strategy} again")
    columns = _columns(store, query, manifest, units)
    pool = columns.pool
    labelled = _labelled(query, pool, manifest)
    none = LabelledRows(np.zeros(len(pool), bool), 0, None, ())
    labelled_rows = none if labelled is None else labelled_rows_of(query, labelled, pool, elsewhere)
    asked = query.derived(pool=query.pool.derived(keep=[]))
    with connect(query) as actors:
        batch = choose_batch(asked, columns, labelled_rows, actors, anew=True)
    committed = read_result(store, manifest).selection
    compared = _compare(committed, batch.selection, query, manifest)
    _compare_certificates(manifest, batch.certificate)
    again = rescore(store, manifest, read_query(store, manifest.query), units, rescored, seed, reporter) if rescored else None
    return Verified(
        query=manifest.query,
        rows=committed.num_rows,
        scored=len(pool),
        units=len(units.outputs) + len(elsewhere),
        bytes=bytes_,
        same=tuple(column for column in compared if column not in _CLOSE),
        close=(*(column for column in compared if column in _CLOSE), *(["certificate"] if manifest.certificate else [])),
        not_compared=tuple(query.pool.keep),
        tolerance=TOLERANCE,
        rescored=again,
    )


def _columns(store: Store, query: Query, manifest: Manifest, units: StoredUnits) -> PoolColumns:
    """Return the scored rows as they were merged then; the pool's files are looked at only if the choice needs their columns."""
    needed = candidates_columns(query)
    schema, files = pa.schema([]), {file.path: file for file in known_files(manifest.files, query.pool.options)}
    if needed:
        plan = pool_plan(query, query.pool, needed)
        schema, files = plan.keep_schema, _unchanged(plan, manifest, needed)
    column = query.acquire.column if goes_by_score(query, units.outputs) else None
    pool = merge(store, units.outputs, [files[path] for path in units.paths], units.path_of, query.pool.id or "id", column)
    return PoolColumns(pool, schema, named_classes(_classes(manifest), units.outputs))


def _query(store: Store, manifest: Manifest) -> Query:
    """Return the query as it was given; `resolved` also says what was left out, which strict keys may refuse."""
    query = with_temperature(read_query(store, manifest.query), manifest.calibration)
    now = query_identity(query, [], [], None, manifest.fingerprint)
    asked = [key for key in now if key in manifest.identity and not key.startswith("the ")]
    differ = differences({key: manifest.identity[key] for key in asked}, {key: now[key] for key in asked})
    if differ:
        place = store.place(f"{query_folder(manifest.query)}/query.yaml")
        raise StoreError(f"store: {place} is not the query that was committed: it differs in {differ}; restore it")
    return query


def _files(query: Query, groups: Iterable[Iterable[UnitOutputs]]) -> Iterator[StoredFile]:
    """Yield the files of units that the choice reads."""
    traits = query.select.traits
    vectors = {EMBEDDINGS: query.needs_embedding, PROBABILITIES: traits.probabilities, SAMPLES: traits.samples}
    for unit in chain.from_iterable(groups):
        read = [receipt.file for receipt in unit.receipts if vectors.get(receipt.kind, True)]
        left_out = [receipt.quarantine for receipt in unit.receipts]
        yield from (file for file in dict.fromkeys([*read, *left_out]) if file is not None)


def _check_whole(store: Store, files: Iterator[StoredFile]) -> int:
    """See that each file is what was written, and return the size of all together in bytes."""
    total, threads = 0, _FETCH_THREADS if store.remote else _HASH_THREADS
    while some := list(islice(files, _FILES_AT_ONCE)):
        for file, whole in zip(some, in_threads(store.is_whole, some, threads), strict=True):
            if not whole:
                raise damaged(store.place(file.name))
            total += file.size
    return total


def _labelled(query: Query, pool: ScoredPool, manifest: Manifest) -> Labelled | None:
    if not query.pool.labelled:
        return None
    labelled = read_labelled(query.pool.labelled, query.pool.id, pool.ids.type, storage=query.pool.options)
    if manifest.labelled_digest is not None and labelled.digest != manifest.labelled_digest:
        raise LabelsError(
            f"pool.labelled {', '.join(query.pool.labelled)} holds other ids now ({len(labelled):,} of them) than when query "
            f"{manifest.query} was committed; restore the files of then"
        )
    return labelled


def _unchanged(plan: PoolPlan, manifest: Manifest, needed: Sequence[str]) -> dict[str, File]:
    """Return the pool's files, provided that they are those of then."""
    now = {file.path: file for file in plan.files}
    then = {path: (path, size, version) for path, size, version in manifest.files}
    changed = sorted(path for path in {**then, **now} if path not in now or now[path].identity != then.get(path))
    if changed:
        raise PoolError(
            f"query {manifest.query} goes by {', '.join(needed)}, which only the pool holds, and {len(changed)} of its files were added, "
            f"rewritten or removed since it was committed, first: {changed[0]}; restore them to verify it"
        )
    return now


def _classes(manifest: Manifest) -> list[str] | None:
    try:
        names: list[str] | None = json.loads(manifest.identity["the names of the classes"])
    except (ValueError, KeyError):
        raise StoreError(
            f"store: the manifest of query {manifest.query} is damaged: its identity holds no names of the classes; restore it"
        ) from None
    return names


def _compare(then: pa.Table, now: pa.Table, query: Query, manifest: Manifest) -> list[str]:
    """Name the columns that agree.

    Raises:
        VerificationError: names the first rank and column in which they don't.
    """
    columns = [name for name in now.column_names if name != "rank" and (name in then.column_names or name not in _LATER)]
    if missing := [name for name in columns if name not in then.column_names]:
        raise VerificationError(f"query {manifest.query}: its selection has no column {missing[0]}")
    old, new = ({name: table.column(name).to_pylist() for name in columns} for table in (then, now))
    for rank in range(min(then.num_rows, now.num_rows)):
        for name in columns:
            before, after = old[name][rank], new[name][rank]
            if not (_close(before, after) if name in _CLOSE else before == after or (before != before and after != after)):
                raise VerificationError(
                    f"query {manifest.query} is not what its scores give: at rank {rank}, {name} is {quoted(before)} in the selection and "
                    f"{quoted(after)} now; {_suspects(query, manifest)}"
                )
    if then.num_rows != now.num_rows:
        raise VerificationError(
            f"query {manifest.query} is not what its scores give: {then.num_rows} rows are in the selection, {now.num_rows} are "
            f"chosen now, the first {min(then.num_rows, now.num_rows)} of them the same; {_suspects(query, manifest)}"
        )
    return columns


def _compare_certificates(manifest: Manifest, now: Certificate | None) -> None:
    then = manifest.certificate
    if then is None and now is None:
        return
    if then is None or now is None or then.over != now.over or not all(
        _close(getattr(then, name), getattr(now, name)) for name in ("radius", "lower_bound")
    ):  # fmt: skip
        raise VerificationError(f"query {manifest.query}: its certificate is {then}, but its scores give {now}")


def _compare_quarantined(store: Store, manifest: Manifest, groups: Iterable[Iterable[UnitOutputs]]) -> None:
    """Hold the rows that were left out against the units' own.

    Raises:
        StoreError: the file of them is gone or isn't what was committed.
        VerificationError: it holds other rows than the units left out.
    """
    found = list(quarantined_rows(store, *groups))
    then = None if manifest.quarantined is None else committed_table(store, manifest, manifest.quarantined)
    now = pa.concat_tables(found) if found else None
    if (then is None) != (now is None) or (then is not None and not then.equals(now)):
        counts = [0 if table is None else table.num_rows for table in (then, now)]
        raise VerificationError(
            f"query {manifest.query}: quarantined.parquet names {counts[0]} rows, but its units left out {counts[1]}, or others"
        )


def _close(then: float | None, now: float | None) -> bool:
    if then is None or now is None:
        return then is now
    return abs(then - now) <= TOLERANCE * max(abs(then), abs(now)) + 1e-12


def _suspects(query: Query, manifest: Manifest) -> str:
    """Name what may have changed beside the store."""
    now = surroundings()
    changed = [f"{name} {then} then, {now.get(name)} now" for name, then in manifest.versions.items() if now.get(name) != then]
    if ":" in query.select.strategy:
        changed.append(f"the source of {query.select.strategy}")
    return f"what may differ: {', '.join(changed)}" if changed else "the selection or the store was changed"


_FILES = "the pool's files"
_LABELLED = "the labelled rows"
_MODEL = "the model's weights, arguments or source"
_CLASSES = "the names of the classes"
_DIGITS = 12
_OF_MODEL = tuple(f"model.{key}" for key in ("kind", "source", "args", "weights", "members", "version"))
"""Keys that decide which model it is."""


def check_recorded(asked: ResolvedQuery, record: Recorded) -> list[str]:
    """Say what is another than the manifest has it, a sentence each, where that is no reason to stop.

    What was replaced (`--set`) may differ, which is said; so may versions, and the place and times of files of the same names and
    sizes. Anything else is another query than the recorded one.

    Raises:
        ModelError, PoolError, LabelsError, DataError: it is; the first kind of what differs, with a sentence for each.
    """
    found = [*_model(asked, record), *_pool(asked, record), *_labelled_rows(asked, record), *_sources(asked, record)]
    wrong = [(error, sentence) for error, sentence in found if error is not None]
    if wrong:
        told = "; ".join(sentence for _, sentence in wrong)
        raise wrong[0][0](
            f"{record.place}: {told}; restore what was there, name what is meant to differ by --set, or run the query's own file, which "
            "records nothing"
        )
    return [sentence for _, sentence in found] + _versions(record)


_Found = tuple[type[DataError] | None, str]
"""A sentence, and the error that it is; None where it is none."""


def _model(asked: ResolvedQuery, record: Recorded) -> list[_Found]:
    then, now = record.manifest.fingerprint, asked.fingerprint
    if then == now:
        return []
    told = f"the model's weights, arguments or source are others (fingerprint {now[:_DIGITS]}, {then[:_DIGITS]} then)"
    return [(None if record.replaces(*_OF_MODEL) else ModelError, told)]


def _pool(asked: ResolvedQuery, record: Recorded) -> list[_Found]:
    then, now = ({path: (size, version) for path, size, version in files} for files in (record.manifest.files, asked.pool.snapshot))
    if then == now:
        return []
    places = [_root(then), _root(now)]
    moved = places[0] != places[1] and not then.keys() & now.keys()
    if moved:
        then, now = ({path.removeprefix(root): of for path, of in files.items()} for files, root in zip((then, now), places, strict=True))
    gone, more = [path for path in then if path not in now], [path for path in now if path not in then]
    resized = [path for path in then if path in now and then[path][0] != now[path][0]]
    where = f" under {places[1]}, {places[0]} then" if moved else ""
    if gone or more or resized:
        parts = [
            f"{number_of(len(paths), 'file')} {verb} ({several(paths, 2)})"
            for paths, verb in ((gone, "missing"), (more, "added"), (resized, "of another size"))
            if paths
        ]
        return [(None if record.replaces("pool.uri", "pool.filters") else PoolError, f"the pool's files{where} differ: {', '.join(parts)}")]
    touched = sum(then[path] != now[path] for path in then)
    told = f"{touched:,} of the pool's {number_of(len(now), 'file')}{where} have the names and sizes of then, but other versions"
    if not touched:
        told = f"the pool's {number_of(len(now), 'file')} lie{where}"
    by_place = "; rows are named by their files, and chance goes by these names" if moved and record.query.pool.id is None else ""
    return [(None, f"{told}; their content was not compared{by_place}")]


def _root(paths: Iterable[str]) -> str:
    """Return the folder, with the slash behind it, that all paths lie in."""
    folders = [path.split("/")[:-1] for path in paths]
    common = folders[0] if folders else []
    for folder in folders:
        same = [a == b for a, b in zip(common, folder, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    return "/".join([*common, ""])


def _labelled_rows(asked: ResolvedQuery, record: Recorded) -> list[_Found]:
    then, now = record.manifest.labelled_digest, asked.labelled.digest if asked.labelled is not None else None
    if then == now:
        return []
    held = "none" if asked.labelled is None else number_of(len(asked.labelled), "id")
    error = None if record.replaces("pool.labelled", "pool.id") else LabelsError
    return [(error, f"pool.labelled holds other ids ({held}, {record.manifest.counts.labelled:,} labelled rows then)")]


def _sources(asked: ResolvedQuery, record: Recorded) -> list[_Found]:
    """List whatever else a query's name stands for beside its keys: sources of functions, classes, targets."""
    then, now = record.manifest.identity, asked.identity
    others = [key for key in {**then, **now} if key.startswith("the ") and key not in (_FILES, _LABELLED, _MODEL)]
    differ = [key for key in others if then.get(key) != now.get(key)]
    if not differ:
        return []
    meant = record.replaces("model", "acquire", "select.strategy")
    return [(None if meant else DataError, f"{' and '.join(_named(differ))} {'is' if len(differ) == 1 else 'are'} another than then")]


def _named(parts: Sequence[str]) -> list[str]:
    return ["the list of classes' names" if part == _CLASSES else part for part in parts]


def _versions(record: Recorded) -> list[str]:
    changed = changed_versions(record.manifest.versions, surroundings())
    if not changed:
        return []
    told = ", ".join(f"{name} {now} ({then} then)" for name, (then, now) in changed.items())
    return [f"other versions than {record.place} records, by which scores and draws may differ: {told}"]
