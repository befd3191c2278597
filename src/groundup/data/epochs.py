"""What repeated data is worth."""

import math

#: Fitted decay of the value of repetitions.
REPETITIONS_SCALE = 15.387756


def effective_tokens(unique_tokens: int | float, epochs: int | float) -> float:
    r"""Unique tokens that would teach as much as `epochs` passes over `unique_tokens`.

    D' = U + U R* (1 - exp(-R / R*)),   R = epochs - 1 repetitions,   R* = 15.39

    so a second pass is worth 97 % of new text, the fourth 85 %, and no number of passes is worth more than
    16.4 times the text. Up to one pass there is nothing to discount: D' is what was seen.

    Muennighoff et al. 2023, eq. 5 and section 6 (arXiv:2305.16264). The fit is of models from 7 million
    to 9 billion parameters on web text; it says nothing of a model that is large enough to memorise its data.

    >>> round(effective_tokens(100, 4))
    373
    """
    if unique_tokens < 0 or epochs < 0:
        raise ValueError(f"tokens and epochs must not be negative: {unique_tokens}, {epochs}")
    if epochs <= 1:
        return float(unique_tokens * epochs)
    repetitions = epochs - 1
    return unique_tokens * (1 + REPETITIONS_SCALE * (1 - math.exp(-repetitions / REPETITIONS_SCALE)))
