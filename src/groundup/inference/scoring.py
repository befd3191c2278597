"""How likely each token of a text is, without generating: what evaluation through a server asks for.

It is the model's own forward pass, in chunks through a cache, so that a long text holds up nobody for long.
"""

from collections.abc import Iterator, Sequence

import torch

from groundup.inference.sampling import TokenLogprob, token_logprobs
from groundup.model import Transformer

CHUNK = 128  # tokens per forward pass, and rows of logits held at once


@torch.no_grad()
def _chunk(
    model: Transformer, ids: Sequence[int], start: int, top: int, vocab_size: int, caches: list
) -> list[TokenLogprob]:
    tokens = torch.tensor([ids[start : start + CHUNK]], device=model.device)
    positions = torch.arange(start, start + tokens.shape[1], device=model.device)[None]
    logits = model.logits(model.hidden(tokens, positions, caches))[0]
    logits[:, vocab_size:] = -torch.inf
    targets = torch.tensor(ids[start + 1 : start + 1 + CHUNK], device=model.device)
    return token_logprobs(logits[: len(targets)], targets, top) if len(targets) else []


def score(model: Transformer, ids: Sequence[int], top: int, vocab_size: int) -> Iterator[list[TokenLogprob]]:
    """The TokenLogprob of every id but the first, given those before it, in lists of at most 128.

    vocab_size: of the tokenizer. The rows of the model's vocabulary behind it are no tokens: as in what the engine
    draws, they have no share of the probability.

    ValueError for ids that the model has not, or more than its context holds.
    """
    rows, context = model.config.vocab_size, model.config.context_length
    wrong = next((i for i in ids if not 0 <= i < rows), None)
    if wrong is not None:
        raise ValueError(f"prompt: id {wrong} is not in the vocabulary (0 to {rows - 1})")
    if len(ids) > context:
        raise ValueError(f"prompt: {len(ids)} tokens do not fit the model's context of {context}")
    caches = model.new_caches(len(ids))
    for start in range(0, len(ids), CHUNK):
        yield _chunk(model, ids, start, top, vocab_size, caches)
