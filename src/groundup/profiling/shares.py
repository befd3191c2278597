"""Where the FLOPs of a model are, by what it does with them: how the shares move with its size and its context.

Per token a block's products cost 2 FLOPs per parameter, whatever the context; scores and values cost 4 D per visible
token; the head costs 2 D V once, whatever the depth. So the head matters in small models, attention over long contexts,
and the feed-forward layers everywhere else.
"""

from dataclasses import dataclass, field

from groundup.accounting import count_parameters, ledger
from groundup.model import ModelConfig
from groundup.profiling.groups import ATTENTION, FEED_FORWARD, HEAD, NORM, PROJECTIONS, RESIDUAL, group_of

PARTS = (FEED_FORWARD, PROJECTIONS, ATTENTION, HEAD, NORM, RESIDUAL)
"""Those of the groups that have FLOPs in a forward pass."""


@dataclass(frozen=True)
class FlopShares:
    """FLOPs of one forward pass over one row of `context_length` tokens, by part.

    `attention` are scores, softmax and values, with rotation; `head and loss` is the product with the vocabulary.
    """

    label: str
    context_length: int
    parameters: int
    flops: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.flops.values())

    @property
    def per_token(self) -> float:
        """FLOPs for one token of a full row."""
        return self.total / self.context_length

    def share(self, part: str) -> float:
        """From 0 to 1."""
        return self.flops[part] / self.total


def flop_shares(config: ModelConfig, context_length: int, *, causal: bool = True, label: str = "") -> FlopShares:
    """The forward ledger, added up by part. The backward pass takes twice of each, so training has the same shares.

    `causal=False` counts the whole square of queries and keys, as an implementation that skips nothing multiplies.

    >>> from groundup import presets
    >>> shares = flop_shares(presets.gpt2("xl"), 1024)
    >>> round(shares.share("feed-forward"), 2), round(shares.share("attention"), 2)
    (0.6, 0.05)
    """
    if context_length < 1:
        raise ValueError(f"context_length={context_length}; expected at least 1")
    flops: dict[str, int] = {part: 0 for part in PARTS}
    for row in ledger(config, context_length, causal=causal):
        flops[group_of(row)] += row.flops
    return FlopShares(label, context_length, count_parameters(config).total, flops)
