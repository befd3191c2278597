"""A small text with structure, and one finished build of it that many tests look at."""

import random

import pytest

from groundup.build import build
from groundup.build.settings import BuildSettings

NOUNS = ["river", "king", "ship", "harvest", "letter", "city", "soldier", "garden", "winter", "council"]
VERBS = ["found", "left", "praised", "followed", "feared", "remembered", "built", "crossed"]
SMALL = BuildSettings(
    budget_seconds=60.0, d_model=64, num_layers=1, vocab_size=300, context_length=64, batch_size=8, max_epochs=2.0,
    compile=False, precision="fp32", threads=1,
)  # fmt: skip


def story(seed: int, sentences: int = 12) -> str:
    """Paragraphs of simple sentences, the same for the same seed."""
    draw = random.Random(seed)
    lines = [
        f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)} of the {draw.choice(NOUNS)}."
        for _ in range(sentences)
    ]
    return "\n\n".join(" ".join(lines[i : i + 4]) for i in range(0, sentences, 4))


@pytest.fixture(scope="session")
def stories(tmp_path_factory):
    """A folder of forty short documents."""
    folder = tmp_path_factory.mktemp("stories")
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(story(i, 40))
    return folder


@pytest.fixture(scope="session")
def finished(stories, tmp_path_factory):
    """(run folder, result) of a small build."""
    out = tmp_path_factory.mktemp("runs") / "small"
    result = build([str(stories)], SMALL, out=str(out), device="cpu")
    return out, result
