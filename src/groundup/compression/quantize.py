"""Weights in 8 or 4 bits: a matrix becomes small numbers, with a scale for every group of its row.

    int8   w = scale * q             q from -127 to 127, scale = max |w| / 127          ("absmax")
    int4   w = scale * q + low       q from 0 to 15, scale = (max - min) / 15           two numbers to a byte
    fp8    w = scale * q             q of e4m3, up to 448 with 3 bits of mantissa, scale = max |w| / 448

Only weights are rounded; activations and sums keep their type, so nothing has to be calibrated. A group has its own
scale so that one large weight costs its neighbours of the group their resolution, and nobody else. With groups of 32,
int8 takes 8.5 bits a weight, and int4 takes 5 (GGUF's Q8_0 and Q4_1 are the same: Gerganov 2023; group-wise scales:
Dettmers et al. 2021, arXiv:2110.02861). A float carries a scale of its own, its exponent, so one per row is enough.

How far off a weight is at most: int8 and int4 half a step, scale / 2; fp8 |w| / 16, or scale / 1024 below scale / 64
(Micikevicius et al. 2022, arXiv:2209.05433).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from groundup.config import from_dict, nearest, to_dict
from groundup.files import read_json, write_json
from groundup.kernels.quantize import E4M3, LARGEST, saturate
from groundup.model import ModelConfig, Transformer
from groundup.model.linear import Embedding, Linear
from groundup.tensorfile import read_tensors, write_tensors

FORMATS = ("int8", "int4", "fp8")
SETTINGS_FILE, TENSORS_FILE = "quantized.json", "quantized.safetensors"


class Packed(NamedTuple):
    """A matrix of (rows, columns) in groups along its rows, the last one filled up with the row's last number.

    `values` are int8 or float8 (rows, groups * size), or bytes of two numbers (rows, groups * size / 2), the first one
    in the lower half. `scales` and, for int4, `lows` are float16 (rows, groups).
    """

    values: Tensor
    scales: Tensor
    lows: Tensor | None


@dataclass(frozen=True)
class Quantization:
    """How weights are kept, in groups of so many along a row (None: a row is one group).

    `embeddings`: the token table, too, which is also the head where the two are tied.
    """

    format: str = "int8"
    group: int | None = 32
    embeddings: bool = True

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"quantization: format={self.format!r}{nearest(self.format, FORMATS)}")
        if self.group is not None and (self.group < 2 or self.group % 2):
            raise ValueError(f"quantization: group={self.group}; expected an even number of at least 2, or None")


def pack(weight: Float[Tensor, "rows columns"], format: str = "int8", group: int | None = 32) -> Packed:
    """The nearest numbers of the format. Raises ValueError for a weight that is not finite or beyond float16."""
    group = weight.shape[1] + weight.shape[1] % 2 if group is None else group
    padded = F.pad(weight.detach().float()[None], (0, -weight.shape[1] % group), mode="replicate")[0]
    groups = padded.unflatten(1, (-1, group))
    if not bool((groups.abs() <= torch.finfo(torch.float16).max).all()):
        raise ValueError("quantize: a weight is not finite, or larger than 65,504")
    if format == "int4":
        return _pack_int4(groups)
    number = torch.int8 if format == "int8" else E4M3
    scales = _float16(groups.abs().amax(2) / LARGEST[number])
    return Packed(saturate(groups / _divisor(scales), number).flatten(1), scales, None)


def _pack_int4(groups: Float[Tensor, "rows groups size"]) -> Packed:
    lows = groups.amin(2).half()
    scales = _float16((groups.amax(2) - lows.float()).clamp(min=0) / 15)
    values = ((groups - lows.float()[..., None]) / _divisor(scales)).round().clamp(0, 15)
    return Packed(pack_nibbles(values.to(torch.uint8).flatten(1)), scales, lows)


def unpack(packed: Packed, columns: int) -> Float[Tensor, "rows columns"]:
    """The matrix that the numbers stand for, in float32."""
    values = packed.values if packed.lows is None else unpack_nibbles(packed.values)
    groups = values.unflatten(1, (packed.scales.shape[1], -1)).float() * packed.scales.float()[..., None]
    if packed.lows is not None:
        groups = groups + packed.lows.float()[..., None]
    return groups.flatten(1)[:, :columns]


def pack_nibbles(values: UInt8[Tensor, "rows columns"]) -> UInt8[Tensor, "rows half"]:
    """Numbers from 0 to 15 two to a byte, the first one in the lower half."""
    return values[:, ::2] | values[:, 1::2] << 4


def unpack_nibbles(values: UInt8[Tensor, "rows half"]) -> UInt8[Tensor, "rows columns"]:
    """The inverse of `pack_nibbles`."""
    return torch.stack([values & 15, values >> 4], 2).flatten(1)


def _float16(scales: Tensor) -> Tensor:
    """Rounded up where rounding would cut off the largest number of a group."""
    rounded = scales.half()
    return torch.where(rounded.float() < scales, torch.nextafter(rounded, rounded.new_tensor(torch.inf)), rounded)


def _divisor(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales.float())[..., None]


class _Quantized(nn.Module):
    """Keeps a matrix packed; `weight` is what it stands for, made anew at every use."""

    values: Tensor
    scales: Tensor
    lows: Tensor | None

    def __init__(self, weight: Float[Tensor, "rows columns"], settings: Quantization) -> None:
        super().__init__()
        self.columns = weight.shape[1]
        for name, tensor in pack(weight, settings.format, settings.group)._asdict().items():
            self.register_buffer(name, tensor)

    @property
    def weight(self) -> Float[Tensor, "rows columns"]:
        """The matrix in float32."""
        return unpack(Packed(self.values, self.scales, self.lows), self.columns)

    def extra_repr(self) -> str:
        kind = {torch.int8: "int8", E4M3: "fp8"}.get(self.values.dtype, "int4")
        return f"{self.columns} -> {len(self.values)}, {kind}"


class QuantizedLinear(_Quantized):
    """`Linear` for inference: y = x W^T + b with W unpacked for the product."""

    def __init__(self, linear: Linear, settings: Quantization) -> None:
        super().__init__(linear.weight, settings)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class QuantizedEmbedding(_Quantized):
    """`Embedding` for inference: only the rows of the tokens at hand are unpacked."""

    def __init__(self, embedding: Embedding, settings: Quantization) -> None:
        super().__init__(embedding.weight, settings)

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        flat = tokens.flatten()
        lows = None if self.lows is None else self.lows[flat]
        values = self.values.view(torch.uint8)[flat].view(self.values.dtype)  # not every device can index float8
        rows = unpack(Packed(values, self.scales[flat], lows), self.columns)
        return rows.unflatten(0, tokens.shape) if tokens.dim() != 1 else rows


def quantize_model(model: Transformer, settings: Quantization | None = None) -> Transformer:
    """The same model with its linear layers packed, in place; norms, biases and experts' stacked weights stay.

    For inference: packed weights have no gradient. Raises ValueError for a model that has nothing to pack.
    """
    settings = settings or Quantization()
    found = [(path, module) for path, module in model.named_modules() if _packs(module, settings)]
    if not found:
        raise ValueError("quantize: the model has no linear layer that is not packed yet")
    for path, module in found:
        parent, _, name = path.rpartition(".")
        kind = QuantizedLinear if type(module) is Linear else QuantizedEmbedding
        setattr(model.get_submodule(parent), name, kind(module, settings))  # pyright: ignore[reportArgumentType]
    return model.eval()


def _packs(module: nn.Module, settings: Quantization) -> bool:
    return type(module) is Linear or (settings.embeddings and type(module) is Embedding)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers that are saved, shared ones once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())


def save_quantized(model: Transformer, settings: Quantization, path: str | Path) -> None:
    """Write a quantised model into a folder: its settings and config as JSON, its tensors as safetensors."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / TENSORS_FILE, {name: t.contiguous() for name, t in model.state_dict().items()})
    write_json(path / SETTINGS_FILE, {"quantization": to_dict(settings), "config": to_dict(model.config)})


