"""`diffunet segment RUN IMAGE...`: masks of images of any size, and how good they are where labels are given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffunet.cli.files import find_pairs, find_pictures
from diffunet.cli.options import AsJson, Debug, report
from diffunet.errors import DataError
from diffunet.spec import DataConfig, SegmentConfig

if TYPE_CHECKING:
    import numpy as np

    from diffunet.metrics.segmentation import Scores
    from diffunet.segmenter import Segmenter
    from diffunet.spec import RunConfig


def segment(
    run: Annotated[Path, typer.Argument(help="a run folder, or a weights file", metavar="RUN|WEIGHTS")],
    images: Annotated[list[Path], typer.Argument(help="pictures, or folders of them", metavar="IMAGE...")],
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="the label of each image in turn (repeat it), or a folder of labels of the same names"),
    ] = None,
    tile: Annotated[int | None, typer.Option(help="largest side seen at once [default: the run's]", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="tiles at once", min=1)] = SegmentConfig().batch_size,
    max_pixels: Annotated[int, typer.Option(help="an image with more is refused", min=1)] = DataConfig().max_pixels,
    out: Annotated[Path | None, typer.Option(help="folder of the masks [default: RUN/masks]")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the class of every pixel, in images of any size, grey or colour.

    Of NAME.* are written NAME.png, which holds the label values of the training data, and NAME-overlay.png, a picture
    to look at.

    \b
    Examples:
      diffunet segment runs/segment_isbi slice.png
      diffunet segment runs/segment_isbi data/isbi2012/test/image --out masks
      diffunet segment runs/segment_isbi a.png b.png --reference a-label.png --reference b-label.png
      diffunet segment runs/segment_isbi huge.tif --tile 1024 --max-pixels 400000000 --json
    """
    paths = find_pictures(images)
    labels = find_pairs(reference, paths, "--reference", "label", "images")
    from diffunet.cli.runs import open_segmenter
    from diffunet.metrics.segmentation import Scores

    segmenter = open_segmenter(run)
    folder = out or (run if run.is_dir() else run.parent) / "masks"
    scores = Scores(segmenter.info.classes)
    written: list[str] = []
    for path in paths:
        classes, picture = _classes_of(segmenter, path, tile, batch_size, max_pixels)
        if path in labels:
            scores.add(str(path), classes, _label_classes(labels[path], classes.shape, segmenter, max_pixels))
        written += _write(segmenter, classes, picture, folder / path.stem)
    measured = scores.to_json() if labels else None
    text = "\n".join(f"wrote {path}" for path in written[:6])
    text += f"\nand {len(written) - 6} more files beside them" if len(written) > 6 else ""
    text += f"\n\n{scores.table()}" if labels else ""
    report({"files": written, "scores": measured}, text, as_json)


def _classes_of(
    segmenter: Segmenter, path: Path, tile: int | None, batch_size: int, max_pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """The classes (H, W) of a picture file, and the picture (H, W, C)."""
    import torch

    from diffunet.data.decode import Unreadable, decode_any
    from diffunet.pictures import to_uint8

    info = segmenter.info
    try:
        image = torch.from_numpy(decode_any(str(path), info.channels, info.background, info.value_range, max_pixels))
    except Unreadable as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return segmenter.classes(image, tile, batch_size).cpu().numpy(), to_uint8(image[None])[0]


def _label_classes(path: Path, shape: tuple[int, ...], segmenter: Segmenter, max_pixels: int) -> np.ndarray:
    """The classes (H, W) of a label file.

    Raises:
        DataError: no label, another size than its image, or values that the model does not know.
    """
    import numpy as np

    from diffunet.data.decode import Unreadable, decode_label

    try:
        values = decode_label(str(path), max_pixels)
    except Unreadable as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if values.shape != shape:
        sizes = [" x ".join(map(str, size)) for size in (values.shape, shape)]
        raise DataError(f"{path} is {sizes[0]} pixels (height x width), but its image is {sizes[1]}")
    known = np.array(segmenter.info.values)
    strange = np.setdiff1d(values, known)
    if len(strange):
        raise DataError(f"{path} holds the value {strange[0]}; this model knows {', '.join(map(str, known))}")
    return np.searchsorted(known, values)


def _write(segmenter: Segmenter, classes: np.ndarray, picture: np.ndarray, base: Path) -> list[str]:
    """Write the mask and the overlay; gives their paths."""
    import torch

    from diffunet.pictures import overlay, save_mask, save_png

    mask, seen = base.with_name(f"{base.name}.png"), base.with_name(f"{base.name}-overlay.png")
    save_mask(segmenter.values(torch.from_numpy(classes)), mask)
    save_png(overlay(picture, classes), seen)
    return [str(mask), str(seen)]


def evaluate_masks(run: Path, config: RunConfig, out: Path | None, as_json: bool) -> None:
    """`diffunet evaluate` of a segmentation run: its masks of the held-out images against their labels.

    Raises:
        DataError: no image is held out.
    """
    from diffunet import data
    from diffunet.cli.runs import open_segmenter
    from diffunet.storage import write_file

    split = data.load(config.data)
    if split.held_out is None:
        raise DataError(f"{run} holds out no images (data.held_out = 0), so there is nothing to measure against")
    scores = score(open_segmenter(run), split.held_out, config.segment.batch_size)
    about = f"{len(split.held_out)} held-out images (data.seed = {config.data.seed}), EMA weights"
    result = {"run": str(run), "split_seed": config.data.seed, **scores.to_json()}
    write_file(out or run / "evaluation.json", (json.dumps(result, indent=2) + "\n").encode())
    names = ", ".join(os.path.basename(name) for name in split.held_out.names[:20])
    report(result, f"{about}: {names}\n\n{scores.table()}", as_json)


def score(segmenter: Segmenter, pairs: Any, batch_size: int) -> Scores:
    """Dice, IoU and pixel error of whole images."""
    import torch

    from diffunet.metrics.segmentation import Scores

    scores = Scores(pairs.classes)
    for i, name in enumerate(pairs.names):
        found = segmenter.classes(torch.from_numpy(pairs.image(i)), batch_size=batch_size)
        scores.add(name, found.cpu().numpy(), pairs.classes_of(i))
    return scores
