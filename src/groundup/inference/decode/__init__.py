"""Compiled decoding on the CPU. Importing this imports no compiler."""

from groundup.inference.decode.decoder import CompiledDecoder
from groundup.inference.decode.refusal import Refusal

__all__ = ["CompiledDecoder", "Refusal"]
