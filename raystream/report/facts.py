"""A manifest in words and figures: what was asked, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from raystream.figures import number_of
from raystream.lake import redacted
from raystream.query.catalogue import KINDS
from raystream.report.text import describe_model, describe_seconds
from raystream.store.calibration import Calibration
from raystream.store.manifest import Certificate, Manifest


@dataclass(frozen=True)
class Fact:
    """A key figure and what it means."""

    name: str
    value: str
    meaning: str


def title(manifest: Manifest) -> str:
    """Say what was asked, as a heading."""
    chosen = manifest.counts.chosen
    return f"{chosen:,} row{'' if chosen == 1 else 's'} to label next"


def lede(manifest: Manifest) -> str:
    """Say what was asked, as a sentence: budget, strategy, score and pool."""
    select, score = manifest.resolved["select"], manifest.resolved["acquire"]["score"]
    scored = manifest.gives_scores
    how = f"strategy {select['strategy']}" + (f", score {score}" if scored else ", no score")
    return f"Asked for: {select['budget']:,} rows of {_pool_name(manifest.resolved['pool']['uri'])} by {how}, seed {manifest.seed}."


def facts(manifest: Manifest) -> tuple[Fact, ...]:
    """Return the key figures, in the order of a run."""
    counts, seconds = manifest.counts, manifest.seconds
    metric = manifest.resolved["select"]["metric"]
    left = [f"{n:,} {what}" for n, what in ((counts.labelled, "labelled"), (counts.quarantined, "quarantined")) if n]
    units = manifest.units_scored + manifest.units_reused
    total = seconds.calibrate + seconds.plan + seconds.start + seconds.score + seconds.select
    found = [
        _model(manifest.resolved["model"]),
        Fact("rows in the pool", f"{counts.pool:,}", f"of which {' and '.join(left)}" if left else "none of them labelled"),
        Fact("candidates", f"{counts.candidates:,}", _candidates(manifest)),
        Fact("chosen", f"{counts.chosen:,}", f"for a budget of {manifest.resolved['select']['budget']:,}"),
        *_certificate(manifest.certificate, metric),
        *_temperature(manifest.calibration),
        Fact("units scored", f"{manifest.units_scored:,}", f"of {units:,}; {manifest.units_reused:,} reused from the store"),
        Fact(
            "seconds",
            f"{total:.1f}",
            describe_seconds(seconds),
        ),
    ]
    return tuple(found)


def _model(section: Mapping[str, Any]) -> Fact:
    """Return the model by its name, and its weights where its kind has any beside the source."""
    if members := section.get("members"):
        return Fact("model", number_of(len(members), "member"), describe_model(section))
    name, weights = describe_model({**section, "weights": None}), section.get("weights") or []
    kind = KINDS.get(section["kind"])
    if weights:
        trained = f"weights {', '.join(_short(redacted(one)) for one in ([weights] if isinstance(weights, str) else weights))}"
    else:
        trained = f"kind {section['kind']}{', no weights named' if kind is not None and 'weights' in kind.keys else ''}"
    last = name.rstrip("/").rpartition(":" if kind is not None and kind.imported else "/")[2]
    return Fact("model", last, trained if last == name else f"{name}; {trained}")


def _certificate(certificate: Certificate | None, metric: str) -> list[Fact]:
    if certificate is None:
        return [Fact("covering radius", "none", "the choice did not look at embeddings")]
    rows = "eligible row of the pool" if certificate.over == "pool" else "candidate"
    meaning = f"no {rows} is farther than this from a chosen or labelled row ({metric} distance of embeddings)"
    found = [Fact("covering radius", f"{certificate.radius:.4g}", meaning)]
    if certificate.lower_bound is not None:
        bound = certificate.lower_bound
        ratio = f", so this one is at most {certificate.radius / bound:.2f} times the best" if bound > 0 else ""
        found.append(Fact("lower bound", f"{bound:.4g}", f"no batch of this size has a smaller radius{ratio}"))
    return found


def _temperature(calibration: Calibration | None) -> list[Fact]:
    if calibration is None:
        return []
    error = f"{calibration.ece_before:.3f} to {calibration.ece_after:.3f}"
    return [
        Fact(
            "temperature",
            f"{calibration.temperature:g}",
            f"fitted on {calibration.rows:,} labelled rows; calibration error from {error}",
        )
    ]


def _candidates(manifest: Manifest) -> str:
    counts = manifest.counts
    if counts.candidates >= counts.eligible:
        return "all eligible rows entered the choice"
    return f"the highest by {manifest.resolved['acquire']['score']} of {counts.eligible:,} eligible rows"


def _pool_name(uri: str | Sequence[str]) -> str:
    """Return the first path, as far as it takes to recognise the pool by it."""
    first, *more = [uri] if isinstance(uri, str) else list(uri)
    return _short(first) + (f" and {len(more)} more" if more else "")


def _short(path: str) -> str:
    """Return the last two parts of a long path."""
    parts = PurePath(path).parts
    return "/".join(parts[-2:]) if len(parts) > 2 else path
