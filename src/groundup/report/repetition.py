"""What repeated passes over the same text are worth, and what to do about it."""

from groundup.data.epochs import effective_tokens


def worth_of_repeats(epochs: float) -> float:
    """The share of new text's value that `epochs` passes have: 1 for a first pass, falling after it.

    >>> round(worth_of_repeats(4), 2)
    0.93
    """
    return effective_tokens(1.0, epochs) / epochs if epochs > 1 else 1.0


def advice(epochs: float, kept: float = 1.0) -> str:
    """What a run's number of passes over its text means for the next run.

    kept: the share of training after which the weights were best on other text.
    """
    if kept < 1:
        return (
            f"After {kept * epochs:.1f} of {epochs:.1f} passes the model became no better, or worse, on text that it "
            "does not train on; the weights from then are kept. More text would help; else give it less time."
        )
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
