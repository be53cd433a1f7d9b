"""Exact integrals of interpolated estimates: what exponential multistep rules are made of.

The probability flow is linear but for the estimate. With D(lambda) the clean estimate, e(lambda) the noise and
rho = sigma / alpha = exp(-lambda), from t to s (2211.01095 and 2206.00927 in lambda, 2204.13902 in rho):

    x_s = (sigma_s / sigma_t) x_t + sigma_s int exp(lambda) D dlambda       data form
    x_s = (alpha_s / alpha_t) x_t + alpha_s int e drho                      noise form

A rule puts the Lagrange polynomial of known evaluations in place of D or e, in a variable u of its choice, and
integrates that exactly. Both forms here are written around Euler's step in rho (DDIM), so that an end without signal
(lambda = -inf) or without noise (lambda = inf) needs no limit: only differences of evaluations are integrated, and
evaluations at infinite lambda leave the polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffunet.samplers.base import Form, Point

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Evaluation = tuple[Point, Form]  # where it was made, and its name


def one(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight 1."""
    return np.ones_like(x)


def same(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The variable x itself."""
    return x


@lru_cache(maxsize=8)
def legendre(points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of Gauss and Legendre on [-1, 1]: exact for polynomials of degree below 2 `points`."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return nodes, weights


def lagrange_weights(
    nodes: Sequence[float], a: float, b: float, weight: Curve = one, variable: Curve = same, points: int = 48
) -> list[float]:
    """c_i = int_a^b w(x) l_i(u(x)) dx, where l_i is the Lagrange polynomial that is 1 at `nodes[i]`, 0 at the others.

    Args:
        nodes: distinct values of u.
        a, b: finite ends, b below a allowed.
        weight: w, smooth between a and b.
        variable: u, smooth between a and b.
        points: of the quadrature; 48 give float64's own precision for exponentials over 40 and more.

    Returns:
        One number for each node; they sum to int w.
    """
    xi, omega = legendre(points)
    x = (a + b) / 2 + (b - a) / 2 * xi
    u, w = variable(x), omega * weight(x) * ((b - a) / 2)
    return [
        float(
            w @ np.prod([(u - other) / (node - other) for j, other in enumerate(nodes) if j != i] or [one(u)], axis=0)
        )
        for i, node in enumerate(nodes)
    ]


def finite(*points: Point) -> bool:
    """Whether all of them lie between the two ends: a polynomial in lambda has no node at infinity."""
    return all(math.isfinite(point.lam) for point in points)


def correction(t: Point, s: Point, evaluations: Sequence[Evaluation], weight: Curve, variable: Curve = same) -> Form:
    """int w(lambda) (P - E_0) dlambda from t to s: P interpolates the evaluations in u(lambda), E_0 is their first.

    Evaluations at infinite lambda leave the polynomial. The form is empty where nothing is left to integrate: one
    evaluation, or an end or E_0 at infinite lambda.
    """
    (first, E_0), *others = evaluations
    others = [(point, form) for point, form in others if finite(point)]
    if not others or not finite(t, s, first):
        return Form({})
    nodes = variable(np.array([point.lam for point, _ in [(first, E_0), *others]]))
    c = lagrange_weights(nodes.tolist(), t.lam, s.lam, weight, variable)
    # sum_i c_i E_i - (sum_i c_i) E_0
    return sum(((E_i - E_0) * c_i for (_, E_i), c_i in zip(others, c[1:], strict=True)), Form({}))


def euler_data(x: Form, D: Form, t: Point, s: Point, eta: float = 0.0) -> Form:
    """x_s with D constant: alpha_s D + g (x - alpha_t D), g = (sigma_s / sigma_t) exp(-eta h), h = lambda_s - lambda_t.

    eta = 0 is DDIM; otherwise noise of size `spread(t, s, eta)` belongs to it.
    """
    g = s.sigma / t.sigma * (math.exp(-eta * (s.lam - t.lam)) if eta else 1.0)
    return s.alpha * D + g * (x - t.alpha * D)


def spread(t: Point, s: Point, eta: float) -> float:
    """sigma_s sqrt(1 - exp(-2 eta h)): the fresh noise of a step of the SDE, whose noise is eta times DDPM's."""
    return s.sigma * math.sqrt(-math.expm1(-2 * eta * (s.lam - t.lam))) if eta and s.sigma else 0.0


def data_correction(
    t: Point, s: Point, evaluations: Sequence[Evaluation], variable: Curve = same, eta: float = 0.0
) -> Form:
    """alpha_s (1 + eta) int exp((1 + eta) (lambda - lambda_s)) (D - D_0) dlambda: what `euler_data` leaves out.

    evaluations: the clean estimates that the polynomial goes through; the first is the D of `euler_data`.
    """
    kappa = 1.0 + eta
    return correction(t, s, evaluations, lambda lam: s.alpha * kappa * np.exp(kappa * (lam - s.lam)), variable)


def euler_noise(D: Form, e: Form, s: Point) -> Form:
    """x_s with e constant: alpha_s D + sigma_s e, where x_t = alpha_t D + sigma_t e. DDIM again."""
    return s.alpha * D + s.sigma * e


def noise_correction(t: Point, s: Point, evaluations: Sequence[Evaluation], variable: Curve = same) -> Form:
    """alpha_s int (e - e_0) drho, drho = -exp(-lambda) dlambda: what `euler_noise` leaves out.

    evaluations: the noises that the polynomial goes through; the first is the e of `euler_noise`.
    """
    return correction(t, s, evaluations, lambda lam: -s.sigma * np.exp(s.lam - lam), variable)


def rho(lam: NDArray[np.float64]) -> NDArray[np.float64]:
    """The variable rho = sigma / alpha = exp(-lambda), EDM's sigma."""
    return np.exp(-lam)


def past(name: str, grid: Sequence[Point], i: int, count: int) -> list[Evaluation]:
    """The last `count` evaluations before leg i, as far as they exist: name1 of grid[i - 1], name2 of grid[i - 2]."""
    return [(grid[i - k], Form.of(f"{name}{k}")) for k in range(1, min(count, i) + 1)]


def keep(name: str, newest: Form, i: int, count: int) -> dict[str, Form]:
    """What leg i hands on so that `past(name, grid, i + 1, count)` holds."""
    return {f"{name}{k}": newest if k == 1 else Form.of(f"{name}{k - 1}") for k in range(1, min(count, i + 1) + 1)}


def legs_left(grid: Sequence[Point], i: int) -> int:
    """Legs from leg i to the clean image, itself included; no bound where the grid does not end there."""
    return len(grid) - 1 - i if grid[-1].sigma == 0.0 else len(grid)
