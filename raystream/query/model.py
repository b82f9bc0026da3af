"""The `model` section: what turns rows into logits and embeddings, and how encoded images become its tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from raystream.errors import QueryError
from raystream.query.catalogue import KINDS, MODEL_KEYS, REGISTERED, KindEntry, kind_of
from raystream.query.part import NoTruth, Part, Positive
from raystream.query.task import TaskName

Plain = Annotated[float, Field(allow_inf_nan=False), NoTruth]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False), NoTruth]


class Preprocess(Part):
    """The steps for each JPEG, PNG or WebP image of the pool: channels, then size, then scale, mean and std; the result is float32."""

    section = ("model", "preprocess")

    size: tuple[Positive, Positive] = (224, 224)
    """Height and width of what the model gets, in pixels."""
    resize: Literal["crop", "stretch", "pad"] = "crop"
    """`crop` scales the image until it covers the size and cuts the centre out; `stretch` ignores its proportions; `pad` scales it
    until it fits and puts black around it."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of the scaling, antialiased as Pillow's."""
    channels: Literal["rgb", "gray"] = "rgb"
    """`rgb` as Pillow's `convert("RGB")` gives it (alpha is dropped, 16 bits are cut to 8), or `gray` as its `convert("L")`."""
    scale: Spread = 1 / 255
    """What a pixel's value, 0 to 255, is multiplied with; 1/255."""
    mean: Plain | tuple[Plain, ...] = 0.0
    """Subtracted after that, one number or one a channel."""
    std: Spread | tuple[Spread, ...] = 1.0
    """Divided by after that, one number or one a channel."""
    layout: Literal["chw", "hwc"] = "chw"
    """`chw` is (channels, height, width), `hwc` is (height, width, channels)."""
    max_pixels: Positive = 50_000_000
    """Images with more, width x height, are bad rows, whose pixels are never decoded."""

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> Preprocess:
        for key, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and len(value) != self.depth:
                raise ValueError(
                    f"model.preprocess.{key} has {len(value)} numbers, but channels: {self.channels} makes {self.depth}; give one for each"
                )
        height, width = self.size
        if height * width > self.max_pixels:
            raise ValueError(
                f"model.preprocess.size is {height} x {width}, more than its max_pixels {self.max_pixels}; lower one or raise the other"
            )
        return self

    @property
    def depth(self) -> int:
        """The number of channels that the model gets."""
        return 3 if self.channels == "rgb" else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one row's tensor."""
        height, width = self.size
        return (self.depth, height, width) if self.layout == "chw" else (height, width, self.depth)