def load_quantized(path: str | Path) -> Transformer:
    """The model of a folder that `save_quantized` wrote, to the bit.

    Raises ValueError for a folder that has none, and for files that are damaged or do not fit each other.
    """
    path = Path(path)
    if not (path / SETTINGS_FILE).is_file():
        raise ValueError(f"{path}: no {SETTINGS_FILE}; expected a folder that save_quantized wrote")
    data = read_json(path / SETTINGS_FILE)
    if not isinstance(data, dict) or set(data) != {"quantization", "config"}:
        raise ValueError(f"{path / SETTINGS_FILE}: expected the keys quantization and config")
    settings = from_dict(Quantization, data["quantization"], "quantization")
    model = quantize_model(Transformer(from_dict(ModelConfig, data["config"])), settings)
    tensors = read_tensors(path / TENSORS_FILE)
    expected = model.state_dict()
    wrong = sorted(n for n in expected.keys() | tensors.keys() if _form(expected, n) != _form(tensors, n))
    if wrong:
        raise ValueError(f"{path / TENSORS_FILE}: does not fit its config at {', '.join(wrong[:3])}")
    model.load_state_dict(tensors)
    return model


def _form(tensors: dict[str, Tensor], name: str) -> tuple[object, ...]:
    return (tensors[name].shape, tensors[name].dtype) if name in tensors else ()
