"""A made-up machine: a folder that stands for /."""

from pathlib import Path


def made(root: Path, files: dict[str, str]) -> Path:
    """`files` (name -> text) below `root`, which is returned."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
