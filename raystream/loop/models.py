"""The models of a loop's rounds: trained on labels as they were, kept in the store, loaded again by another process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raystream.acquisition.calibration import fit_mean_temperature, fit_temperature
from raystream.cluster.task import has_cluster, run_on_cluster
from raystream.errors import RaystreamError
from raystream.lake.ranges import local_copy
from raystream.loop.journal import Trained
from raystream.loop.judging import classes_of, uncertainty
from raystream.loop.labels import Id
from raystream.loop.ledger import TRAIN, Ledger
from raystream.loop.trainers.by_name import CommitteeFitted, fit, load_fitted, make_trainer
from raystream.loop.trainers.sklearn_trainer import SklearnFitted
from raystream.loop.trainers.training import Array, ClassLabel, Fitted, Trainer, TrainingRows, gives_embedding, held_back, seed_of
from raystream.loop.trainers.users_trainer import LABEL
from raystream.model import class_names
from raystream.query import Model
from raystream.query.catalogue import kind_of
from raystream.query.catalogue.scores import REGRESSOR, REGRESSORS_KEYS
from raystream.query.loop import Loop

_TRAINING, _CALIBRATION = 2, 3
"""Purposes of seeds."""
_FEW = 8
"""Rows by which it shows whether a model gives embeddings."""
_HELD_BACK = 0.2
"""Of the labelled rows, to fit a temperature on."""


class Models:
    """See the module."""

    def __init__(self, ledger: Ledger, trainer: Trainer) -> None:
        self._ledger, self._trainer = ledger, trainer
        self._fitted: dict[int, Fitted] = {}
        self._sampled: tuple[Array, ...] | None = None

    def train(self, round_: int) -> Trained:
        """Train on a round's labels, or find the model that was trained before."""
        ledger = self._ledger
        known = ledger.journal.trained(round_)
        if known is not None:
            return known
        began = time.perf_counter()
        rows, skipped = self.training_rows(round_)
        warnings = [f"{skipped:,} labelled rows could not be read and are not trained on"] if skipped else []
        without = _unlearnable(rows)
        if without:
            return ledger.journal.commit_trained(Trained(round_, without=without, rows=len(rows), warnings=[*warnings, without]))
        settings = ledger.loop.loop
        ledger.reporter.stage(f"Training on {len(rows):,} labelled rows")
        seed = seed_of(ledger.loop.seed, round_, _TRAINING)
        aside = held_back(rows.labels, _HELD_BACK, seed_of(seed, _CALIBRATION), by_class=True) if settings.calibrate else None
        train = rows if aside is None else rows.at(np.flatnonzero(~aside))
        goes_on = settings.warm_start or ":" in settings.trainer  # a function of the user's is always told of the model before
        previous = ledger.trained_before(round_) if goes_on else None
        fitted, section = self._fit(round_, train, previous, seed)
        if aside is not None:
            section["temperature"], told = _temperature(fitted, rows.at(np.flatnonzero(aside)))
            warnings += told
        sample = self._sample()
        record = Trained(
            round=round_,
            model=section,
            classes=None if fitted.classes is None else list(fitted.classes),
            rows=len(train),
            predictions=None if sample is None else classes_of(fitted, sample),
            uncertainty=None if sample is None else uncertainty(fitted.predict(sample).values),
            warnings=warnings,
            seconds=time.perf_counter() - began,
        )
        found = ledger.journal.commit_trained(record)
        if found.model == section:
            self._fitted[round_] = fitted
        return found

    def of(self, round_: int) -> Fitted:
        """Return a round's model, loaded again if another process trained it."""
        if round_ not in self._fitted:
            trained = self._ledger.journal.trained(round_)
            assert trained is not None
            storage = self._ledger.query.store_options
            section = with_paths(self.section(trained), lambda path: local_copy(path, storage, "model.weights"))
            self._fitted[round_] = load_fitted(self._trainer, Model(**section), None if trained.classes is None else tuple(trained.classes))
        return self._fitted[round_]

    def embeds(self, round_: int, ids: Sequence[Id]) -> bool:
        """Tell whether a round's model gives embeddings, by the first of these rows."""
        few = self._few(ids)
        return not few or gives_embedding(self.of(round_), few)

    def check_embedding(self, round_: int, ids: Sequence[Id]) -> None:
        """Refuse a regressor without an embedding in its own words: workers would say no more than that there is none.

        Raises:
            ModelError: with what to do.
        """
        fitted = self.of(round_)
        first = fitted.members[0] if isinstance(fitted, CommitteeFitted) else fitted
        few = self._few(ids)
        if few and isinstance(first, SklearnFitted):
            first.predict(few, embedding=True)

    def _few(self, ids: Sequence[Id]) -> tuple[Array, ...]:
        """Return what the model sees of the first of these rows; empty where none can be read."""
        places = self._ledger.pool.find(ids[:_FEW])
        return self._ledger.pool.inputs([places[id_] for id_ in ids[:_FEW]])[0]

    def section(self, trained: Trained) -> dict[str, Any]:
        """Return the `model` section of a query with a round's model."""
        assert trained.model is not None
        journal = self._ledger.journal

        def place(path: str) -> str:
            return journal.store.place(journal.in_round(trained.round, path)) if path.startswith("model-") else path

        return self._whole(with_paths(trained.model, place))

    def _whole(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return a model's own keys with those that the spec gives."""
        given = self._ledger.loop.model
        left_out = {"kind"} if "members" in own else set()
        parts = own.get("members") or [own]
        if any(part.get("source") == REGRESSOR for part in parts):
            left_out |= set(REGRESSORS_KEYS)  # they stand among its arguments
        kinds = [str(part.get("kind", given.get("kind", "torch"))) for part in parts]
        if self._ledger.loop.task == "classes" and all(kind_of(kind).names_classes for kind in kinds):
            left_out.add("classes")  # the model says which of them it has met, in an order of its own
        return {key: value for key, value in given.items() if key not in own and key not in left_out} | own

    def training_rows(self, round_: int) -> tuple[TrainingRows, int]:
        """Return the rows to train on after a round, and how many of them couldn't be read."""
        ledger, loop = self._ledger, self._ledger.loop
        labels = ledger.labels_of(round_)
        assert labels is not None
        ids, said = labels.labelled(TRAIN)
        places = ledger.pool.find(ids)
        inputs, sound = ledger.pool.inputs([places[id_] for id_ in ids])
        kept = np.flatnonzero(sound).tolist()
        given = [said[i] for i in kept]
        classes = None if loop.task == "regression" else ledger.values.known(given)
        table = None
        if ":" in loop.loop.trainer and kept:
            columns = [*loop.pool.input_columns, *loop.pool.keep]
            read = ledger.pool.columns([places[ids[i]] for i in kept], columns)
            read = read.append_column(ledger.pool.id_name, ledger.pool.array([ids[i] for i in kept]))
            table = read.append_column(LABEL, pa.array([_as_given(label, loop.task) for label in given]))
        numbers = ledger.values.as_numbers(given, classes)
        return TrainingRows(inputs, numbers, loop.task, classes, ledger.pool.plan.read.names, table), len(ids) - len(kept)

    def _fit(self, round_: int, rows: TrainingRows, previous: Trained | None, seed: int) -> tuple[Fitted, dict[str, Any]]:
        """Train a model here or on the cluster; return it with the keys of its section, whose paths are names in the round's folder."""
        loop = self._ledger.loop
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if has_cluster(loop.cluster):
                section, files = run_on_cluster(loop.cluster, _train_there, loop, rows, self._section_of(previous), seed)
                for name, content in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
                fitted = None
            else:
                fitted = fit(self._trainer, rows, None if previous is None else self.of(previous.round), seed, loop.loop.committee)
                section = fitted.save(folder)
            there = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
            if fitted is None:
                own = with_paths(self._whole(section), lambda path: str(folder / path) if path in there else path)
                fitted = load_fitted(self._trainer, Model(**own), rows.classes)
            name = self._ledger.journal.put_model(round_, folder)
        return fitted, with_paths(section, lambda path: f"{name}/{path}" if path in there else path)

    def _section_of(self, trained: Trained | None) -> tuple[dict[str, Any], tuple[ClassLabel, ...] | None] | None:
        """Return what loads a round's model on another machine, and what its outputs are called."""
        if trained is None:
            return None
        return self.section(trained), None if trained.classes is None else tuple(trained.classes)

    def _sample(self) -> tuple[Array, ...] | None:
        """Return what the model sees of the sample that successive models are compared on; None where there are no classes."""
        ledger = self._ledger
        if ledger.loop.task != "classes":
            return None
        if self._sampled is None:
            ids = ledger.reserved("sample")
            places = ledger.pool.find(ids)
            self._sampled = ledger.pool.inputs([places[id_] for id_ in ids if id_ in places])[0]
        return self._sampled or None


def trainer_of(loop: Loop) -> Trainer:
    """Return the trainer that a loop names, told what is given of the model.

    Raises:
        QueryError: there is none, or its arguments are wrong.
    """
    section = loop.trained_model()
    if "members" in section:
        section = {**section["members"][0], **{key: value for key, value in section.items() if key != "members"}}
    section.pop("weights", None)
    if "weights" in loop.model:
        section["weights"] = local_copy(loop.model["weights"], loop.pool.options)
    if isinstance(section.get("classes"), str):
        section["classes"] = class_names(section["classes"])
    return make_trainer(loop.loop.trainer, loop.loop.train, Model(**section), loop.pool.input_names)


def _train_there(
    loop: Loop, rows: TrainingRows, previous: tuple[dict[str, Any], tuple[ClassLabel, ...] | None] | None, seed: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Train in a task of a cluster, and give back the keys of the model's section and its files."""
    trainer = trainer_of(loop)
    before: Fitted | None = None
    if previous is not None:
        storage = loop.query_with(loop.trained_model()).store_options
        before = load_fitted(
            trainer, Model(**with_paths(previous[0], lambda path: local_copy(path, storage, "model.weights"))), previous[1]
        )
    fitted = fit(trainer, rows, before, seed, loop.loop.committee)
    with tempfile.TemporaryDirectory() as place:
        section = fitted.save(Path(place))
        found = [path for path in Path(place).rglob("*") if path.is_file()]
        return section, {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def with_paths(section: dict[str, Any], path: Callable[[str], str]) -> dict[str, Any]:
    """Return the section of a model with its paths changed; import paths stay."""
    found = dict(section)
    for key in ("source", "weights"):
        value = found.get(key)
        if isinstance(value, list):
            found[key] = [path(each) for each in value]
        elif isinstance(value, str) and not (key == "source" and ":" in value and "/" not in value):
            found[key] = path(value)
    if found.get("members"):
        found["members"] = [with_paths(member, path) for member in found["members"]]
    return found


def _unlearnable(rows: TrainingRows) -> str:
    """Tell why nothing can be learnt of these rows; empty where something can."""
    if not len(rows):
        return "no row is labelled yet, so that there is no model; the next batch is chosen as the first one was"
    if rows.task == "classes" and len(np.unique(rows.labels)) < 2:
        assert rows.classes is not None
        only = rows.classes[int(rows.labels[0])]
        return f"all {len(rows):,} labelled rows are of class {only}, so that there is no model; the next batch is chosen by diversity"
    return ""


def _as_given(label: Any, task: str) -> Any:
    """Return a label as people write it, for a function of the user's."""
    if not isinstance(label, tuple):
        return label
    return label[0] if task == "regression" and len(label) == 1 else list(label)


def _temperature(fitted: Fitted, rows: TrainingRows) -> tuple[float, list[str]]:
    """Return the temperature of a model by rows that it was not trained on, and what is to be said of it."""
    assert fitted.classes is not None
    assert rows.classes is not None
    place = {name: number for number, name in enumerate(fitted.classes)}
    known = np.array([i for i, number in enumerate(rows.labels) if rows.classes[number] in place], dtype=np.int64)
    labels = np.array([place[rows.classes[number]] for number in rows.labels[known]], dtype=np.int64)
    if not len(known):
        return 1.0, ["the temperature was left at 1: no row is held back to fit it on"]
    inputs = tuple(values[known] for values in rows.inputs)
    tiny = np.finfo(np.float64).tiny
    try:
        if isinstance(fitted, CommitteeFitted):
            found = fit_mean_temperature(np.log(np.clip(fitted.samples(inputs), tiny, 1)), labels)
        else:
            found = fit_temperature(np.log(np.clip(fitted.predict(inputs).values, tiny, 1)), labels)
    except RaystreamError as error:
        return 1.0, [f"the temperature was left at 1: {error}"]
    if found.at_bound:
        return 1.0, ["the temperature was left at 1: the best for the rows held back lies at no number, as where all are predicted right"]
    return float(f"{found.temperature:.4g}"), []
