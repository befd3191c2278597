r"""Which size of model, and how many tokens, for a given number of FLOPs: Chinchilla's law and its optimum.

    L(N, D) = E + A / N^alpha + B / D^beta        nats per token, with N parameters and D tokens

Hoffmann et al. 2022, eq. 2 (arXiv:2203.15556). Along C = 6 N D the least loss is at (their eq. 4)

    N = G (C / 6)^(beta / (alpha + beta)),  D = (C / 6) / N,  G = (alpha A / (beta B))^(1 / (alpha + beta))

With U unique tokens and more wanted, text is read again and is worth less each time, and so are parameters beyond those
that U tokens ask for: Muennighoff et al. 2023, eq. 5 (arXiv:2305.16264). Then there is no closed form, and none is
needed.

These laws are of models far larger than those a laptop trains, on web text. For runs of minutes see `law.py`.
"""

import math
from dataclasses import dataclass

FLOPS_PER_PARAMETER_AND_TOKEN = 6
REPEAT_WORTH = 15.387756
"""R* of tokens: repeats beyond so many passes add next to nothing."""

EXCESS_WORTH = 5.309743
"""R* of parameters."""

_STEPS = 4_000


@dataclass(frozen=True)
class Chinchilla:
    """The constants of a fit of L(N, D)."""

    floor: float
    size_scale: float
    size_exponent: float
    data_scale: float
    data_exponent: float
    fitted_on: str

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token after training `parameters` on `tokens` that are read once."""
        _check(parameters=parameters, tokens=tokens)
        return (
            self.floor + self.size_scale / parameters**self.size_exponent + self.data_scale / tokens**self.data_exponent
        )

    def parameters_for_tokens(self, tokens: float) -> float:
        """The N at which D = `tokens` is optimal: the inverse of `optimum`, in D."""
        _check(tokens=tokens)
        ratio = self.size_exponent * self.size_scale / (self.data_exponent * self.data_scale)
        return ratio ** (1 / self.size_exponent) * tokens ** (self.data_exponent / self.size_exponent)

    def repeated_loss(self, parameters: float, tokens: float, unique: float) -> float:
        """`loss`, where of `tokens` only `unique` are different ones."""
        _check(parameters=parameters, tokens=tokens, unique=unique)
        asked = min(parameters, self.parameters_for_tokens(min(unique, tokens)))
        fresh = min(unique, tokens)
        return self.loss(
            worth(asked, parameters / asked - 1, EXCESS_WORTH), worth(fresh, tokens / fresh - 1, REPEAT_WORTH)
        )


@dataclass(frozen=True)
class Optimum:
    """Where the least loss of a budget is. `epochs` is 1 or less while unique tokens suffice."""

    parameters: float
    tokens: float
    loss: float
    epochs: float | None = None

    @property
    def tokens_per_parameter(self) -> float:
        """About 20 is the rule of thumb."""
        return self.tokens / self.parameters


EPOCH = Chinchilla(
    1.8172,
    482.01,
    0.3478,
    2085.43,
    0.3658,
    fitted_on="Hoffmann's runs again, by Besiroglu et al. 2024 (arXiv:2404.10102)",
)
HOFFMANN = Chinchilla(1.69, 406.4, 0.34, 410.7, 0.28, fitted_on="Hoffmann et al. 2022, eq. 10 (arXiv:2203.15556)")
"""As printed, rounded: its optimum disagrees with the paper's own other two methods."""


def worth(unique: float, repeats: float, limit: float) -> float:
    """U + U R* (1 - exp(-R / R*)): U unique ones, and R times as many that are not.

    >>> worth(100.0, 0.0, 15.0), worth(100.0, math.inf, 15.0)
    (100.0, 1600.0)
    """
    return unique * (1 + limit * -math.expm1(-repeats / limit))


def optimum(flops: float, law: Chinchilla = EPOCH, unique_tokens: float | None = None) -> Optimum:
    """The N and D of least loss with 6 N D = `flops`.

    `unique_tokens` are all the different ones that there are; None: as many as are asked for. ValueError for budgets
    that are no positive number.
    """
    _check(flops=flops)
    both = law.size_exponent + law.data_exponent
    products = flops / FLOPS_PER_PARAMETER_AND_TOKEN
    scale = (law.size_exponent * law.size_scale / (law.data_exponent * law.data_scale)) ** (1 / both)
    parameters = scale * products ** (law.data_exponent / both)
    tokens = products / parameters
    if unique_tokens is None:
        return Optimum(parameters, tokens, law.loss(parameters, tokens))
    _check(unique_tokens=unique_tokens)
    if tokens <= unique_tokens:
        return Optimum(parameters, tokens, law.loss(parameters, tokens), tokens / unique_tokens)
    # Too little text: the best is somewhere between this shape, on repeated text, and a larger one that reads it less.
    sizes = (parameters * 1e4 ** (step / _STEPS - 0.25) for step in range(_STEPS + 1))
    best = min(sizes, key=lambda n: law.repeated_loss(n, products / n, unique_tokens))
    tokens = products / best
    return Optimum(best, tokens, law.repeated_loss(best, tokens, unique_tokens), tokens / unique_tokens)


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"scaling law: {name}={value}; expected a positive number")
