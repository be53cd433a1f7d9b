"""What training minimises, in parts: weights over times, distributions of times, errors, and learned variances."""

from __future__ import annotations

from diffunet.objectives.errors import ERRORS
from diffunet.objectives.objective import Objective, first_estimate, log_variance
from diffunet.objectives.times import TIMES
from diffunet.objectives.variances import VARIANCES
from diffunet.objectives.weights import WEIGHTS

__all__ = ["ERRORS", "TIMES", "VARIANCES", "WEIGHTS", "Objective", "first_estimate", "log_variance"]
