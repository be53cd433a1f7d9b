"""PSNR and SSIM against numbers that scikit-image 0.26 gave for the same pictures, and against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffunet.metrics.likeness import psnr, ssim

# structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
# channel_axis=2) and peak_signal_noise_ratio(a, b, data_range=255) of `pictures()`, in this order
SCIKIT_IMAGE = [(22.452229009049315, 0.24233795957321883), (22.14512424167117, 0.22473366833195188)]


def pictures() -> list[tuple[np.ndarray, np.ndarray]]:
    """A ramp and its noisy copy, grey and in colour."""
    random, pairs = np.random.default_rng(0), []
    for height, width, channels in ((40, 33, 1), (24, 31, 3)):
        ramp = np.add.outer(np.arange(height), 2 * np.arange(width))[..., None] * 1.5 + np.arange(channels) * 10
        clean = np.clip(ramp, 0, 255).astype(np.uint8)
        noisy = clean + random.normal(0, 20, clean.shape)
        pairs.append((clean, np.clip(noisy, 0, 255).round().astype(np.uint8)))
    return pairs


def test_both_are_scikit_images() -> None:
    for (clean, noisy), (right_psnr, right_ssim) in zip(pictures(), SCIKIT_IMAGE, strict=True):
        assert psnr(noisy, clean) == pytest.approx(right_psnr, rel=1e-12)
        assert ssim(noisy, clean) == pytest.approx(right_ssim, rel=1e-9)
        assert ssim(clean, noisy) == pytest.approx(right_ssim, rel=1e-9)


def test_equal_pictures() -> None:
    clean = pictures()[0][0]
    assert psnr(clean, clean) == math.inf
    assert ssim(clean, clean) == pytest.approx(1)


def test_one_level_off_everywhere_is_48_decibels() -> None:
    clean = np.full((5, 4, 1), 100, np.uint8)
    assert psnr(clean + 1, clean) == pytest.approx(20 * math.log10(255))
    assert ssim(clean + 1, clean) is None, "no window of 11 pixels fits"


def test_bytes_do_not_wrap_around() -> None:
    low, high = np.zeros((12, 12, 1), np.uint8), np.full((12, 12, 1), 255, np.uint8)
    assert psnr(low, high) == psnr(high, low) == 0
    assert ssim(low, high) == pytest.approx(1e-4, rel=0.01)
