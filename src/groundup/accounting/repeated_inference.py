r"""The same with too little text: a model that will be served, trained on text that is read more than once.

    cost(N, D) = 6 a N D + 2 b N S,   L(N, D, U)

Cost as in `inference_optimal.py` (Sardana et al. 2023, eq. 2, arXiv:2401.00448), loss on U unique tokens as in
`compute_optimal.py` (Muennighoff et al. 2023, eq. 5, arXiv:2305.16264). Serving asks for a smaller model that trains
longer, and repeats make longer training worth less, so the answer lies between the two. Some losses cannot be reached
at any price. There is no closed form: a search over N, and for each N the D that reaches the loss.
"""

import math

from groundup.accounting.compute_optimal import EPOCH, Chinchilla
from groundup.accounting.inference_optimal import LifetimeOptimum, Serving, lifetime
from groundup.accounting.search import least, root

_MOST_EPOCHS = 1e4
"""More are worth nothing: exp(-1e4 / R*) is 0."""

_SPAN = 1e8


def tokens_for_loss(loss: float, parameters: float, unique_tokens: float | None, law: Chinchilla = EPOCH) -> float:
    """The fewest tokens that bring `parameters` to `loss`, of which `unique_tokens` differ (None: all); or inf."""
    gap = loss - law.floor - law.size_scale / parameters**law.size_exponent
    fresh = (law.data_scale / gap) ** (1 / law.data_exponent) if gap > 0 else math.inf
    if unique_tokens is None:
        return fresh
    if fresh <= unique_tokens and parameters <= law.parameters_for_tokens(fresh):
        return fresh
    most = unique_tokens * _MOST_EPOCHS
    if law.repeated_loss(parameters, most, unique_tokens) > loss:
        return math.inf
    return root(lambda tokens: loss - law.repeated_loss(parameters, tokens, unique_tokens), most * 1e-12, most)


def cheapest_repeated(loss: float, serving: Serving, unique_tokens: float, law: Chinchilla = EPOCH) -> LifetimeOptimum:
    """The N and D of least cost that reach `loss` with so many unique tokens.

    ValueError where no model reaches it on this text, however often it is read.
    """
    most = unique_tokens * _MOST_EPOCHS
    middle = law.parameters_for_tokens(unique_tokens)
    # The model that reaches the lowest loss of all on this text; those that reach `loss` lie around it.
    ablest = least(lambda n: law.repeated_loss(n, most, unique_tokens), middle / _SPAN, middle * _SPAN)
    if law.repeated_loss(ablest, most, unique_tokens) > loss:
        raise ValueError(
            f"scaling law: no model reaches a loss of {loss:g} on {unique_tokens:.3g} unique tokens, however often "
            "they are read; allow a higher loss, or find more text"
        )

    def cost(parameters: float) -> float:
        tokens = tokens_for_loss(loss, parameters, unique_tokens, law)
        return serving.training_cost(parameters, tokens) + serving.serving_cost(parameters)

    parameters = least(cost, ablest / _SPAN, ablest * _SPAN)
    tokens = tokens_for_loss(loss, parameters, unique_tokens, law)
    return lifetime(parameters, tokens, loss, serving, tokens / unique_tokens)


def best_repeated_for(cost: float, serving: Serving, unique_tokens: float, law: Chinchilla = EPOCH) -> LifetimeOptimum:
    """The N and D of least loss on so many unique tokens, where training and serving cost `cost` together."""
    if not 0 < cost < math.inf:
        raise ValueError(f"serving: cost={cost}; expected a positive number")
    most = cost / (serving.training_cost(1.0, 1.0) + serving.serving_cost(1.0))

    def loss(parameters: float) -> float:
        tokens = serving.tokens_left(parameters, cost)
        return law.repeated_loss(parameters, tokens, unique_tokens) if tokens > 0 else math.inf

    parameters = least(loss, most * 1e-13, most)
    tokens = serving.tokens_left(parameters, cost)
    return lifetime(parameters, tokens, loss(parameters), serving, tokens / unique_tokens)
