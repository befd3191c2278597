"""Saving from many ranks while training goes on.

    step      agree who writes what | copy it |  next steps ...            next save, or finish
    thread                                    |  write | rank 0: commit |  <- waited for
                                                 .step-9.X.tmp/ --rename--> step-9/

In the step, ranks agree (a collective) and copy what they will write. The rest is done by a thread of each, which uses
no collectives, since those of training would meet them: it leaves files. A rank that has written everything says so by
a file of checksums; rank 0 waits for all of them, writes the index, and renames the folder. A file beside it stands for
the attempt: whoever fails removes it, which works on a full disk too, and then everyone knows.

So a kill at any moment leaves the checkpoints that were there, and the new one whole or not at all. The folder has to be
on a file system that all ranks see.
"""

import json
import logging
import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from groundup.files import encode_json, fsync_directory, read_json, write_durably
from groundup.parallel.checkpoint_index import INDEX, Entry, File, Index, Stored, checksums, header_sha256, read_index
from groundup.parallel.pieces import Parts
from groundup.parallel.regions import Region
from groundup.parallel.stored_parts import Piece, stored_shape
from groundup.parallel.writers import Writing, assign, describe
from groundup.step_folders import free_name, prune, step_folders, sweep
from groundup.tensorfile import split_by_bytes, write_tensors

SHARD_BYTES = 1 << 30
"""Of tensors in a file; the library copies a whole file's while it writes it."""

logger = logging.getLogger("groundup.parallel")
