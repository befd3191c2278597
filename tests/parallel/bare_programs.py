"""What ranks run in `test_launch` where it matters only that they are processes: nothing that takes time to import.

python bare_programs.py NAME FOLDER
"""

import os
import sys
import time
from pathlib import Path


def counts_and_dies(rank: int, folder: Path) -> None:
    if rank == 0:
        (folder / f"attempt-{time.monotonic_ns()}").touch()
        sys.exit(3)
    time.sleep(60)


if __name__ == "__main__":
    globals()[sys.argv[1]](int(os.environ["RANK"]), Path(sys.argv[2]))
