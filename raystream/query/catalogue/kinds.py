"""The kinds of models, and the arguments that entries of the catalogue take.

The kinds of model.

The parameters that entries of the catalogue take, and the import paths by which they name code.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raystream.errors import did_you_mean

Default = bool | int | float | None


@dataclass(frozen=True)
class Arg:
    """A parameter of a strategy or a score.

    Attributes:
        expected: what a value must be, in words.
        accepts: whether a value is that.
        default: the value where the query gives none; None where it follows from something else.
        meaning: what it does, a few words.
        otherwise: what holds where the default is None.
    """

    expected: str
    accepts: Callable[[object], bool]
    default: Default
    meaning: str
    otherwise: str = ""

    @property
    def default_words(self) -> str:
        """The default as a reader of the reference wants it."""
        if self.default is None:
            return self.otherwise
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f"{self.default:,}" if isinstance(self.default, int) else f"{self.default:g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def count(default: int | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a whole number of at least 1."""
    return Arg("a whole number of at least 1", lambda v: _is_count(v, 1), default, meaning, otherwise)


def natural(default: int | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a whole number of at least 0."""
    return Arg("a whole number of at least 0", lambda v: _is_count(v, 0), default, meaning, otherwise)


def positive(default: float | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a number above 0."""
    return Arg("a number above 0", lambda v: _is_number(v) and 0 < v < float("inf"), default, meaning, otherwise)  # type: ignore[operator]


def fraction(default: float | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a number above 0, at most 1."""
    return Arg("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1, default, meaning, otherwise)  # type: ignore[operator]


def share(default: float | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a number from 0 to 1."""
    return Arg("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1, default, meaning, otherwise)  # type: ignore[operator]


def text(meaning: str, otherwise: str) -> Arg:
    """Describe a name."""
    return Arg("text", lambda v: isinstance(v, str) and bool(v), None, meaning, otherwise)


def flag(default: bool | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe one of true and false."""
    return Arg("true or false", lambda v: isinstance(v, bool), default, meaning, otherwise)


def load(path: str) -> Any:
    """Import the module of `module:name`, and return what stands there under the name."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


ENTRY_POINTS = "raystream.models"
"""The entry-point group under which other packages register kinds: a name, and a function like `raystream.model.load`."""

OPTIONAL_KEYS = frozenset(
    {
        "source",
        "args",
        "weights",
        "embedding",
        "logits",
        "probabilities",
        "samples",
        "device",
        "precision",
        "preprocess",
        "version",
        "trust",
    }
)
"""The keys of `model` that only some kinds use; any other kind refuses them."""

ALL_TASKS = ("classes", "segmentation", "tokens", "multi_label", "regression")
_CLASSES_ALONE = frozenset({"classes"})
_CLASSES_OR_LABELS = frozenset({"classes", "multi_label"})


@dataclass(frozen=True)
class KindEntry:
    """One kind of model.

    Attributes:
        does: what it is, in a line.
        source: what `model.source` is, for messages; empty if the kind has none.
        code: the import path of the function that loads it, of the signature of `raystream.model.load`.
        keys: the keys of `model` that it uses beyond those of all kinds.
        embedding: what its embedding is.
        extra: what `pip install '.[…]'` it needs.
        texts: what columns of strings are to it.
        scores: whether it gives logits; else an embedding alone. Of columns, the query's own keys decide.
        tasks: what `model.task` may be.
        named: whether its inputs have names, so that `pool.inputs` may be a mapping.
        gives: what its scores come from, if the kind alone decides; None where `model.output` does.
        names_classes: whether the model itself may say what its classes are called.
        carried: whether the pool's columns are its outputs, so that no model runs.
        imported: whether `source` is an import path; else a file or a folder.
        saved: whether it is a file that stays in the mode it was saved in.
        opinions: whether the model itself may have several opinions of a row, which only loading it tells.
        no_dropout: why MC dropout can't be had of it; empty where it can, and the loader takes `mc_samples` and `seed`.
        last_layer: whether the input of the layer that gives the logits is found, where `embedding` is left out.
        parameters: whether the gradients of its parameters can be taken.
        own_inputs: whether its loader makes `embedding: inputs` itself, or has nothing like it.
    """

    does: str
    source: str
    code: str
    keys: frozenset[str]
    embedding: str
    extra: str = ""
    texts: Literal["refused", "taken", "expected"] = "refused"
    scores: bool = True
    tasks: frozenset[str] = frozenset(ALL_TASKS)
    named: bool = False
    gives: Literal["probabilities"] | None = None
    names_classes: bool = False
    carried: bool = False
    imported: bool = False
    saved: bool = False
    opinions: bool = False
    no_dropout: str = ""
    last_layer: bool = False
    parameters: bool = False
    own_inputs: bool = False

    @property
    def loader(self) -> Any:
        """The code, loaded."""
        return load(self.code)


def _keys(*names: str) -> frozenset[str]:
    return frozenset(names) | {"preprocess", "version"}


_OUTPUT_OF_FILE = "the output named `embedding`, the second, or the one named"
_UNKNOWN_DROPOUT = "raystream doesn't know where its dropout is"

KINDS: Mapping[str, KindEntry] = {
    "torch": KindEntry(
        "a network that a factory in your own code makes",
        "the import path of a factory, such as my_project.nets:resnet18",
        "raystream.model.torch_model:load",
        _keys("source", "args", "weights", "embedding", "device", "precision", "trust"),
        "the input of the last Linear, or a module",
        named=True,
        imported=True,
        last_layer=True,
        parameters=True,
    ),
    "columns": KindEntry(
        "none: the pool carries the outputs",
        "",
        "raystream.model.columns_model:load",
        frozenset({"logits", "probabilities", "samples", "embedding"}),
        "the column named",
        carried=True,
        no_dropout="the pool's columns are its output already, with no dropout to switch on",
        own_inputs=True,
    ),
    "export": KindEntry(
        "a program of torch.export",
        "a .pt2 file that torch.export.save wrote",
        "raystream.model.export_model:load",
        _keys("source", "embedding", "device"),
        _OUTPUT_OF_FILE,
        named=True,
        saved=True,
    ),
    "torchscript": KindEntry(
        "a TorchScript module",
        "a .pt file that torch.jit.save wrote",
        "raystream.model.torchscript_model:load",
        _keys("source", "embedding", "device"),
        _OUTPUT_OF_FILE,
        named=True,
        saved=True,
    ),
    "onnx": KindEntry(
        "an ONNX graph",
        "a .onnx file",
        "raystream.model.onnx_model:load",
        _keys("source", "embedding", "device"),
        _OUTPUT_OF_FILE,
        extra="onnx",
        named=True,
        saved=True,
        no_dropout="dropout was folded away or optimised out when the graph was exported",
    ),
    "sklearn": KindEntry(
        "a scikit-learn classifier with predict_proba",
        "a .skops file that skops.io.dump wrote",
        "raystream.model.sklearn_model:load",
        _keys("source", "embedding", "trust"),
        "what the last step of a pipeline before it gives, or the step named; of a bare estimator its inputs",
        extra="sklearn",
        texts="taken",
        tasks=_CLASSES_OR_LABELS,
        gives="probabilities",
        names_classes=True,
        opinions=True,
        no_dropout="a scikit-learn model has no dropout, though forests and bagging are committees as they are",
        own_inputs=True,
    ),
    "transformers": KindEntry(
        "a sequence or token classifier with its tokenizer",
        "a folder that save_pretrained wrote",
        "raystream.model.transformers_model:load",
        _keys("source", "args", "embedding", "device", "precision"),
        "the mean of the last hidden state, or a module",
        extra="text",
        texts="expected",
        tasks=frozenset(ALL_TASKS) - {"segmentation"},
    ),
    "sentence_transformers": KindEntry(
        "a sentence encoder; no scores, so for strategies that need none",
        "a folder that SentenceTransformer.save wrote",
        "raystream.model.sentence_model:load",
        _keys("source", "args", "device", "precision"),
        "the sentence's",
        extra="text",
        texts="expected",
        scores=False,
        tasks=_CLASSES_ALONE,
        no_dropout="it gives an embedding alone",
    ),
    "python": KindEntry(
        "an object of your own with `predict(inputs)`",
        "the import path of a class, such as my_project.models:MyModel",
        "raystream.model.python_model:load",
        _keys("source", "args", "weights"),
        "what it returns",
        texts="taken",
        named=True,
        imported=True,
        opinions=True,
        no_dropout=_UNKNOWN_DROPOUT,
    ),
}
"""What `model.kind` may be, but for kinds that other packages register."""

REGISTERED = KindEntry(
    "what another package registers",
    "what that kind loads",
    "raystream.model.python_model:load_registered",
    OPTIONAL_KEYS - {"logits", "probabilities", "samples"},
    "what it returns",
    texts="taken",
    opinions=True,
    no_dropout=_UNKNOWN_DROPOUT,
)
"""A kind of another package: it is given all there is."""


def kind_of(name: str) -> KindEntry:
    """Return the kind of that name.

    Raises:
        ValueError: there is none.
    """
    if name in KINDS:
        return KINDS[name]
    entry_point(name)
    return REGISTERED


def entry_point(name: str) -> importlib.metadata.EntryPoint:
    """Return the entry point of a kind that another package registers; of several with one name, the first.

    Raises:
        ValueError: there is none.
    """
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name not in points.names:
        known = [*KINDS, *sorted(points.names)]
        near = did_you_mean(name, known)
        raise ValueError(f"model.kind is {name!r}, expected one of {', '.join(known)}{near if near.startswith('; did') else ''}")
    return points[name]
