"""What the processes run that `test_shard_writing` kills."""

from groundup.data import shard_progress, shard_writing, write_shards
from groundup.tokenizer import Tokenizer


def texts():
    for n in range(3000):
        yield f"Document number {n} says it {n % 7} times. " * (n % 5)


def write(tokenizer, folder, told):
    """All texts, in small batches, each saved and told of."""
    shard_writing._BATCH, shard_progress.SECONDS_BETWEEN_SAVES = 200, 0.0
    tokenizer = Tokenizer.load(tokenizer)
    write_shards(texts(), tokenizer, folder, shard_tokens=5000, resume=True, progress=lambda _: told.send(None))
