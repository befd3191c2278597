"""Numerical operations. Each function here is the reference; faster twins live under the same path.

`kernels/norm.py:rmsnorm` is what the model imports and is itself the readable formula. On CUDA it looks
for `kernels/triton/norm.py:rmsnorm`, on CPU for `kernels/numba/norm.py:rmsnorm`; see `_dispatch`.
"""

from groundup.kernels._chunks import chunk_length
from groundup.kernels._dispatch import BACKENDS, backend, op
from groundup.kernels.adamw import adamw_step
from groundup.kernels.attention import attention, visible
from groundup.kernels.convolution import causal_convolution
from groundup.kernels.cross_entropy import cross_entropy, linear_cross_entropy
from groundup.kernels.delta import gated_delta, gated_delta_chunked, gated_delta_recurrent
from groundup.kernels.glu import ACTIVATIONS, activate, gated
from groundup.kernels.grouped_matmul import grouped_matmul
from groundup.kernels.int8_product import int8_product, int8_transposed_product
from groundup.kernels.lstm import lstm
from groundup.kernels.muon import newton_schulz
from groundup.kernels.norm import add_layernorm, add_rmsnorm, layernorm, rmsnorm
from groundup.kernels.paged import paged_attention
from groundup.kernels.quantize import dequantize, quantize_blocks, quantize_rows, quantize_tensor
from groundup.kernels.quantized_linear import quantized_linear
from groundup.kernels.rope import apply_rope, rope_frequencies, rope_tables, rotate
from groundup.kernels.scan import (
    gated_linear,
    gated_linear_chunked,
    gated_linear_parallel,
    gated_linear_recurrent,
)
from groundup.kernels.softmax import log_softmax, softmax

__all__ = [
    "ACTIVATIONS", "BACKENDS", "activate", "adamw_step", "add_layernorm", "add_rmsnorm", "apply_rope", "attention",
    "backend", "causal_convolution", "chunk_length", "cross_entropy", "dequantize", "gated", "gated_delta",
    "gated_delta_chunked", "gated_delta_recurrent", "gated_linear", "gated_linear_chunked", "gated_linear_parallel",
    "gated_linear_recurrent", "grouped_matmul", "int8_product",
    "int8_transposed_product", "layernorm", "linear_cross_entropy", "log_softmax", "lstm",
    "newton_schulz", "op", "paged_attention", "quantize_blocks", "quantize_rows", "quantize_tensor", "quantized_linear",
    "rmsnorm", "rope_frequencies", "rope_tables", "rotate", "softmax", "visible",
]  # fmt: skip
