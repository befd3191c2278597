"""gigatoken in the tokenizer benchmarks. Started by `groundup bench`."""

import os
from functools import partial
from importlib.metadata import version

import gigatoken

VERSIONS = {"gigatoken": version("gigatoken")}


def load(task):
    """With what a tokenizer loads at its first use, as far as the empty string makes it."""
    os.environ["RAYON_NUM_THREADS"] = str(task.threads)  # read when its pool of threads is made, at the first use
    ranks = task.vocabulary / "ranks.tiktoken"
    tokenizer = gigatoken.Tokenizer.from_tiktoken(ranks, "gpt2", {task.separator: task.end_of_text})
    tokenizer.encode("")
    return tokenizer


def flat(output):
    import awkward
    import numpy

    return [numpy.asarray(awkward.flatten(output))]


def one(output):
    return [output]


def each(output):
    return output


def batch(task):
    """A list of texts, as the other programs get it."""
    return partial(load(task).encode_batch, task.texts, parallel=task.threads > 1), flat


def batch_source(task):
    """What its documentation advises for a corpus in memory: one buffer, cut at the separator."""
    source = gigatoken.BytesSource([task.path.read_bytes()], task.separator)
    return partial(load(task).encode_batch, source, parallel=task.threads > 1), flat


def files_whole(task):
    source = gigatoken.TextFileSource([task.path])
    return partial(load(task).encode_files, source, parallel=task.threads > 1), flat


def files_split(task):
    source = gigatoken.TextFileSource([task.path], task.separator)
    return partial(load(task).encode_files, source, parallel=task.threads > 1), flat


def batch_list(task):
    return partial(load(task).encode_batch_list, task.texts, parallel=task.threads > 1), each


def encode_one(task):
    return partial(load(task).encode, task.strings[0]), one


def encode_many(task):
    encode = load(task).encode
    return lambda: [encode(string) for string in task.strings], each


def decode_array(task):
    import numpy

    return partial(load(task).decode, numpy.load(task.ids_path)), one


def decode_list(task):
    import numpy

    return partial(load(task).decode, numpy.load(task.ids_path).tolist()), one


def decode_text(task):
    import numpy

    decode, ids = load(task).decode, numpy.load(task.ids_path)
    return lambda: decode(ids).decode("utf-8", "replace"), lambda output: [output.encode()]


def _train(task, data):
    os.environ["RAYON_NUM_THREADS"] = str(task.threads)
    separator = task.separator.encode()
    call = partial(gigatoken.train_bpe, data, task.vocab_size, [task.separator], separator=separator)
    return call, lambda output: output[0].values()


def train_file(task):
    return _train(task, task.path)


def train_bytes(task):
    return _train(task, task.path.read_bytes())


WORKS = {
    work.__name__: work
    for work in (
        batch,
        batch_source,
        files_whole,
        files_split,
        batch_list,
        encode_one,
        encode_many,
        decode_array,
        decode_list,
        decode_text,
        train_file,
        train_bytes,
    )
}
