"""What repeated passes over the same text are worth, and what to do about it."""

import math

# R*, fitted on models of up to 9 B parameters: the worth of a repeat decays by e with this many passes.
DECAY_PASSES = 15.387756


def worth_of_repeats(epochs: float) -> float:
    r"""The share of new text's value that `epochs` passes have: 1 for a first pass, falling after it.

    With U distinct tokens and R = epochs - 1 repeats, the tokens seen are worth
    U + U R* (1 - exp(-R / R*)) distinct ones, R* = 15.39; divided by the U (1 + R) seen.
    Muennighoff et al. 2023, eq. 5 (arXiv:2305.16264).
    """
    if epochs <= 1:
        return 1.0
    repeats = epochs - 1
    return (1 - DECAY_PASSES * math.expm1(-repeats / DECAY_PASSES)) / epochs


def advice(epochs: float) -> str:
    """What a run's number of passes over its text means for the next run."""
    worth = f"{100 * worth_of_repeats(epochs):.0f} %"
    if epochs <= 1:
        return "No text was repeated: more time or a faster machine would help before more text would."
    if epochs <= 4:
        return f"Repeats are still worth about {worth} of new text; up to four passes cost almost nothing."
    if epochs <= 16:
        return (
            f"The tokens seen were worth about {worth} of as many new ones. More text would now help; "
            "a larger model would mostly memorise."
        )
    return (
        f"The tokens seen were worth only about {worth} of as many new ones. Add text, or give a smaller "
        "model less time: further passes teach next to nothing."
    )
