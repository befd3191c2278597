"""Hugging Face's `tokenizers` in the tokenizer benchmarks. Started by `groundup bench`."""

import os
from functools import partial
from importlib.metadata import version

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VERSIONS = {"tokenizers": version("tokenizers")}


def set_threads(task):
    os.environ["RAYON_NUM_THREADS"] = str(task.threads)  # read when its pool of threads is made, at the first use
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if task.threads > 1 else "false"


def load(task):
    set_threads(task)
    return Tokenizer.from_file(str(task.vocabulary / "tokenizer.json"))


def encodings(output):
    return (encoding.ids for encoding in output)


def batch(task):
    return partial(load(task).encode_batch_fast, task.texts, add_special_tokens=False), encodings


def encode_one(task):
    tokenizer, string = load(task), task.strings[0]
    return lambda: tokenizer.encode(string, add_special_tokens=False).ids, lambda output: [output]


def encode_many(task):
    tokenizer = load(task)
    return lambda: [tokenizer.encode(s, add_special_tokens=False).ids for s in task.strings], lambda output: output


def decode_text(task):
    import numpy

    ids = numpy.load(task.ids_path).tolist()
    return partial(load(task).decode, ids, skip_special_tokens=False), lambda output: [output.encode()]


def train(task):
    set_threads(task)
    texts = task.texts

    def call():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=task.vocab_size,
            special_tokens=[task.separator],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    return call, lambda tokenizer: tokens(tokenizer, task.separator)


def tokens(tokenizer, separator):
    """The bytes of every token, out of the characters that stand for bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    byte_of = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    for token in tokenizer.get_vocab():
        yield token.encode() if token == separator else bytes(byte_of[character] for character in token)


WORKS = {work.__name__: work for work in (batch, encode_one, encode_many, decode_text, train)}
