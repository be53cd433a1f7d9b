"""How well noise is found in pictures that hold some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffunet.errors import ConfigError
from diffunet.inverse import estimate_noise


def ramp(height: int, width: int) -> Tensor:
    """A smooth picture (1, 1, H, W) with one edge, in 0..255."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (0.4 * rows + 0.3 * columns + 80.0 * (columns > width / 2))[None, None].float()


def noise(like: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [1.0, 5.0, 25.0, 75.0])
@pytest.mark.parametrize("sides", [(180, 180), (97, 260), (40, 51)], ids=str)
def test_noise_on_a_smooth_picture_is_found(sigma: float, sides: tuple[int, int]) -> None:
    clean = ramp(*sides)
    assert float(estimate_noise(clean + sigma * noise(clean))) == pytest.approx(sigma, rel=0.1)


def test_it_scales_with_the_picture_and_has_a_row_for_each() -> None:
    clean = ramp(64, 64)
    batch = torch.cat([clean + 5 * noise(clean), clean + 20 * noise(clean, 1)])
    found = estimate_noise(batch)
    assert found.tolist() == pytest.approx([5, 20], rel=0.1)
    assert torch.allclose(estimate_noise(batch / 127.5 - 1), found / 127.5, rtol=1e-4)
    colour = torch.cat([batch[:1], batch[1:]], dim=1)
    assert float(estimate_noise(colour)) == pytest.approx(((25 + 400) / 2) ** 0.5, rel=0.1)


def test_a_flat_picture_has_none_and_a_tiny_one_no_answer() -> None:
    assert float(estimate_noise(torch.full((1, 1, 32, 32), 0.5))) == 0
    with pytest.raises(ConfigError, match="too small to find their noise: give sigma"):
        estimate_noise(torch.zeros(1, 1, 2, 30))


def test_noise_in_photographs_is_found(data_root: Path) -> None:
    """Set12, whose textures read as a little noise: mean error (0.83, 0.58, 0.55) and worst one at three levels."""
    paths = sorted((data_root / "denoising" / "Set12").glob("*.png"))
    clean = [torch.from_numpy(np.array(Image.open(path))).float()[None, None, :256, :256] for path in paths]
    for sigma, mean, worst in ((15.0, 1.0, 2.5), (25.0, 0.75, 1.8), (50.0, 0.7, 1.6)):
        errors = [float(estimate_noise(x + sigma * noise(x, i))) - sigma for i, x in enumerate(clean)]
        assert float(np.mean(np.abs(errors))) < mean, (sigma, errors)
        assert float(np.max(np.abs(errors))) < worst, (sigma, errors)
