"""LMS: Adams and Bashforth's method in sigma / alpha for uneven grids, as k-diffusion's (2206.00364 for the frame)."""

from __future__ import annotations

from diffunet.samplers.deis import DEIS, VARIABLES
from diffunet.spec import LMSSampler


class LMS(DEIS):
    """The noise as a polynomial in rho: DEIS' rhoAB, of order up to 4.

    The leg onto the clean image ends in the estimate; k-diffusion and diffusers extrapolate the noise there too.
    """

    def __init__(self, config: LMSSampler) -> None:
        self.order, self.variable, self.lower_order_final = config.order, VARIABLES["rho"], False
