"""How many bits a model needs for data that it never saw: by the variational bound, and by the probability flow."""

from diffunet.likelihood.base import BINS, Likelihood
from diffunet.likelihood.bound import variational
from diffunet.likelihood.flow import STARTS, TRACES, flow

__all__ = ["BINS", "STARTS", "TRACES", "Likelihood", "flow", "variational"]
