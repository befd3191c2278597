"""From a trained model to text."""

from groundup.inference.engine import Engine
from groundup.inference.sampling import SamplingParams, TokenLogprob
from groundup.inference.sequence import Completion

__all__ = ["Completion", "Engine", "SamplingParams", "TokenLogprob"]
