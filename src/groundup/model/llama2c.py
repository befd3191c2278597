"""Models of llama2.c (https://github.com/karpathy/llama2.c), version 0 of its files: seven sizes, then the weights.

    int32  dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: the head is not tied), seq_len
    float32  token table; then, each for all layers one after another: attention norms, wq, wk, wv, wo,
             feed-forward norms, w1 (gate), w2 (down), w3 (up); final norm; two tables of rotary angles (not read);
             the head unless it is tied

Rotary pairs lie side by side, as in Meta's checkpoints; see `groundup.model.interleaved`.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.families.family import attention, mlp
from groundup.model.feedforward import MLPConfig
from groundup.model.fitting import first_of, skeleton
from groundup.model.interleaved import Interleaved
from groundup.model.position import Rope
from groundup.model.transformer import ModelConfig, Transformer

HEADER = struct.Struct("<7i")
FIELDS: tuple[str, ...] = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
LAYER_ORDER = ("mixer_norm", "mixer.wq", "mixer.wk", "mixer.wv", "mixer.wo", "ffn_norm", "ffn.gate", "ffn.down",
               "ffn.up")  # fmt: skip


def load_llama2c(path: str | Path) -> Transformer:
    """The model of a llama2.c file. Its tokenizer is another file, see `groundup.tokenizer.llama2c`.

    What follows the weights is not read: some publish the tokenizer there. Raises ValueError for sizes that make no
    model, for a file that is shorter than they say, and for weights that are not finite.
    """
    path = Path(path)
    config = read_config(path)
    model = skeleton(config, config.num_layers, str(path))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    values = np.memmap(path, "<f4", "r", HEADER.size, (weights_bytes(config) // 4,))
    state, at = {}, 0
    for name in _order(config):
        if name in shapes:
            count = math.prod(shapes[name])
            state[name] = _imported(name, values[at : at + count].reshape(shapes[name]), config)
        else:
            count = _angles(config)
        at += count
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {len(broken)} tensors hold NaN or infinity: {first_of(broken)}")
    model.load_state_dict(state, assign=True)
    return model


def read_config(path: Path) -> ModelConfig:
    """The sizes in front of the weights as a config, held against the size of the file. ValueError names the field."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise ValueError(f"{path}: {size} bytes; a llama2.c model begins with {HEADER.size} bytes of sizes")
    if head.startswith(b"24ka"):
        raise ValueError(f"{path}: a llama2.c file of version 1 or 2; only version 0 is read, export with --version 0")
    sizes = dict(zip(FIELDS, HEADER.unpack(head), strict=True))
    tied = sizes["vocab_size"] > 0
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    wrong = next((f"{name}={value}" for name, value in sizes.items() if not 0 < value <= size), None)
    if wrong:
        raise ValueError(f"{path}: {wrong}; expected a number from 1 to {size}, the bytes of the file")
    if sizes["dim"] % sizes["n_heads"]:
        raise ValueError(f"{path}: dim={sizes['dim']} is not divisible by n_heads={sizes['n_heads']}")
    try:
        config = _config(sizes, tied)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    needed = HEADER.size + weights_bytes(config)
    if needed > size:
        raise ValueError(f"{path}: its sizes ask for {needed} bytes, the file has {size}")
    return config


def _config(sizes: dict[str, int], tied: bool) -> ModelConfig:
    mixer = AttentionConfig(sizes["n_heads"], sizes["n_kv_heads"], sizes["dim"] // sizes["n_heads"], rope=Rope())
    return ModelConfig(
        vocab_size=sizes["vocab_size"],
        d_model=sizes["dim"],
        num_layers=sizes["n_layers"],
        blocks=(BlockConfig(mixer, MLPConfig(sizes["hidden_dim"])),),
        context_length=sizes["seq_len"],
        tie_embeddings=tied,
        norm_eps=1e-5,  # written into run.c, not into the file
    )


def weights_bytes(config: ModelConfig) -> int:
    """The bytes of all weights and of the two tables of angles."""
    mixer, d_ff, d_model = attention(config.block(0)), mlp(config.block(0)).d_ff, config.d_model
    d_q, d_kv = d_model, mixer.num_kv_heads * mixer.d_head
    layer = 2 * d_model + 2 * d_model * d_q + 2 * d_model * d_kv + 3 * d_model * d_ff
    tables = config.vocab_size * d_model * (1 if config.tie_embeddings else 2) + d_model + 2 * _angles(config)
    return 4 * (config.num_layers * layer + tables)


def _angles(config: ModelConfig) -> int:
    """The numbers in one table of rotary angles: a cosine (or sine) for each position and pair of channels."""
    return config.context_length * (attention(config.block(0)).d_head // 2)


def _order(config: ModelConfig) -> Iterator[str]:
    """Our names of what the file holds, in its order."""
    yield "embed.weight"
    for part in LAYER_ORDER:
        yield from (f"blocks.{layer}.{part}.weight" for layer in range(config.num_layers))
    yield "final_norm.weight"
    yield from ("cosines", "sines")
    if not config.tie_embeddings:
        yield "head.weight"


def _imported(name: str, values: np.ndarray, config: ModelConfig) -> Tensor:
    tensor = torch.from_numpy(values.astype(np.float32))
    if name.split(".")[-2] not in ("wq", "wk"):
        return tensor
    d_head = attention(config.block(0)).d_head
    return Interleaved(d_head, d_head).to_half_split(tensor)
