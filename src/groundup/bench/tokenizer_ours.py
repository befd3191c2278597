"""groundup's side of the tokenizer benchmarks: each work is one call of the public `Tokenizer`.

Loaded by path from `tokenizer_turns.py`: what is imported here, every fresh process pays for.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from groundup.tokenizer import Tokenizer

if TYPE_CHECKING:
    from groundup.bench.tokenizer_turns import Job, Task

VERSIONS = {"numpy": np.__version__}


def encode_ragged(task: "Task") -> "Job":
    return partial(load(task).encode_ragged, task.texts, workers=task.threads), lambda output: [output[0]]


def encode_bytes_ragged(task: "Task") -> "Job":
    data = [text.encode() for text in task.texts]
    return partial(load(task).encode_bytes_ragged, data, workers=task.threads), lambda output: [output[0]]


def encode_file(task: "Task") -> "Job":
    return partial(load(task).encode_file, task.path, workers=task.threads), one


def encode_batch(task: "Task") -> "Job":
    return partial(load(task).encode_batch, task.texts, workers=task.threads), each


def encode_one(task: "Task") -> "Job":
    return partial(load(task).encode, task.strings[0]), one


def encode_one_array(task: "Task") -> "Job":
    return partial(load(task).encode_array, task.strings[0]), one


def encode_many(task: "Task") -> "Job":
    return partial(call_each, load(task).encode, task.strings), each


def encode_many_arrays(task: "Task") -> "Job":
    return partial(call_each, load(task).encode_array, task.strings), each


def decode_bytes_array(task: "Task") -> "Job":
    return partial(load(task).decode_bytes, np.load(task.ids_path)), one


def decode_bytes_list(task: "Task") -> "Job":
    return partial(load(task).decode_bytes, np.load(task.ids_path).tolist()), one


def decode_text_array(task: "Task") -> "Job":
    return partial(load(task).decode, np.load(task.ids_path)), encoded


def decode_text_list(task: "Task") -> "Job":
    return partial(load(task).decode, np.load(task.ids_path).tolist()), encoded


def train(task: "Task") -> "Job":
    call = partial(Tokenizer.train, task.path, task.vocab_size, [task.separator], "gpt2", workers=task.threads)
    return call, lambda tokenizer: tokenizer.vocab.values()


WORKS = {
    work.__name__: work
    for work in (
        encode_ragged,
        encode_bytes_ragged,
        encode_file,
        encode_batch,
        encode_one,
        encode_one_array,
        encode_many,
        encode_many_arrays,
        decode_bytes_array,
        decode_bytes_list,
        decode_text_array,
        decode_text_list,
        train,
    )
}


def load(task: "Task") -> Tokenizer:
    """With the tables that a tokenizer makes at its first use: the other programs make theirs when they load."""
    tokenizer = Tokenizer.load(task.vocabulary)
    tokenizer.encode("")
    return tokenizer


def call_each(function: Callable[[str], Any], strings: list[str]) -> list[Any]:
    return [function(string) for string in strings]


def one(output: Any) -> Iterable[Any]:
    return [output]


def each(output: Any) -> Iterable[Any]:
    return output


def encoded(output: str) -> Iterable[bytes]:
    return [output.encode()]
