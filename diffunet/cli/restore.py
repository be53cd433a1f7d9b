"""`diffunet restore RUN IMAGE...`: noise, holes, blur, lost pixels and lost colour undone by a diffusion model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffunet.cli.options import AsJson, Debug, report
from diffunet.cli.sample import Ema
from diffunet.errors import ConfigError
from diffunet.spec import DataConfig


class Task(StrEnum):
    """What is wrong with the pictures."""

    denoise = "denoise"
    inpaint = "inpaint"
    super_resolution = "super-resolution"
    deblur = "deblur"
    colorize = "colorize"


def restore(
    run: Annotated[Path, typer.Argument(help="a run folder, or a weights file", metavar="RUN|WEIGHTS")],
    images: Annotated[list[Path], typer.Argument(help="pictures, or folders of them", metavar="IMAGE...")],
    task: Annotated[Task, typer.Option(help="what is wrong with them")],
    sigma: Annotated[
        float | None,
        typer.Option(
            help="noise in them, of 255 [default: found by `denoise`, that of 8 bits for `deblur`, else 0]",
            min=0,
            max=10_000,
        ),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            help="inpaint: white where pixels are missing; one for all, one for each (repeat it), or a folder"
        ),
    ] = None,
    scale: Annotated[int | None, typer.Option(help="super-resolution: how much larger [default: 2]", min=1)] = None,
    kernel: Annotated[Path | None, typer.Option(help="deblur: a picture of the blur of one point")] = None,
    operator: Annotated[
        str | None,
        typer.Option(help="super-resolution: bicubic, average; deblur: gaussian_blur, uniform_blur, motion_blur"),
    ] = None,
    operator_option: Annotated[list[str] | None, typer.Option(help="an operator's option: std=2, length=15")] = None,
    method: Annotated[str | None, typer.Option(help="mean, sample, ddnm, repaint, dps, pigdm, mmps, diffpir")] = None,
    option: Annotated[list[str] | None, typer.Option(help="a method's option: eta=0.5, weight=5")] = None,
    steps: Annotated[int | None, typer.Option(help="sampler steps [default: the method's]", min=1)] = None,
    class_label: Annotated[str | None, typer.Option("--class", help="class name or number [default: no class]")] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="what each should look like in turn (repeat it), or a folder of the same names"),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="IMAGE... are clean: spoil them first, and compare with them")
    ] = False,
    tile: Annotated[
        int | None, typer.Option(help="largest side that the network sees at once [default: by its size]", min=8)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="tiles at once", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="seed of the first picture", min=0, max=2**40)] = 0,
    ema: Ema = "ema",
    max_pixels: Annotated[int, typer.Option(help="an image with more is refused", min=1)] = DataConfig().max_pixels,
    out: Annotated[Path | None, typer.Option(help="folder of the pictures [default: RUN/restored]")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Restore pictures of any size, grey or colour.

    Of NAME.* are written NAME.png and NAME-compare.png, which shows what was given, the result and the reference side
    by side. A colour picture goes through a grey model channel by channel. Scores are PSNR and SSIM of the 8-bit
    pictures, those of a simple repair (none, nearest pixel, bicubic) in front.

    \b
    Examples:
      diffunet restore runs/denoise noisy.png --task denoise --sigma 25
      diffunet restore runs/denoise photos/ --task denoise --simulate --sigma 50 --json
      diffunet restore runs/digits torn.png --task inpaint --mask hole.png --method repaint
      diffunet restore runs/faces small.png --task super-resolution --scale 4 --method ddnm
      diffunet restore runs/faces soft.png --task deblur --operator gaussian_blur --operator-option std=2 --sigma 1
    """
    from diffunet.cli.files import find_pairs, find_pictures
    from diffunet.cli.restoring import TASKS, Restorer, Wish, key_values, operator_table, restore_all
    from diffunet.spec.inverse import method_config

    for flag, given, wanted in (("--mask", mask, Task.inpaint), ("--kernel", kernel, Task.deblur)):
        if given and task is not wanted:
            raise ConfigError(f"{flag} is for --task {wanted.value}, not {task.value}")
    if task is Task.inpaint and not mask and not simulate:
        raise ConfigError("--task inpaint needs --mask: a picture that is white where pixels are missing")
    if reference and simulate:
        raise ConfigError("--simulate compares with the pictures themselves: give no --reference")
    wish = Wish(
        task.value,
        operator_table(task.value, operator, key_values(operator_option, "--operator-option"), scale),
        method_config({"kind": method or TASKS[task.value].method, **key_values(option, "--option")}).model_dump(),
        sigma,
        steps,
        seed,
        kernel,
        simulate,
        max_pixels,
    )
    paths = find_pictures(images)
    masks = find_pairs(mask * len(paths) if mask and len(mask) == 1 and mask[0].is_file() else mask, paths, "--mask")
    right = find_pairs(reference, paths, "--reference")
    folder = out or (run if run.is_dir() else run.parent) / "restored"
    restorer = Restorer(run, ema, tile, batch_size, class_label)
    result, text = restore_all(restorer, wish, paths, masks, right, folder)
    report(result, text, as_json)
