"""The operations of attention: of keys and values, and of latents.

    attention           round  qkv  remember  attend                                       and the branch's end
    latent attention    round  q c k  (round  q)  remember  round  absorb  attend  round  values

Latents are attended to as they are, by queries that went through the heads' keys (`absorb`); their mean goes through
the heads' values: see `groundup.model.latent`.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from groundup.inference.decode.building import Builder, Finish, Matrix, Rows
from groundup.inference.decode.operations import ATTEND, NO_WINDOW, REMEMBER, REMEMBER_LATENT, WRITE
from groundup.model import Attention
from groundup.model.latent import LatentAttention
from groundup.model.norm import RMSNorm


def attention(builder: Builder, norm: nn.Module, mixer: Attention, streams: Sequence[Tensor]) -> Finish:
    """All but the last product, which is added with the norm after it: see `Builder.branch_end`."""
    inputs, config = [mixer.wq, mixer.wk, mixer.wv], mixer.config
    matrix = builder.matrix(torch.cat([linear.weight.detach() for linear in inputs]))
    biases = [linear.bias.detach() for linear in inputs if linear.bias is not None]
    qkv = builder.shared_rows("qkv", matrix.packed.outputs)
    out = builder.shared_rows("attended", config.num_heads * config.d_head)
    builder.round(builder.x, builder.d_model, matrix, norm)
    bias = builder.address(torch.cat(biases)) if biases else 0
    builder.product(matrix, mode=WRITE, bias=bias, **qkv.as_target())
    shape = _heads(builder, mixer, streams) | _before_keys(builder, mixer)
    shape["remembers"] = shape["part_heads"] * shape["kv_heads"] == shape["heads"] and not shape.get("whole_norm")
    builder.add(REMEMBER, **shape, **qkv.as_source())
    builder.add(ATTEND, **shape, **_scoring(builder, mixer), **qkv.as_source(), **out.as_target())
    return builder.branch_end(out, mixer.wo)


def _heads(builder: Builder, mixer: Attention, streams: Sequence[Tensor]) -> dict[str, Any]:
    config, (keys, values) = mixer.config, streams
    loops = importlib.import_module("groundup.inference.decode.heads")
    together = loops.heads_at_once(config.d_head, config.num_heads // config.num_kv_heads)
    builder.most_heads = max(builder.most_heads, config.num_heads)
    scores, add_values, fetch = loops.head_loops(config.d_head, together, keys.dtype == torch.bfloat16)
    return {
        "heads": config.num_heads, "kv_heads": config.num_kv_heads, "d_head": config.d_head,
        "keys": keys.data_ptr(), "values": values.data_ptr(), "in_bf16": keys.dtype == torch.bfloat16,
        "part_heads": together, "scores": scores, "add_values": add_values, "fetch": fetch,
    }  # fmt: skip


def _before_keys(builder: Builder, mixer: Attention) -> dict[str, Any]:
    config = mixer.config
    fields: dict[str, Any] = {"scale": config.d_head**-0.5 if config.scale is None else config.scale}
    if config.rope is not None:
        fields |= builder.rotary(config.rope, config.d_head)
    if isinstance(mixer.q_norm, RMSNorm) and isinstance(mixer.k_norm, RMSNorm):
        gains = {"q_gain": builder.address(mixer.q_norm.weight), "k_gain": builder.address(mixer.k_norm.weight)}
        fields |= gains | {"eps": mixer.q_norm.eps, "whole_norm": config.qk_norm == "whole"}
    return fields


def _scoring(builder: Builder, mixer: Attention) -> dict[str, Any]:
    config = mixer.config
    return {
        "window": NO_WINDOW if config.window is None else config.window,
        "sink_tokens": config.sink_tokens,
        "softcap": config.softcap or 0.0,
        "slopes": builder.address(None if mixer.slopes is None else torch.tensor(mixer.slopes.values)),
        "sinks": builder.address(None if mixer.sinks is None else mixer.sinks.weight),
    }


def latent_attention(builder: Builder, norm: nn.Module, mixer: LatentAttention, streams: Sequence[Tensor]) -> Finish:
    """As `attention`; queries and their latents are in buffers that all layers share."""
    config, heads = mixer.config, mixer.config.num_heads
    queries, latent = _down(builder, norm, mixer)
    absorb, values = _up(builder, mixer)
    seen = builder.shared_rows("latent queries", heads * (config.kv_rank + config.d_rope))
    mean, out = (
        builder.shared_rows("means", heads * config.kv_rank),
        builder.shared_rows("attended", heads * config.d_value),
    )
    shape = _latents(builder, mixer, streams)
    scale = config.scale or (config.d_nope + config.d_rope) ** -0.5
    builder.add(
        REMEMBER_LATENT, **shape, **builder.norm_fields(mixer.kv_norm), **builder.rotary(config.rope, config.d_rope),
        scale=scale, source_step=config.d_nope + config.d_rope, **queries.as_second(),
        **latent.as_source(), **Rows(seen.tensor, heads * config.kv_rank).as_target(),
    )  # fmt: skip
    builder.round(queries, config.d_nope, absorb, nn.Identity(), step=config.d_nope + config.d_rope)
    builder.product(absorb, mode=WRITE, **seen.as_target())
    window = NO_WINDOW if config.window is None else config.window
    builder.add(ATTEND, **shape, window=window, **seen.as_source(), **mean.as_target())
    builder.round(mean, config.kv_rank, values, nn.Identity(), step=config.kv_rank)
    builder.product(values, mode=WRITE, **out.as_target())
    return builder.branch_end(out, mixer.wo)


def _down(builder: Builder, norm: nn.Module, mixer: LatentAttention) -> tuple[Rows, Rows]:
    """Everything that reads x, in one product: where the queries are then, and the latent with its rotary key."""
    first = mixer.wq or mixer.wq_down
    assert first is not None
    matrix = builder.matrix(torch.cat([m.weight.detach() for m in (first, mixer.wkv_down, mixer.wk_rope)]))
    rows = builder.shared_rows("x down", matrix.packed.outputs)
    builder.round(builder.x, builder.d_model, matrix, norm)
    builder.product(matrix, mode=WRITE, **rows.as_target())
    latent = Rows(rows.tensor, first.weight.shape[0])
    if mixer.wq_up is None:
        return rows, latent
    assert mixer.q_norm is not None
    up = builder.matrix(mixer.wq_up.weight)
    queries = builder.shared_rows("queries", up.packed.outputs)
    builder.round(rows, first.weight.shape[0], up, mixer.q_norm)
    builder.product(up, mode=WRITE, **queries.as_target())
    return queries, latent


def _up(builder: Builder, mixer: LatentAttention) -> tuple[Matrix, Matrix]:
    """Each head's matrix from its query to latents, and from latents to its values."""
    config = mixer.config
    up = mixer.wkv_up.weight.detach().unflatten(0, (config.num_heads, config.d_nope + config.d_value))
    keys, values = up.split([config.d_nope, config.d_value], 1)
    return builder.matrices(keys.transpose(1, 2)), builder.matrices(values)


def _latents(builder: Builder, mixer: LatentAttention, streams: Sequence[Tensor]) -> dict[str, int]:
    """Attention with one key head, whose keys and values are the latents."""
    config, (latents, rope_keys) = mixer.config, streams
    in_bf16 = latents.dtype == torch.bfloat16
    plain = importlib.import_module("groundup.inference.decode.heads")
    loops = importlib.import_module("groundup.inference.decode.latents")
    together = loops.heads_at_once(config.num_heads)
    builder.most_heads = max(builder.most_heads, config.num_heads)
    scores, add_values = loops.latent_loops(config.kv_rank, together, in_bf16)
    rope_scores, _, fetch = plain.head_loops(config.d_rope, together, in_bf16)
    return {
        "heads": config.num_heads, "kv_heads": 1, "d_head": config.kv_rank, "d_rope": config.d_rope,
        "keys": latents.data_ptr(), "values": latents.data_ptr(), "rope_keys": rope_keys.data_ptr(),
        "in_bf16": in_bf16, "part_heads": together, "scores": scores, "add_values": add_values,
        "rope_scores": rope_scores, "fetch": fetch,
    }  # fmt: skip
