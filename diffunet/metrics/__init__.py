"""How good the samples are: distances on named features beside their floor, and how near the training images are."""

from diffunet.metrics.distances import distances, frechet_distance, kernel_distance, precision_recall
from diffunet.metrics.extractors import EXTRACTORS, Extractor, RealImages, build, choose
from diffunet.metrics.fidelity import register
from diffunet.metrics.likeness import psnr, ssim
from diffunet.metrics.memorisation import nearest_distances
from diffunet.metrics.report import Evaluation, Row, compare, image_count

__all__ = [
    "EXTRACTORS",
    "Evaluation",
    "Extractor",
    "RealImages",
    "Row",
    "build",
    "choose",
    "compare",
    "distances",
    "frechet_distance",
    "image_count",
    "kernel_distance",
    "nearest_distances",
    "precision_recall",
    "psnr",
    "register",
    "ssim",
]
