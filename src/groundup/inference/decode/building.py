"""What a program is built with: buffers of rows, packed weights, and the operations around a product.

round     a row, normed, in the number format of the product's weights
product   one matrix; or one for each head, side by side, each of which reads its own part of the row

          head 0  head 1  head 2
row       x x x   x x x   x x x
matrices    W0      W1      W2         written: outputs of head 0, of head 1, of head 2
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groundup.inference.decode.operations import ADD, NORM, OPERATION, PRODUCT, ROUND, WRITE
from groundup.inference.decode.pack import INPUTS, OUTPUTS, Arena, Packed, pack
from groundup.model.linear import Linear
from groundup.model.norm import LayerNorm, RMSNorm
from groundup.model.position import Rope

KEYS = 16  # that attention takes at a time, all of one page
NORM_KINDS: dict[type, int] = {nn.Identity: 0, RMSNorm: 1, LayerNorm: 2}

Finish = Callable[[nn.Module], None]
"""Writes down a branch's last operations, with the norm that is given behind them."""


@dataclass(frozen=True)
class Rows:
    """A buffer of float32 rows, from channel `start` on."""

    tensor: Tensor
    start: int = 0

    @property
    def address(self) -> int:
        return self.tensor.data_ptr() + 4 * self.start

    @property
    def width(self) -> int:
        return self.tensor.shape[1]

    def as_source(self) -> dict[str, int]:
        return {"source": self.address, "source_width": self.width}

    def as_second(self) -> dict[str, int]:
        return {"second": self.address, "second_width": self.width}

    def as_target(self) -> dict[str, int]:
        return {"target": self.address, "target_width": self.width}


@dataclass(frozen=True)
class Matrix:
    """Packed weights; of several matrices side by side, `diagonal` of them, where each reads its own inputs."""

    packed: Packed
    diagonal: int = 1

    @property
    def inputs(self) -> int:
        """Of a rounded row, with what fills up groups."""
        return self.diagonal * self.packed.groups * INPUTS


