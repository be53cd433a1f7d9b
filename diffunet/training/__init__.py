"""Training: counters in place of carried random state, checkpoints that survive any kill, one loop on accelerate."""

from diffunet.training.program import train

__all__ = ["train"]
