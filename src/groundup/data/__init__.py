"""Data: from documents to token shards on disk, and from shards or conversations to training batches."""

from groundup.data.batch import Batch, to_device
from groundup.data.conversations import Conversations
from groundup.data.epochs import effective_tokens
from groundup.data.loader import Loader
from groundup.data.packing import pack
from groundup.data.shard_writing import write_shards
from groundup.data.shards import ShardSet

__all__ = [
    "Batch",
    "Conversations",
    "Loader",
    "ShardSet",
    "effective_tokens",
    "pack",
    "to_device",
    "write_shards",
]
