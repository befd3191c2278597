"""A start from which a model of few steps learns at once: nothing that is random lies between a token and its loss.

block       x + 0        its last matrices are zero, as in Fixup (Zhang et al. 2019, arXiv:1901.09321)
embedding   small        the optimizer's rate moves it, not what it began with
head        smaller      so the first loss is log(vocabulary)
"""

import torch

from groundup.model.transformer import Transformer

EMBEDDING_STD, HEAD_STD = 0.1, 0.02


@torch.no_grad()
def start_as_identity(model: Transformer, seed: int) -> None:
    """Every block starts as the identity; embeddings and head start small, so the first loss is log(vocabulary)."""
    model.init_weights(seed, residual="zero")
    model.embed.weight.mul_(EMBEDDING_STD / model.embed.weight.std())
    if model.head is not None:
        model.head.weight.mul_(HEAD_STD / model.head.weight.std())
