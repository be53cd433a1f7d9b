"""How near a restored picture is to the one it should be: PSNR and SSIM of 8-bit pictures.

Both are those of the usual tables: of the pixels as they are written, colour channels counted alike. SSIM is that of
its authors with a Gaussian window (2004), as scikit-image computes it with `gaussian_weights=True, sigma=1.5,
use_sample_covariance=False`; it is written here because none of our libraries has it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_filter

PEAK = 255.0
WINDOW, STD = 11, 1.5  # pixels
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """10 log10(255^2 / mean squared difference) of pictures (H, W, C) in 0..255; infinite where they are equal."""
    assert image.shape == reference.shape, "pictures are compared pixel by pixel"
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(image: np.ndarray, reference: np.ndarray) -> float | None:
    """Structural similarity (Wang et al., 2004, eq 13) of pictures (H, W, C) in 0..255: 1 where they are equal.

    The mean over channels and over the places at which the whole window lies in the picture; None where it never does.
    """
    assert image.shape == reference.shape, "pictures are compared pixel by pixel"
    if min(image.shape[:2]) < WINDOW:
        return None
    x, y = image.astype(np.float64), reference.astype(np.float64)
    m_x, m_y = _local(x), _local(y)
    v_x, v_y, v_xy = _local(x * x) - m_x**2, _local(y * y) - m_y**2, _local(x * y) - m_x * m_y
    values = (2 * m_x * m_y + C1) * (2 * v_xy + C2) / ((m_x**2 + m_y**2 + C1) * (v_x + v_y + C2))
    rim = WINDOW // 2
    return float(values[rim:-rim, rim:-rim].mean())


def _local(values: np.ndarray) -> np.ndarray:
    """Gaussian mean around each pixel of (H, W, C)."""
    return np.asarray(gaussian_filter(values, (STD, STD, 0), truncate=(WINDOW // 2) / STD))
