"""What a paper says of its model, beside the function that makes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from groundup.model.transformer import ModelConfig


@dataclass(frozen=True)
class Published:
    """A published model: its config, and how many parameters its authors say that it has.

    `parameters` is exact, or `rounded` to so many, as their tables do. It counts all, or what is not in the embedding.
    `active` is how many of them a token meets, where only some experts see it, with its own rounding; some authors
    leave out the table of tokens, which is looked up.
    """

    make: Callable[[], ModelConfig]
    parameters: int
    source: str
    rounded: int = 1
    counted: Literal["total", "non_embedding"] = "total"
    active: int | None = None
    active_rounded: int = 100_000_000
    active_with_table: bool = True