class Model(Part):
    """The `model` section: what turns rows into logits and embeddings."""

    section = ("model",)

    kind: str = "torch"
    """What `source` is."""
    task: TaskName = "classes"
    """What an output means for a row."""
    output: Literal["logits", "probabilities"] = "logits"
    """What the model returns: `probabilities` of one that ends in a softmax or sigmoid."""
    source: str | None = None
    """An import path, a file or a folder, as the kind has it."""
    args: dict[str, Any] = {}
    """Arguments of the factory or class; of text models `max_length`."""
    weights: str | Annotated[list[str], Field(min_length=2)] | None = None
    """Safetensors, or a checkpoint that holds tensors alone; a list makes a committee."""
    members: Annotated[list[Model], Field(min_length=2)] | None = None
    """A committee of models of several kinds, each with `kind`, `source` and what else is its own."""
    embedding: str | None = None
    """The module, step, output or column that gives the embedding, or `inputs`: the row's own numbers. Left out, what the kind has."""
    embedding_dtype: Literal["float16", "float32"] = "float16"
    """Of stored embeddings and probabilities."""
    logits: str | None = None
    """The column of logits."""
    probabilities: str | None = None
    """The column of probabilities."""
    samples: str | None = None
    """The column of the members' log-probabilities, (members, classes)."""
    classes: list[str] | str | None = None
    """The classes' names, or a file of them, a line each. Left out, the model's own, or numbers."""
    preprocess: Preprocess | str | None = None
    """How encoded images become tensors, or the import path of a function that makes the inputs."""
    batch_size: Positive = 1024
    """Rows at once; running out of memory halves it, and the result says so."""
    device: str = "auto"
    """`auto`: a GPU where there is one. Or a device of torch, such as `cpu` or `cuda:1`."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """`float16` and `bfloat16`: autocast, on parameters in float32."""
    temperature: Annotated[float, Field(gt=0), NoTruth] | str | Annotated[list[str], Field(min_length=1)] = 1.0
    """What logits are divided by, or labelled rows to fit it on, whose labels stand in `pool.label`."""
    version: str | None = None
    """Stands for what the fingerprint of the source doesn't cover; another text scores all rows anew."""
    trust: Literal["safe", "pickle"] = "safe"
    """`pickle`: load files that can run code."""

    @field_validator("preprocess", mode="before")
    @classmethod
    def _preprocess_is_one_of_two(cls, value: object) -> object:
        if value is None or isinstance(value, Preprocess):
            return value
        if isinstance(value, dict):
            return Preprocess(**value)  # says itself which of its keys is wrong
        module, separator, attribute = value.partition(":") if isinstance(value, str) else ("", "", "")
        if separator and attribute and all(part.isidentifier() for part in module.split(".")):
            return value
        raise ValueError(
            f"model.preprocess is {value!r}, expected a mapping such as {{size: [224, 224]}}, "
            "or the import path of a function, such as my_project.inputs:prepare"
        )

    @model_serializer(mode="wrap")
    def _without_preprocess_if_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `preprocess` where it isn't given: a query's identity is made of what is dumped, and predates that key."""
        data: dict[str, Any] = dump(self)
        if self.preprocess is None:
            data.pop("preprocess", None)
        return data

    @property
    def images(self) -> Preprocess | None:
        """The settings for decoding encoded images; None where the query doesn't say, or names a function for all columns."""
        return self.preprocess if isinstance(self.preprocess, Preprocess) else None

    @property
    def prepares(self) -> str | None:
        """The import path of the function that makes tensors of all input columns, if the query names one."""
        return self.preprocess if isinstance(self.preprocess, str) else None

    @model_validator(mode="after")
    def _kind_has_its_keys(self) -> Model:
        if self.members is not None:
            self._members_fit_together(self.members)
            return self
        kind = kind_of(self.kind)
        if "source" in kind.keys and kind is not REGISTERED and not self.source:
            elsewhere = "; kind: {} reads no model.weights" if "weights" in self.model_fields_set - kind.keys else ""
            raise ValueError(f"model.source is missing; give {kind.source}{elsewhere.format(self.kind)}")
        for key in sorted(self.model_fields_set & MODEL_KEYS - kind.keys):
            users = [name for name, of in KINDS.items() if key in of.keys]
            if len(users) == 1:
                raise ValueError(f"model.{key} is used by kind: {users[0]} only; remove it or set model.kind to {users[0]}")
            raise ValueError(f"model.{key} is not used by kind: {self.kind} (only by {', '.join(users)}); remove it")
        if kind.texts == "expected" and self.images is not None:
            raise ValueError(f"model.preprocess decodes images, but kind: {self.kind} takes texts; remove it")
        self._output_fits(kind)
        if kind.carried:
            if self.logits and self.probabilities:
                raise ValueError("model.logits and model.probabilities are both given; name one of them")
            if not (self.logits or self.probabilities or self.samples or self.embedding):
                raise ValueError("kind: columns names no column; give model.logits, model.probabilities, model.samples or model.embedding")
        return self

    def _output_fits(self, kind: KindEntry) -> None:
        """Check that what the query says of the model's outputs can be."""
        if "output" not in self.model_fields_set:
            return
        if not kind.scores:
            raise ValueError(f"model.output is not used by kind: {self.kind}, which gives an embedding alone; remove it")
        if kind.gives is not None and self.output != kind.gives:
            raise ValueError(f"model.output is {self.output}, but kind: {self.kind} gives {kind.gives}; remove it")
        if self.output == "probabilities" and self.task == "regression":
            raise ValueError("model.output is probabilities, but model.task is regression, whose outputs are numbers; remove it")
        if kind.carried and self.output == "probabilities" and self.logits:
            raise ValueError(f"model.output is probabilities, but model.logits names {self.logits}; name it in model.probabilities")
        if kind.carried and self.output == "logits" and self.probabilities:
            raise ValueError(f"model.output is logits, but model.probabilities names {self.probabilities}; name it in model.logits")

    @field_validator("temperature", mode="before")
    @classmethod
    def _number_in_quotes(cls, value: object) -> object:
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    @property
    def carried(self) -> bool:
        """True if the pool's columns are its outputs, so that no model runs."""
        return kind_of(self.kind).carried

    @property
    def calibration_files(self) -> list[str]:
        """The labelled rows to fit the temperature on, as files, folders or globs; none where it is a number."""
        if isinstance(self.temperature, float | int):
            return []
        return [self.temperature] if isinstance(self.temperature, str) else self.temperature

    @property
    def temperature_value(self) -> float:
        """The temperature as a number.

        Raises:
            QueryError: it is still to be fitted.
        """
        if not isinstance(self.temperature, float | int):
            raise QueryError(
                f"model.temperature is to be fitted on {', '.join(self.calibration_files)}, expected a number here; run raystream calibrate"
            )
        return float(self.temperature)

    def _members_fit_together(self, members: list[Model]) -> None:
        own = self.model_fields_set & {"kind", "source", "args", "weights", "output", "version", "logits", "probabilities", "samples"}
        if own:
            raise ValueError(f"model.{min(own)} and model.members are both given; move it into the members")
        shared = {"batch_size", "classes", "device", "embedding", "embedding_dtype", "precision", "preprocess", "task", "temperature"}
        for position, member in enumerate(members):
            if member.output == "probabilities" and self.task == "regression":
                raise ValueError(f"model.members.{position}.output is probabilities, but model.task is regression; remove it")
            if member.carried:
                raise ValueError(f"model.members.{position} is of kind {member.kind}, which runs on no rows; remove it")
            if member.members is not None or isinstance(member.weights, list):
                raise ValueError(f"model.members.{position} is a committee itself; list its members")
            wrong = member.model_fields_set & shared
            if wrong:
                raise ValueError(f"model.members.{position}.{min(wrong)} is the same for all members; move it to model.{min(wrong)}")
