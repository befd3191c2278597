"""The groups that FLOPs and time are told apart by, and which group an operation of the ledger is in.

A group is what a module does, so that the same line can be drawn through the ledger's rows and through the clock.
"""

from collections.abc import Iterable

from groundup.accounting.flops import Operation
from groundup.accounting.roofline import Work
from groundup.accounting.traffic import INNER_ATTENTION, NORMS

EMBEDDING = "embedding"
NORM = "norms"
PROJECTIONS = "attention projections"
ATTENTION = "attention"
FEED_FORWARD = "feed-forward"
HEAD = "head and loss"
RESIDUAL = "residual"
OPTIMIZER = "optimizer"
DATA = "data"
OTHER = "other"
GROUPS = (EMBEDDING, NORM, PROJECTIONS, ATTENTION, FEED_FORWARD, HEAD, RESIDUAL, OPTIMIZER, DATA, OTHER)
"""`attention` is what mixes tokens between its projections: rotation, scores, softmax, values, or a recurrence's scan.
`other` is the time that belongs to none, such as the trainer's own between its parts."""

_BY_NAME = {
    "embedding": EMBEDDING, "head": HEAD, "loss": HEAD, "cast_head": HEAD, "residual": RESIDUAL,
    "further_combine": HEAD, "further_head": HEAD, "further_norms": NORM,
    "cast_mixer": PROJECTIONS, "rope": ATTENTION, "attention": ATTENTION,
    "gate": FEED_FORWARD, "up": FEED_FORWARD, "down": FEED_FORWARD, "activation": FEED_FORWARD,
    "router": FEED_FORWARD, "routing": FEED_FORWARD, "combine": FEED_FORWARD, "cast_ffn": FEED_FORWARD,
}  # fmt: skip


def group_of(row: Operation) -> str:
    """The group of one row of `accounting.step_work`, or of the ledger."""
    if row.phase == "optimizer":
        return OPTIMIZER
    if row.name in NORMS:
        return NORM
    if row.name in _BY_NAME:
        return _BY_NAME[row.name]
    if row.name.startswith(("expert_", "shared_")):
        return FEED_FORWARD
    if row.name in INNER_ATTENTION or row.kind != "matmul":
        return ATTENTION
    return PROJECTIONS


def by_group(rows: Iterable[Work]) -> dict[str, list[Work]]:
    """The rows of every group; each group is there, if only with an empty list."""
    table: dict[str, list[Work]] = {group: [] for group in GROUPS}
    for row in rows:
        table[group_of(row)].append(row)
    return table
