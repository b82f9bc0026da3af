"""Holds a query that is run from a manifest against what that records: the pool's files, the model, the labelled rows, the versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raystream.choosing.commit import surroundings
from raystream.errors import DataError, LabelsError, ModelError, PoolError
from raystream.figures import number_of, several
from raystream.scoring.plan import ResolvedQuery
from raystream.store.manifest import changed_versions
from raystream.store.recorded import Recorded

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
    found = [*_model(asked, record), *_pool(asked, record), *_labelled(asked, record), *_sources(asked, record)]
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


def _labelled(asked: ResolvedQuery, record: Recorded) -> list[_Found]:
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
