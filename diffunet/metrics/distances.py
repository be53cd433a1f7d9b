"""How far one set of features is from another: torch-fidelity's formulas on ready-made (N, D) features.

The features go in as float64: all four numbers are small differences of large sums.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffunet.metrics.fidelity import fidelity

NEIGHBOURS = 3  # the k of 1904.06991
SUBSETS = 100
LARGEST_SUBSET = 1000
_ROWS = 1000  # rows of the pairwise distances held at a time


def frechet_distance(samples: Tensor, real: Tensor) -> float:
    """|m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) of the Gaussians fitted to the features (1706.08500, eq. 6).

    Biased upwards, the more so the fewer images: compare only numbers of the same extractor and the same count.

    Args:
        samples: (N, D) features, N >= 2.
        real: (M, D) features, M >= 2.
    """
    module = fidelity().metric_fid
    first, second = (module.fid_features_to_statistics(f.double().cpu()) for f in (samples, real))
    return module.fid_statistics_to_metric(first, second, verbose=False)[module.KEY_METRIC_FID]


def kernel_distance(samples: Tensor, real: Tensor, seed: int) -> float:
    """The squared MMD with kernel (x.y / D + 1)^3, averaged over random subsets (KID, 1801.01401).

    Unbiased: around 0 for equal distributions, where it may be negative.

    Args:
        samples: (N, D) features, N >= 2.
        real: (M, D) features, M >= 2.
        seed: of the subsets, which hold half of the smaller set (at most 1000, at least 2 images).
    """
    module = fidelity().metric_kid
    options: dict[str, Any] = {
        "kid_subsets": SUBSETS,
        "kid_subset_size": max(2, min(LARGEST_SUBSET, len(samples) // 2, len(real) // 2)),
        "rng_seed": seed % 2**32,  # what numpy's legacy generator takes
        "verbose": False,
    }
    metric = module.kid_features_to_metric(samples.double(), real.double(), **options)
    return metric[module.KEY_METRIC_KID_MEAN]


def precision_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """Share of the samples among the real images, and share of the real images among the samples (1904.06991).

    "Among" means nearer to one of them than its k-th neighbour of its own kind; k is 3, or N - 1 for smaller sets.

    Args:
        samples: (N, D) features, N >= 2.
        real: (M, D) features, M >= 2.
    """
    module = fidelity().metric_prc
    metric = module.prc_features_to_metric(
        samples.double(),
        real.double(),
        prc_neighborhood=min(NEIGHBOURS, len(samples) - 1, len(real) - 1),
        prc_batch_size=_ROWS,
        save_cpu_ram=True,  # else four N x N matrices at once
        verbose=False,
    )
    return metric[module.KEY_METRIC_PRECISION], metric[module.KEY_METRIC_RECALL]


def distances(samples: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    """All of the above by name: frechet_distance, kernel_distance, precision, recall."""
    precision, recall = precision_recall(samples, real)
    return {
        "frechet_distance": frechet_distance(samples, real),
        "kernel_distance": kernel_distance(samples, real, seed),
        "precision": precision,
        "recall": recall,
    }
