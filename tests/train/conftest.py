import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(tmp_path):
    """A folder in memory where there is one: these tests save hundreds of times, and wait for no disk there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)
