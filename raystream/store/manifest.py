"""The record that is committed with a selection: enough to know how it came about and to derive it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from raystream.lake.uri import TableVersion
from raystream.query.catalogue import KINDS
from raystream.store.calibration import Calibration
from raystream.store.protocol import StoredFile


@dataclass(frozen=True)
class Certificate:
    """A measure of how well the batch covers what it was chosen from.

    `radius` is the largest distance of a row to the nearest chosen or labelled one. No batch of this size has one
    below `lower_bound`, which is known for plain core sets alone. `over` says which rows count.
    """

    radius: float
    lower_bound: float | None
    over: str


@dataclass(frozen=True)
class Seconds:
    """Wall time by stage; `start` is until workers were up, `calibrate` all that fitting the temperature took."""

    start: float = 0.0
    plan: float = 0.0
    score: float = 0.0
    select: float = 0.0
    calibrate: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Rows by what became of them."""

    pool: int
    scored: int
    labelled: int
    eligible: int
    candidates: int
    chosen: int
    quarantined: int


@dataclass(frozen=True)
class SelectionRounds:
    """An account of how selection actors were asked; a round is one message to all of them and what they answer.

    `bytes` counts what travelled both ways, rebuilding lost actors included; `bytes_per_round` is in the order of the rounds,
    the first of which tells each actor which rows are its own.
    """

    actors: int
    restarts: int
    rounds: int
    bytes: int
    bytes_per_round: list[int]


@dataclass(frozen=True)
class Manifest:
    """The record of one committed query; without it, the query did not happen.

    `selection` is the file of the attempt that won; `selection.parquet` is its copy. `quarantined` are the rows that were left out,
    copied to `quarantined.parquet` likewise; None if there are none. `facts` are the strategy's own, such as the
    recall of an approximate index, and how constraints were met (see `choosing.constraints`). `selection_rounds` is None when the batch
    was chosen without selection actors, `calibration` when the temperature was given as a number. `tables` says which version was
    read of each table of the pool.
    `labelled_units` are the keys of units over labelled rows outside the pool, in the order in which they were read, and
    `labelled_digest` is that of the labelled ids; plan.parquet has the keys of the pool's own units. `committed` is the time, UTC.
    `scored` is false where the model turned out to have one opinion of a number, which is no score.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    query: str
    identity: dict[str, str]
    resolved: dict[str, Any]
    files: list[tuple[str, int, str]]
    fingerprint: str
    versions: dict[str, str]
    seed: int
    counts: Counts
    units_scored: int
    units_reused: int
    seconds: Seconds
    bytes_read: int
    passes: int
    certificate: Certificate | None
    warnings: list[str]
    selection: StoredFile
    facts: dict[str, float | int | str] = field(default_factory=dict)
    selection_rounds: SelectionRounds | None = None
    calibration: Calibration | None = None
    tables: list[TableVersion] = field(default_factory=list)
    labelled_units: list[str] = field(default_factory=list)
    labelled_digest: str | None = None
    committed: str = ""
    quarantined: StoredFile | None = None
    scored: bool = True

    @property
    def about(self) -> dict[str, str]:
        """The metadata that rows of the query carry with them into other files and tables."""
        return {
            "raystream.version": self.versions["raystream"],
            "raystream.query": self.query,
            "raystream.model": self.fingerprint,
            "raystream.snapshot": hashlib.sha256(json.dumps(self.files).encode()).hexdigest(),
            "raystream.pool": json.dumps(self.resolved["pool"]["uri"]),
        }

    @property
    def gives_scores(self) -> bool:
        """True if the model gave scores, by which the choice went or which it shows."""
        model = self.resolved["model"]
        carried = model["kind"] in KINDS and KINDS[model["kind"]].carried
        return self.scored and (not carried or bool(model.get("logits") or model.get("probabilities") or model.get("samples")))

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, default=str).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown, or of another type.
        """
        manifest = _reader().validate_json(data, strict=True)
        if not manifest.pool_uris or not all(isinstance(uri, str) for uri in manifest.pool_uris):
            raise ValueError("no URI of the pool")
        return manifest

    @property
    def pool_uris(self) -> list[str]:
        """The URIs of the query's pool."""
        uri = self.resolved["pool"]["uri"]
        return [uri] if isinstance(uri, str) else list(uri)


@cache
def _reader() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def versions() -> dict[str, str]:
    """Return the versions of what a selection may depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("raystream", "torch", "numpy", "pyarrow", "faiss-cpu", "ray")}


def changed_versions(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Compare two records of versions, and return what differs with both; `none` where one of them has none."""
    return {name: (then.get(name, "none"), now.get(name, "none")) for name in {**then, **now} if then.get(name) != now.get(name)}
