"""Linear inverse problems: a picture that was blurred, shrunk, masked or made noisy, and a denoiser that knows better.

`operators` say what happened, `methods` how it is undone, `restore` does it. Images are in [-1, 1], and so is sigma:
25 of 255 is 25 / 127.5.
"""

from diffunet.inverse.blind import estimate_noise
from diffunet.inverse.convolution import Convolution
from diffunet.inverse.method import Method, Problem
from diffunet.inverse.methods import METHODS
from diffunet.inverse.operator import Operator
from diffunet.inverse.operators import OPERATORS, build_operator
from diffunet.inverse.posterior import time_of
from diffunet.inverse.restoration import build_method, denoise, restore
from diffunet.inverse.tiling import Tiled, default_tile

__all__ = [
    "METHODS",
    "OPERATORS",
    "Convolution",
    "Method",
    "Operator",
    "Problem",
    "Tiled",
    "build_method",
    "build_operator",
    "default_tile",
    "denoise",
    "estimate_noise",
    "restore",
    "time_of",
]
