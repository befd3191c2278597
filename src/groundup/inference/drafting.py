"""Guessed tokens in the engine: who proposes them, and what becomes of each.

    text so far      the cat sat on              request.ids
    guesses                         the  mat     from a `Proposer`; cut before the first that is no token
    one pass         what the model draws after each:
                                    the  hat     kept: one guess, and the draw that differs

See `speculative` for where guesses come from, and why answers are those without any.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from groundup.inference.choosing import choose
from groundup.inference.request import Request


class Proposer(Protocol):
    """Guesses up to `count` next tokens of a request, to be verified in one pass.

    One with a method `observe(request, start, states)` is also given what the model's head read of each token that
    stands, the first at place `start`. Passes then run through torch, where those states are at hand.
    """

    def propose(self, request: Request, count: int) -> list[int]: ...


Observer = Callable[[Request, int, Tensor], None]


class Drafting:
    """Asks a proposer for at most `count` guesses at a time, and counts those that were verified and accepted."""

    def __init__(self, proposer: Proposer, count: int, vocab_size: int) -> None:
        self.proposer, self.count, self.vocab_size = proposer, count, vocab_size
        self.observe: Observer | None = getattr(proposer, "observe", None)
        self.drafted = self.accepted = 0

    def propose(self, request: Request) -> list[int]:
        """Guesses that the model could draw: none from the first on that is no token of the vocabulary."""
        guesses = list(self.proposer.propose(request, self.count))[: self.count]
        return list(takewhile(lambda token: 0 <= token < self.vocab_size, guesses))

    def verify(
        self, request: Request, draft: Sequence[int], logits: Float[Tensor, "drafted_and_one vocab"]
    ) -> Iterator[str]:
        """Sample after each drafted token as long as the draft goes on the same way: the texts that this makes visible.

        Each token is drawn from the model's own distribution with the request's next random number, so the answer is
        the one without drafts (the case of a draft without probabilities in Leviathan et al. 2022, arXiv:2211.17192).
        Raises what goes wrong at a token; those before it stand.
        """
        self.drafted += len(draft)
        for row, guess in zip(logits, [*draft, None], strict=True):
            (choice,) = choose(row[None], [request])
            if isinstance(choice, Exception):
                raise choice
            yield request.push(*choice)
            self.accepted += choice.token == guess
            if request.finish_reason is not None or choice.token != guess:
                break
