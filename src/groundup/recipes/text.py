"""A recipe's text: from the files of the user to token shards for training and ids to validate on, kept in a folder.

A text in one piece is cut: its end is to validate on. Else documents come from files of their own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from groundup.config import plural
from groundup.corpus import discover, read_documents, split_held_out
from groundup.data import ShardSet, write_shards
from groundup.files import naming, read_json, write_json
from groundup.recipes.recipe import Recipe
from groundup.tokenizer import Tokenizer

FACTS, TOKENIZER, TRAIN, VALIDATION = "prepared.json", "tokenizer.json", "train", "validation"
# Merges are learnt from as many; with more, a vocabulary of 32,000 hardly changes.
VOCABULARY_CHARACTERS = 2 * 10**9
MOST_SPLIT_BYTES = 4 * 10**9
SAY_EVERY = 60.0

Files = Sequence[str | Path]
Ids = Integer[np.ndarray, "_"]


@dataclass(frozen=True)
class Prepared:
    """What a run reads. `begin` is the token before each of the validation documents.

    Of a text that was cut, the one validation document is its end, and `begin` the last token of what is trained on.
    Other documents end with end_of_text, which is predicted, too, and begin after it.
    """

    folder: Path
    tokenizer: Tokenizer
    shards: ShardSet
    validation: list[Ids]
    begin: int
    characters: int

    @property
    def tokens(self) -> int:
        """Tokens that the validation loss is the mean of."""
        return sum(map(len, self.validation))


def prepare(recipe: Recipe, train: Files, validation: Files, folder: str | Path) -> Prepared:
    """Learn the vocabulary, write the shards into `folder`, and open them.

    What an earlier call with the same vocabulary size and tail left there is opened as it is, without a look at files.

    Raises ValueError where files are missing or too many, and OSError for one that cannot be read.
    """
    folder = Path(folder)
    wanted = _wanted(recipe)
    if (folder / FACTS).exists():
        return _open(folder, wanted)
    _check_files(recipe, train, validation)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.tail:
        begin, characters = _write_cut(recipe, Path(train[0]), folder)
    else:
        begin, characters = _write_documents(recipe, train, validation, folder)
    names = [Path(file).name for file in (*train, *validation)]
    write_json(folder / FACTS, {**wanted, "begin": begin, "characters": characters, "files": names})
    return _open(folder, wanted)


def await_prepared(recipe: Recipe, folder: str | Path, say: Callable[[str], None]) -> Prepared:
    """What another process prepares: opened as soon as it is there, however long that takes.

    For ranks that nobody prepared for. Ranks that wait in a collective instead would take a long text for a hang.
    """
    began, told = time.monotonic(), 0.0
    while not (Path(folder) / FACTS).exists():
        time.sleep(0.2)
        if (waited := time.monotonic() - began) > told + SAY_EVERY:
            told = waited
            say(f"waiting for rank 0 to prepare {folder}: {waited:.0f} s")
    return _open(Path(folder), _wanted(recipe))


def _wanted(recipe: Recipe) -> dict[str, float]:
    by_documents = {"held_out": recipe.held_out} if recipe.held_out else {}
    return {"vocab_size": recipe.model.vocab_size, "tail": recipe.tail, **by_documents}


def _check_files(recipe: Recipe, train: Files, validation: Files) -> None:
    if recipe.tail and (len(train) != 1 or validation):
        raise ValueError(
            f"this recipe validates on the last {recipe.tail:.0%} of one text: give one file and no --valid "
            f"(given: {plural(len(train), 'file')}, {len(validation)} to validate on); the text is {recipe.text}"
        )
    if not recipe.tail and not (train and (validation or recipe.held_out)):
        raise ValueError(
            f"this recipe needs files to train on and --valid FILE to validate on (given: {len(train)} and "
            f"{len(validation)}); the text is {recipe.text}"
        )


def cut(text: str, tail: float) -> tuple[str, str]:
    """The text without its end, and its end: as nanoGPT cuts it, at `int(characters * (1 - tail))`.

    >>> cut("0123456789", 0.1)
    ('012345678', '9')
    """
    place = int(len(text) * (1.0 - tail))
    return text[:place], text[place:]


def _write_cut(recipe: Recipe, file: Path, folder: Path) -> tuple[int, int]:
    """Shards of both parts; (the last token that is trained on, characters to validate on)."""
    with naming(file):
        text = file.read_text(encoding="utf-8")
    first, last = cut(text, recipe.tail)
    if not (first and last):
        raise ValueError(f"{file}: {plural(len(text), 'character')}; too few to train on and to validate on")
    tokenizer = Tokenizer.train_from_iterator([first], recipe.model.vocab_size)
    _write(tokenizer, [first], [last], folder)
    return tokenizer.encode(first[-64:])[-1], len(last)


def _write_documents(recipe: Recipe, train: Files, validation: Files, folder: Path) -> tuple[int, int]:
    if not validation:
        return _write_split(recipe, train, folder)
    tokenizer = Tokenizer.train_from_iterator(_first_texts(train, VOCABULARY_CHARACTERS), recipe.model.vocab_size)
    held_out = [document.text for document in read_documents(validation)]
    _write(tokenizer, [Path(file) for file in train], held_out, folder)
    return tokenizer.end_of_text, sum(map(len, held_out))


def _write_split(recipe: Recipe, files: Files, folder: Path) -> tuple[int, int]:
    """Documents of the same files to train and to validate on; all of them are read into memory for it."""
    size = sum(path.stat().st_size for path in discover(files))
    if size > MOST_SPLIT_BYTES:
        raise ValueError(
            f"{size / 1e9:.1f} GB of text: too much to choose what to validate on from all of it; name files for that "
            "with --valid FILE"
        )
    split = split_held_out(read_documents(files), recipe.held_out)
    learnt, held_out = ([document.text for document in part] for part in (split.train, split.held_out))
    tokenizer = Tokenizer.train_from_iterator(learnt, recipe.model.vocab_size)
    _write(tokenizer, learnt, held_out, folder)
    return tokenizer.end_of_text, sum(map(len, held_out))


def _first_texts(files: Files, most: int) -> Iterator[str]:
    """Documents from the first on, until they have `most` characters together."""
    size = 0
    for document in read_documents(files):
        yield document.text
        if (size := size + len(document.text)) >= most:
            return


def _write(tokenizer: Tokenizer, train: list[str] | list[Path], validation: list[str], folder: Path) -> None:
    tokenizer.save(folder / TOKENIZER)
    write_shards(train, tokenizer, folder / TRAIN, overwrite=True)
    write_shards(validation, tokenizer, folder / VALIDATION, overwrite=True)


def _open(folder: Path, wanted: dict[str, float]) -> Prepared:
    facts = read_json(folder / FACTS)
    if other := [key for key in wanted if facts.get(key) != wanted[key]]:
        raise ValueError(
            f"{folder}: prepared with {other[0]}={facts.get(other[0])}, and this recipe has {wanted[other[0]]}; "
            "name another folder"
        )
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    held_out = ShardSet.open(folder / VALIDATION)
    ids = held_out.read(0, held_out.num_tokens).astype(np.int64)
    ends = np.flatnonzero(ids == tokenizer.end_of_text) + 1
    documents = np.split(ids, ends)[:-1]
    # What was cut off goes on in a text that was not there: its end is not to be predicted.
    documents = [document[:-1] for document in documents] if wanted["tail"] else documents
    return Prepared(folder, tokenizer, ShardSet.open(folder / TRAIN), documents, facts["begin"], facts["characters"])