class Builder:
    """Collects operations in order, with all that they point to.

    `rows` is the most rows of a step, `context` the most positions. `weight_bytes` are read once per step. `x` is the
    residual stream.
    """

    def __init__(self, d_model: int, page_size: int, kind: str, rows: int, context: int) -> None:
        self.d_model, self.page_size, self.kind, self.rows, self.context = d_model, page_size, kind, rows, context
        self.weight_bytes = 0
        self.most_heads = self.most_work = 1
        self.written: list[np.ndarray] = []
        self._alive: list[Tensor] = []
        self._arena = Arena()
        self._tables: dict[tuple[Rope, int], tuple[int, int, int]] = {}
        self._shared: dict[str, Tensor] = {}
        self._inputs = INPUTS
        self.x = self.new_rows(d_model)

    @property
    def values_bytes(self) -> int:
        """Of the longest row that a product reads, in the widest format."""
        return 4 * self._inputs

    @property
    def record_bytes(self) -> int:
        """Of a rounded row: its values, room for its scale, the sums of its groups; whole cache lines."""
        return -(-(self.values_bytes + 4 * OUTPUTS + self.values_bytes // INPUTS) // 64) * 64

    @property
    def work_size(self) -> int:
        """Numbers of float32 that a thread needs for itself: a row, the scores of its heads, or `most_work`."""
        return max(self._inputs, self.most_heads * -(-self.context // KEYS) * KEYS, self.most_work)

    def new_rows(self, width: int) -> Rows:
        """A buffer of its own."""
        return Rows(self.kept(torch.zeros(self.rows, width)))

    def shared_rows(self, name: str, width: int) -> Rows:
        """A buffer that layers use one after another, for what no later layer reads."""
        if name not in self._shared or self._shared[name].shape[1] != width:
            self._shared[name] = self.kept(torch.zeros(self.rows, width))
        return Rows(self._shared[name])

    def kept(self, tensor: Tensor) -> Tensor:
        """The tensor, which lives as long as the program."""
        self._alive.append(tensor)
        return tensor

    def address(self, tensor: Tensor | None) -> int:
        """Of a float32 copy, or of the tensor itself; 0 for None."""
        return 0 if tensor is None else self.kept(tensor.detach().float().contiguous()).data_ptr()

    def add(self, kind: int, **fields: Any) -> None:
        """Write down an operation; fields that are not named are zero."""
        operation = np.zeros((), OPERATION)
        for name, value in {"kind": kind, "page_size": self.page_size, **fields}.items():
            operation[name] = value
        self.written.append(operation)

    def matrix(self, weight: Tensor, gate: Tensor | None = None, kind: str | None = None) -> Matrix:
        """Weights in the program's format, or another one."""
        return self._keep(Matrix(pack(weight, kind or self.kind, gate)))

    def matrices(self, weights: Float[Tensor, "heads d_out d_in"]) -> Matrix:
        """One matrix for each head, each with its own inputs."""
        heads, d_out, _ = weights.shape
        padded = F.pad(weights.detach(), (0, 0, 0, -d_out % OUTPUTS))
        return self._keep(Matrix(replace(pack(padded.flatten(0, 1), self.kind), outputs=d_out), heads))

    def _keep(self, matrix: Matrix) -> Matrix:
        packed = matrix.packed
        values, scales = self.kept(self._arena.keep(packed.values)), self.kept(self._arena.keep(packed.scales))
        self.weight_bytes += packed.nbytes
        self._inputs = max(self._inputs, matrix.inputs)
        return Matrix(replace(packed, values=values, scales=scales), matrix.diagonal)

    def round(
        self, source: Rows, width: int, matrix: Matrix, norm: nn.Module, *, step: int = 0, wanted: int = 0
    ) -> None:
        """The first `width` channels for the product with this matrix; of several matrices, each `step` channels on."""
        self.add(
            ROUND, wanted=wanted, width=width, format=matrix.packed.format, groups=matrix.packed.groups,
            diagonal=matrix.diagonal, source_step=step, **source.as_source(), **self.norm_fields(norm),
        )  # fmt: skip

    def product(self, matrix: Matrix, **fields: Any) -> None:
        """Of what was rounded last."""
        packed = matrix.packed
        self.add(
            PRODUCT, format=packed.format, groups=packed.groups, outputs=packed.outputs, diagonal=matrix.diagonal,
            weights=packed.values.data_ptr(), scales=packed.scales.data_ptr(),
            block_bytes=packed.block_bytes, scale_bytes=packed.scale_bytes, **fields,
        )  # fmt: skip

    def norm_fields(self, norm: nn.Module) -> dict[str, Any]:
        """Of an operation that norms; none for nn.Identity."""
        if isinstance(norm, nn.Identity):
            return {}
        assert isinstance(norm, RMSNorm | LayerNorm)
        gain, bias = self.address(norm.weight), self.address(getattr(norm, "bias", None))
        return {"norm_kind": NORM_KINDS[type(norm)], "gain": gain, "norm_bias": bias, "eps": norm.eps}

    def rotary(self, rope: Rope, channels: int) -> dict[str, int]:
        """Pairs that turn, and the addresses of their cosines and sines, (context, pairs) each."""
        if (rope, channels) not in self._tables:
            cos, sin = (t.reshape(self.context, -1) for t in rope.tables(torch.arange(self.context)[None], channels))
            self._tables[rope, channels] = (cos.shape[1], self.address(cos), self.address(sin))
        half, cos, sin = self._tables[rope, channels]
        return {"half": half, "cos": cos, "sin": sin}

    def branch_end(self, source: Rows, linear: Linear) -> Finish:
        """Adds the branch to x, through the norm that is given, in operations that are only then written down."""
        matrix, bias = self.matrix(linear.weight), self.address(linear.bias)

        def finish(post: nn.Module) -> None:
            self.round(source, source.width, matrix, nn.Identity())
            if isinstance(post, nn.Identity):
                self.product(matrix, mode=ADD, bias=bias, **self.x.as_target())
                return
            branch = self.new_rows(self.d_model)
            self.product(matrix, mode=WRITE, bias=bias, **branch.as_target())
            self.add(
                NORM, width=self.d_model, mode=ADD, **branch.as_source(), **self.x.as_target(), **self.norm_fields(post)
            )

        return finish
