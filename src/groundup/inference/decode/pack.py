"""Weights in the order in which a decode step reads them, see `tile`: blocks of 32 outputs, pairs of inputs.

int8 keeps 8.5 bits per weight and int4 5: 32 inputs of an output share a scale (and at 4 bits a minimum) in bfloat16.
The scale is rounded before the weights are, so that its rounding costs no accuracy.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from groundup.device import CACHE_LINE, line_aligned_zeros
from groundup.inference.decode.operations import FORMATS

OUTPUTS = INPUTS = 32
CHUNK_BYTES = 64 << 20


class Arena:
    """Memory for packed weights, in few large pieces one after another in the order of use.

    They are of large pages: what fetches memory ahead of a loop that reads it in order stops at the end of a page,
    which with small ones is every 4 KB. What else a step needs lies here, too: in a page of its own it would have an
    address to look up.
    """

    def __init__(self) -> None:
        self._chunk, self._used = torch.empty(0, dtype=torch.uint8), 0

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy that lies here."""
        size = -(-tensor.nbytes // CACHE_LINE) * CACHE_LINE
        if self._used + size > len(self._chunk):
            self._chunk = line_aligned_zeros(max(CHUNK_BYTES, size))
            self._used = 0
        place = self._chunk[self._used : self._used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._used += size
        return place.copy_(tensor)


@dataclass(frozen=True)
class Packed:
    """A matrix for `tile`. `block_bytes`, `scale_bytes` lead from block to block; `outputs` has no padding."""

    format: int
    values: Tensor
    scales: Tensor
    groups: int
    outputs: int

    @property
    def blocks(self) -> int:
        return self.values.shape[0]

    @property
    def block_bytes(self) -> int:
        return self.values[0].nbytes

    @property
    def scale_bytes(self) -> int:
        return self.scales[0].nbytes

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


def pack(weight: Float[Tensor, "d_out d_in"], kind: str, gate: Float[Tensor, "d_out d_in"] | None = None) -> Packed:
    """A matrix in the named format; with a gate, its blocks and those of `weight` by turns, the gate's first."""
    outputs, _ = weight.shape
    matrices = [blocks(m.detach().float().cpu()) for m in (weight, gate)[::-1] if m is not None]
    together = torch.stack(matrices, 1).flatten(0, 1)
    values, scales = _rounded(together, kind)
    return Packed(FORMATS[kind], values, scales, together.shape[1], outputs)


def blocks(weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "blocks groups 32 32"]:
    """(block, group, output, input), filled up with zeros."""
    d_out, d_in = weight.shape
    padded = F.pad(weight, (0, -d_in % INPUTS, 0, -d_out % OUTPUTS))
    return padded.unflatten(1, (-1, INPUTS)).unflatten(0, (-1, OUTPUTS)).transpose(1, 2)


def rounded(weight: Float[Tensor, "d_out d_in"], kind: str) -> Float[Tensor, "d_out d_in"]:
    """What a matrix is after it was packed in a format."""
    values, scales, minima = _quantised(blocks(weight.detach().float()), kind)
    again = values.float() * scales + minima
    return again.transpose(1, 2).flatten(2, 3).flatten(0, 1)[: weight.shape[0], : weight.shape[1]]


def _quantised(groups: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """(values, scales, minima) with groups = values * scales + minima, nearly."""
    one, zero = groups.new_ones(()), groups.new_zeros(())
    if kind in ("fp32", "bf16"):
        return (groups if kind == "fp32" else groups.bfloat16()), one, zero
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if kind == "int8":
        scales, minima, least, most = torch.maximum(high, -low) / 127, zero, -127, 127
    else:
        minima, least, most = low.bfloat16().float(), 0, 15
        scales = (high - minima).clamp(min=0) / 15
    scales = scales.bfloat16().float()
    values = ((groups - minima) / torch.where(scales == 0, one, scales)).round().clamp(least, most)
    return values.to(torch.int8), scales, minima


def _rounded(groups: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Values and scales of (blocks, groups, 32 outputs, 32 inputs) as they lie in memory."""
    values, scales, minima = _quantised(groups, kind)
    none = torch.zeros(len(groups), 0)
    if kind == "fp32":
        return values.transpose(2, 3).contiguous(), none
    pairs = values.unflatten(3, (-1, 2)).transpose(2, 3)  # (blocks, groups, pair, output, 2)
    if kind == "bf16":
        return pairs.contiguous(), none
    scales = scales[..., 0].bfloat16()
    if kind == "int8":
        return pairs.contiguous(), scales.contiguous()
    bytes_ = pairs[:, :, 0::2] | pairs[:, :, 1::2] << 4
    return bytes_.contiguous(), torch.stack([scales, minima[..., 0].bfloat16()], 2).contiguous()
