"""Entry 027: do 100,000 random operations on the engine leak a page, mix two requests up, or stop it?

    python experiments/027_engine_fuzz.py [--operations 100000] [--seed 0]

Submits, steps, aborts, prompts that make the model raise, drafts that are rejected, pools that are too small, on
engines of random sizes. A runner that computes each token from what lies in the pages shows every page that was lost
or shared wrongly; after each operation references are counted, and at the end of every 500 nothing may be held.
Prints a JSON line with what happened. Needs the repository's tests beside it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.inference.endurance import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    counts = run(options.operations, options.seed)
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"operations": options.operations, "seed": options.seed, "seconds": seconds, **counts}))


if __name__ == "__main__":
    main()
