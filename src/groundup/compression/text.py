"""The text of a comparison: a part that variants are made with, and another that they are scored on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from groundup import bundled
from groundup.compression.settings import CompressSettings
from groundup.corpus import read_documents, split_held_out
from groundup.data.batch import Batch
from groundup.tokenizer import Tokenizer

HELD_OUT_FILE = Path("data") / "held_out.jsonl"
DOCUMENTS = 8
"""The scored text is the beginnings of at most so many documents."""
CALIBRATION_BYTES = 2_000_000


@dataclass(frozen=True)
class Texts:
    """`scored`: pieces that nothing was chosen on. `windows`: (rows, context_length + 1) ids for everything else."""

    source: str
    scored: list[str]
    windows: Int[Tensor, "rows columns"]

    def calibration(self, count: int) -> list[Batch]:
        """The first windows, one batch each."""
        return [{"tokens": row[None]} for row in self.windows[:count]]

    def draws(self, batch: int, steps: int, seed: int) -> Iterator[Batch]:
        """`steps` batches of windows, drawn with a seed."""
        for rows in self._drawn(batch, steps, seed):
            yield {"tokens": self.windows[rows]}

    def drawn_once(self, batch: int, steps: int, seed: int) -> list[Batch]:
        """Every window that `draws` gives with these numbers, once, in the text's order."""
        rows = torch.cat([torch.empty(0, dtype=torch.long), *self._drawn(batch, steps, seed)]).unique()
        return [{"tokens": self.windows[few]} for few in rows.split(batch)]

    def _drawn(self, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            yield torch.randint(len(self.windows), (batch,), generator=generator)


def read_texts(model: str | Path, files: Sequence[str], tokenizer: Tokenizer, settings: CompressSettings) -> Texts:
    """From the files; without any, the text that a run of groundup held out, or else the bundled text.

    Raises ValueError for too little text.
    """
    run = Path(model) / HELD_OUT_FILE
    paths = [Path(file) for file in files] or [run if run.is_file() else bundled.path()]
    named = ", ".join(files) or ("the run's held-out text" if run.is_file() else "the bundled text")
    split = split_held_out(list(read_documents(paths)), 0.3, settings.seed)
    scored = _beginnings([d.text for d in split.held_out][:DOCUMENTS], settings.score_bytes)
    return Texts(named, scored, _windows([d.text for d in split.train], tokenizer, settings.context_length))


def _beginnings(texts: list[str], most_bytes: int) -> list[str]:
    each = most_bytes // len(texts)
    pieces = (text.encode()[:each].decode("utf-8", "ignore") for text in texts)
    return [piece for piece in pieces if piece] or [texts[0][:1]]


def _windows(texts: list[str], tokenizer: Tokenizer, length: int) -> Int[Tensor, "rows columns"]:
    ids, size = [], 0
    for text in texts:
        ids += [*tokenizer.encode(text), tokenizer.end_of_text]
        size += len(text)
        if size >= CALIBRATION_BYTES:
            break
    rows = len(ids) // (length + 1)
    if not rows:
        raise ValueError(f"compress: the text has {len(ids)} tokens besides those that are scored; one window takes "
                         f"{length + 1}, so give more text or a smaller context_length")  # fmt: skip
    return torch.tensor(ids[: rows * (length + 1)]).view(rows, length + 1)
