"""Where images come from, and what the weights remember of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffunet.spec.base import Count, Ints, IntTuple, Pair, Spec, Strings, Whole, contradictions

# how many sides the items of a data set may have; of those not named here, 2
SIDES: dict[str, tuple[int, ...]] = {"array": (1, 2, 3), "volumes": (3,)}


class DataInfo(Spec):
    """What the weights file remembers of the data: how to shape, scale and label what the network makes."""

    shape: Ints = Field(description="channels, then sides")
    classes: Strings | None = None
    class_counts: Ints | None = Field(None, description="images of each class in the training split")


class DataConfig(Spec):
    """Where the images are and how they become arrays in [-1, 1]."""

    name: Literal["digits", "folder", "array", "fashion_mnist", "mnist", "cifar10", "volumes", "pairs"] = "digits"
    path: str | None = None
    size: int | IntTuple | None = Field(
        None, description="side, or (height, width); images are resized, then cropped; volumes (d, h, w) only cropped"
    )
    crop: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None, description="side of the random part that training sees of each image, and of the middle held out"
    )
    channels: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="1 greyscale, 3 RGB; arrays any")
    background: Ints = Field((255, 255, 255), description="colour that transparent pixels are laid on")
    value_range: Pair | None = Field(None, description="values that become -1 and 1; needed for float data")
    layout: Literal["nl", "nlc", "ncl", "nhw", "nhwc", "nchw", "ndhw", "ndhwc", "ncdhw"] | None = Field(
        None, description="axes of an array; nl, nhw, nhwc or ncdhw by their number if unset"
    )
    percentiles: Pair = Field(
        (0.5, 99.5), description="of each volume: the shares of its values, in percent, below what become -1 and 1"
    )
    labels: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="file, in data.path or elsewhere, that labels a folder's images: .csv (file,label) or .json"
    )
    class_names: Strings | None = Field(
        None, description="names of the label values of pairs, in rising order, or of the labels 0, 1, ... of an array"
    )
    flip: bool = Field(False, description="mirror half of the training images left to right")
    rotate: bool = Field(False, description="turn training parts (data.crop) by 0 to 3 quarters, at random")
    held_out: float = Field(0.1, ge=0, lt=1, description="share never trained on, where the data has no test split")
    held_out_key: str | None = Field(
        None, description="array of an .npz file that is 1 where an item is held out, and 0 where it is trained on"
    )
    bad_files: Literal["skip", "fail"] = "skip"
    bad_files_cap: float = Field(0.01, ge=0, le=1, description="share of unreadable files above which the run stops")
    cache: Annotated[str, Field(min_length=1)] = Field(
        "auto", description="where a folder's index and decoded images are kept: auto (the user's cache), off, a path"
    )
    allow_change: bool = Field(False, description="go on with a run though its data changed since; the change is noted")
    max_pixels: Count = Field(64_000_000, description="an image with more is refused before it is decoded")
    download: bool = Field(False, description="let torchvision fetch a data set that is not at path")
    seed: Whole = Field(0, description="seed of the split")

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        sizes = (self.size,) if isinstance(self.size, int) else self.size or ()
        bad = [f"size must be 1 to 65536, not {s}" for s in sizes if not 1 <= s <= 65536]
        sides = {"volumes": "[depth, height, width]"}.get(self.name, "[height, width]")
        if isinstance(self.size, tuple) and len(self.size) != len(sides.split()):
            bad.append(f"size must be a side or {sides}, not {list(self.size)}")
        if self.name != "digits" and self.path is None:
            bad.append(f"data.name = '{self.name}' needs data.path")
        if len(self.background) != 3 or any(not 0 <= c <= 255 for c in self.background):
            bad.append(f"background must be three numbers 0 to 255, not {list(self.background)}")
        if self.value_range and self.value_range[0] >= self.value_range[1]:
            bad.append(f"value_range = {list(self.value_range)} must be [low, high]")
        if self.crop is not None and self.name not in ("folder", "pairs"):
            bad.append(f"data.crop needs data.name = 'folder', not '{self.name}'")
        if self.crop is not None and self.size is not None:
            bad.append("data.crop takes parts of images as they are and data.size resizes them: leave one out")
        if self.labels is not None and self.name != "folder":
            bad.append(f"data.labels needs data.name = 'folder', not '{self.name}'")
        if self.rotate and self.crop is None:
            bad.append("data.rotate turns the squares that data.crop takes; set it, or leave data.rotate out")
        if self.name == "pairs":
            wrong = [key for key in ("size", "crop", "layout") if getattr(self, key) is not None] + ["flip"] * self.flip
            bad += [f"data.{key} is not for data.name = 'pairs'; see segment.crop and segment.augment" for key in wrong]
        elif self.class_names is not None and self.name != "array":
            bad.append(f"data.class_names needs data.name = 'pairs', not '{self.name}'")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            bad.append(f"percentiles = {list(self.percentiles)} must be [low, high] within 0 to 100")
        if self.held_out_key is not None and self.name != "array":
            bad.append(f"data.held_out_key needs data.name = 'array', not '{self.name}'")
        contradictions(bad)
        return self
