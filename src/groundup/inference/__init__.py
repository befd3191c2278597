"""From a trained model to text."""

from groundup.inference.engine import Engine
from groundup.inference.request import EngineStats, Output, Request
from groundup.inference.sampling import SamplingParams, TokenLogprob
from groundup.inference.sequence import Completion

__all__ = ["Completion", "Engine", "EngineStats", "Output", "Request", "SamplingParams", "TokenLogprob"]
