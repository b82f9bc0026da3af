"""How encoded images become the model's tensors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raystream.query.part import Part, Positive

Plain = Annotated[float, Field(allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocess(Part):
    """What is done to each JPEG, PNG or WebP image of the pool: channels, then size, then scale, mean and std; the result is float32."""

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
        """How many channels the model gets."""
        return 3 if self.channels == "rgb" else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one row's tensor."""
        height, width = self.size
        return (self.depth, height, width) if self.layout == "chw" else (height, width, self.depth)
