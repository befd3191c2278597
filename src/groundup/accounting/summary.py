"""One table of what a configuration costs, for people who are about to train it."""

from collections import Counter

from groundup.accounting.flops import beside_six_nd, forward_flops, ledger, training_flops_per_token
from groundup.accounting.memory import cache_bytes, training_memory
from groundup.accounting.params import check_one_stack, count_parameters
from groundup.model import ModelConfig


def summary(config: ModelConfig, context_length: int | None = None, batch: int = 1) -> str:
    """Parameters, FLOPs by operation, and training memory (fp32, AdamW) of one configuration, as text."""
    check_one_stack(config)
    seq = context_length or config.context_length
    count = count_parameters(config)
    memory = training_memory(config, batch, seq)
    cache = cache_bytes(config)
    active = [f"of these active {count.active:>18,}  that a token meets"] if count.active < count.total else []
    fixed = [f"states          {cache.fixed:>18,}  bytes per sequence"] if cache.fixed else []
    lines = [
        f"parameters      {count.total:>18,}  (embedding {count.embedding:,}, head {count.head:,})",
        *active,
        f"forward         {forward_flops(config, seq, batch):>18,}  FLOPs for {batch} x {seq} tokens",
        f"training        {training_flops_per_token(config, seq):>18,.0f}  FLOPs per token "
        f"({training_flops_per_token(config, seq) / count.active:.2f} per{' active' * bool(active)} parameter)",
        f"training peak   {memory.peak:>18,}  bytes (fp32, AdamW, batch {batch})",
        f"KV cache        {cache.per_token:>18,}  bytes per token (bf16)",
        *fixed,
        "",
        *_share_rows(config, seq, batch),
        "",
        *_six_nd_rows(config, seq, batch),
    ]
    return "\n".join(lines)


def _share_rows(config: ModelConfig, seq: int, batch: int) -> list[str]:
    flops: Counter[str] = Counter()
    for row in ledger(config, seq, batch):
        flops[row.name] += row.flops
    total = flops.total()
    return [f"{name:<15} {n:>18,}  {100 * n / total:5.1f} % of forward FLOPs" for name, n in flops.most_common()]


def _six_nd_rows(config: ModelConfig, seq: int, batch: int) -> list[str]:
    """One AdamW step against the rule of thumb: each term, and its size beside 6ND."""
    terms = beside_six_nd(config, seq, batch)
    rows = [f"{name:<30} {n:>22,}  {100 * n / terms['6ND']:+7.2f} %" for name, n in terms.items()]
    return [*rows, f"{'one training step':<30} {sum(terms.values()):>22,}  FLOPs"]
