"""The operations of recurrent mixers: Mamba-2, the gated delta rule, gated linear attention.

    round  everything that reads x  (convolve)  (round  decays)  recur  (gate)       and the branch's end

What a sequence carries from token to token is in the page store's states, in the forms that the modules keep there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from groundup.inference.decode.building import Builder, Finish, Rows
from groundup.inference.decode.operations import (
    ADDING,
    CHANNEL_DECAY,
    CONVOLVE,
    CORRECTING,
    FIXED_DECAY,
    GATE,
    HEAD_DECAY,
    RATE_DECAY,
    RECUR,
    WRITE,
)  # fmt: skip
from groundup.model import GatedDeltaConfig, GatedLinearConfig, Mamba2Config
from groundup.model.block import MixerConfig
from groundup.model.delta import GatedDelta
from groundup.model.linear import Linear
from groundup.model.linear_attention import GatedLinear
from groundup.model.mamba import Mamba2
from groundup.model.recurrence import GatedNorm, ShortConvolution

Recurrence = Mamba2 | GatedDelta | GatedLinear


def state_shapes(mixer: MixerConfig) -> list[tuple[int, ...]]:
    """Of each state that a sequence has in a layer, in the order in which its module keeps them."""
    match mixer:
        case Mamba2Config():
            before = (mixer.conv_kernel - 1, mixer.d_conv)
            return [before, (mixer.num_heads, mixer.d_state, mixer.d_head)]
        case GatedDeltaConfig():
            before = (mixer.conv_kernel - 1, 2 * mixer.d_keys + mixer.d_values)
            return [before, (mixer.num_heads, mixer.d_key, mixer.d_value)]
        case GatedLinearConfig():
            return [(mixer.num_heads, mixer.d_key, mixer.d_value + (mixer.features == "elu"))]
    return []


def recurrence(builder: Builder, norm: nn.Module, mixer: Recurrence, states: Sequence[Tensor]) -> Finish:
    """All but the last product, as `mixing.attention`."""
    match mixer:
        case Mamba2():
            return _mamba2(builder, norm, mixer, states)
        case GatedDelta():
            return _gated_delta(builder, norm, mixer, states)
        case GatedLinear():
            return _gated_linear(builder, norm, mixer, states)


def _mamba2(builder: Builder, norm: nn.Module, mixer: Mamba2, states: Sequence[Tensor]) -> Finish:
    config, (before, state) = mixer.config, states
    rows, _ = _read_x(builder, norm, [mixer.in_proj])
    inner, shared = config.d_inner, config.num_groups * config.d_state
    _convolve(builder, Rows(rows.tensor, inner), mixer.conv, before)
    y = builder.shared_rows("recurred", inner)
    steps = Rows(rows.tensor, inner + config.d_conv)
    _recur(
        builder, rows, steps, y, state, rule=ADDING, decay=RATE_DECAY, kv_heads=config.num_groups, scale=1.0,
        v_at=inner, k_at=2 * inner, q_at=2 * inner + shared, skip=builder.address(mixer.D), **_rates(builder, mixer),
    )  # fmt: skip
    _gate(builder, y, rows, mixer.norm, config.num_groups)
    return builder.branch_end(y, mixer.out_proj)


def _gated_delta(builder: Builder, norm: nn.Module, mixer: GatedDelta, states: Sequence[Tensor]) -> Finish:
    config, (before, state) = mixer.config, states
    rows, at = _read_x(builder, norm, [mixer.wq, mixer.wk, mixer.wv, mixer.wz, mixer.wa, mixer.wb])
    _convolve(builder, rows, mixer.conv, before)
    y = builder.shared_rows("recurred", config.d_values)
    _recur(
        builder, rows, Rows(rows.tensor, at[4]), y, state, rule=CORRECTING, decay=RATE_DECAY,
        kv_heads=config.num_key_heads or config.num_heads, scale=config.d_key**-0.5,
        q_at=at[0], k_at=at[1], v_at=at[2], beta_at=at[5], **_rates(builder, mixer),
    )  # fmt: skip
    _gate(builder, y, Rows(rows.tensor, at[3]), mixer.norm, config.num_heads)
    return builder.branch_end(y, mixer.wo)


def _gated_linear(builder: Builder, norm: nn.Module, mixer: GatedLinear, states: Sequence[Tensor]) -> Finish:
    config, (state,) = mixer.config, states
    of_decay = mixer.decay_down or mixer.decay_up
    linears = [mixer.wq, mixer.wk, mixer.wv, *([mixer.wz] if mixer.wz else []), *([of_decay] if of_decay else [])]
    rows, at = _read_x(builder, norm, linears)
    decays = Rows(rows.tensor, at[-1])
    if mixer.decay_down is not None:
        assert mixer.decay_up is not None
        up, small = builder.matrix(mixer.decay_up.weight), decays
        decays = builder.shared_rows("decays", up.packed.outputs)
        builder.round(small, config.rank, up, nn.Identity())
        builder.product(up, mode=WRITE, bias=builder.address(mixer.decay_up.bias), **decays.as_target())
    kept = 1.0 - 2.0 ** (-5.0 - torch.arange(config.num_heads)) if config.decay == "fixed" else None
    y = builder.shared_rows("recurred", config.num_heads * config.d_value)
    _recur(
        builder, rows, decays, y, state, rule=ADDING, kv_heads=config.num_heads, scale=config.d_key**-0.5,
        decay={"channel": CHANNEL_DECAY, "head": HEAD_DECAY}.get(config.decay, FIXED_DECAY),
        rates=builder.address(torch.ones(config.num_heads) if kept is None else kept),
        q_at=at[0], k_at=at[1], v_at=at[2], elu=config.features == "elu",
    )  # fmt: skip
    if mixer.norm is not None:
        _gate(builder, y, Rows(rows.tensor, at[3]), mixer.norm, config.num_heads)
    return builder.branch_end(y, mixer.wo)


def _read_x(builder: Builder, norm: nn.Module, linears: Sequence[Linear]) -> tuple[Rows, list[int]]:
    """Everything that reads x, in one product; where each part of its outputs begins."""
    matrix = builder.matrix(torch.cat([linear.weight.detach() for linear in linears]))
    widths = [linear.weight.shape[0] for linear in linears]
    rows, bias = builder.shared_rows("x mixed", sum(widths)), 0
    if any(linear.bias is not None for linear in linears):
        zeros = [torch.zeros(width) for width in widths]
        parts = [
            zero if linear.bias is None else linear.bias.detach() for linear, zero in zip(linears, zeros, strict=True)
        ]
        bias = builder.address(torch.cat(parts))
    builder.round(builder.x, builder.d_model, matrix, norm)
    builder.product(matrix, mode=WRITE, bias=bias, **rows.as_target())
    return rows, [sum(widths[:i]) for i in range(len(widths))]


def _convolve(builder: Builder, rows: Rows, conv: ShortConvolution, state: Tensor) -> None:
    channels, _, kernel = conv.weight.shape
    bias = torch.zeros(channels) if conv.bias is None else conv.bias
    builder.most_work = max(builder.most_work, kernel * channels)
    builder.add(
        CONVOLVE, width=channels, kernel=kernel, state=state.data_ptr(), bias=builder.address(bias),
        weights=builder.address(conv.weight[:, 0].T), **rows.as_source(),
    )  # fmt: skip


def _recur(builder: Builder, rows: Rows, decays: Rows, out: Rows, state: Tensor, **fields: Any) -> None:
    _, heads, d_key, d_value = state.shape
    builder.most_work = max(builder.most_work, 3 * (d_key + d_value))
    builder.add(
        RECUR, heads=heads, d_head=d_key, d_value=d_value, state=state.data_ptr(), **fields,
        **rows.as_source(), **decays.as_second(), **out.as_target(),
    )  # fmt: skip


def _rates(builder: Builder, mixer: Mamba2 | GatedDelta) -> dict[str, int]:
    return {"rates": builder.address(mixer.A_log.detach().exp()), "rate_bias": builder.address(mixer.dt_bias)}


def _gate(builder: Builder, y: Rows, gate: Rows, norm: GatedNorm, groups: int) -> None:
    """In place; a norm of each head's channels has one gain for all heads."""
    gain = norm.weight.detach().repeat(y.width // norm.weight.shape[0])
    builder.most_work = max(builder.most_work, y.width)
    builder.add(
        GATE, width=y.width, norm_groups=groups, gate_first=norm.gate_first, gain=builder.address(gain), eps=norm.eps,
        **y.as_source(), **gate.as_second(), **y.as_target(),
    )  # fmt: skip
