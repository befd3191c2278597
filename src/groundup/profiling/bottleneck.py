"""The bottleneck in words: which group takes most of the step, why, what to do, and what that could bring."""

from dataclasses import dataclass

from groundup.profiling.groups import (
    ATTENTION,
    DATA,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    NORM,
    OPTIMIZER,
    OTHER,
    PROJECTIONS,
    RESIDUAL,
)
from groundup.profiling.result import GroupRow, Profile

# Time in no operation, above which the host and not the arithmetic sets the pace.
HOST_SHARE = 0.5
# Within so many times the roofline's least time there is little left to gain but by doing less.
NEAR_THE_ROOF = 2.0

LESS = {
    EMBEDDING: "a smaller vocabulary: the table's gradient is as large as the table",
    NORM: "fuse them: compiled blocks keep a norm's steps in registers; RMSNorm does less than LayerNorm",
    PROJECTIONS: "fewer key/value heads, narrower heads, or less width",
    ATTENTION: "a shorter context, a window, or fewer heads",
    FEED_FORWARD: "a narrower d_ff, or experts of which few are active",
    HEAD: "a smaller vocabulary",
    RESIDUAL: "compiled blocks",
    OPTIMIZER: "more tokens per update, as an update costs the same for any batch; or an optimizer with fewer states",
    DATA: "prepare batches ahead or elsewhere: the step waits for them",
    OTHER: "look at the trace: this time belongs to no part that is marked",
}
LESS_WHEN_DECODING = LESS | {
    ATTENTION: "fewer key/value heads, latent attention, or a window: each row reads all of its keys for one token",
    FEED_FORWARD: "more rows at once: every weight is read for one token of each row, whatever their number",
    PROJECTIONS: "more rows at once: every weight is read for one token of each row, whatever their number",
    HEAD: "more rows at once, or a smaller vocabulary",
}


@dataclass(frozen=True)
class Bottleneck:
    """`share` of the step goes to `group`; `host` when most time passes in no operation at all."""

    group: str
    share: float
    host: bool
    sentence: str
    advice: str


def bottleneck(profile: Profile) -> Bottleneck:
    """The group with most time, as everything that is removed from a step saves at most its share."""
    row = max(profile.groups, key=lambda row: row.seconds)
    host_share = max(profile.waiting_share, profile.interpreter_share if not profile.waiting_share else 0.0)
    host = host_share > HOST_SHARE
    table = LESS_WHEN_DECODING if profile.settings.phase == "decode" else LESS
    advice = f"{table[row.group]}. Without it a step would take {_saved(row, profile)}"
    sentence = (
        f"{row.group} takes {row.time_share:.0%} of the step with {row.flops_share:.1%} of its FLOPs; {_why(row)}"
    )
    if host:
        sentence = f"{host_share:.0%} of the step passes in no operation: the host is too slow for the work; {sentence}"
        advice = f"larger batches, or compiled blocks; then {advice}"
    return Bottleneck(row.group, row.time_share, host, sentence, advice)


def _saved(row: GroupRow, profile: Profile) -> str:
    left = profile.step_seconds * (1 - row.time_share)
    return f"{1e3 * left:.3g} ms instead of {1e3 * profile.step_seconds:.3g}"


def _why(row: GroupRow) -> str:
    """How the time stands to the roofline's."""
    if row.over_least is None:
        return "there is no arithmetic in it"
    bound = "arithmetic" if row.arithmetic_share > 0.5 else "memory"
    times = f"{row.over_least:.1f} times the least time that {bound} allows here"
    if row.over_least < NEAR_THE_ROOF:
        return f"at {times}, it is bound by {bound}"
    return f"at {times}, it is bound by neither arithmetic nor memory, but by how it is carried out"
