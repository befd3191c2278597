"""Entry 019 of LOG.md: which numbers make the most of three minutes on two CPU cores, on tinyshakespeare?

    python experiments/019_shakespeare.py input.txt NAME tokens=3665920 [key=value ...]

Every candidate is the recipe `tinyshakespeare-cpu` with the numbers that are given, and trains for a fixed number of
tokens: as many as its quiet speed allows in the time, so a busy machine changes nothing. The last 10 % of the text are
cut away unseen; the last 5 % of the rest are what is scored.
"""

import json
import sys
import tempfile
from pathlib import Path

from groundup.config import override
from groundup.recipes import find, run
from groundup.recipes.text import cut

RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> None:
    file, name, *changes = sys.argv[1:]
    seen, _ = cut(Path(file).read_text(encoding="utf-8"), 0.1)
    recipe = override(find("tinyshakespeare-cpu"), "tail=0.05", "minutes=null", "curve_points=4", *changes)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "seen.txt"
        text.write_text(seen, encoding="utf-8", newline="")
        result = run(recipe, [text], out=Path(folder) / "run", device="cpu", progress=False)
        curve = [json.loads(line) for line in (Path(folder) / "run" / "curve.jsonl").read_text().splitlines()]
    names = ("parameters", "steps", "tokens", "epochs", "training_loss", "loss", "loss_sliding", "seconds", "seed")
    row = {"name": name, "changes": changes} | {key: result[key] for key in names}
    row["curve"] = [[point["step"], round(point["loss"], 4)] for point in curve]
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
