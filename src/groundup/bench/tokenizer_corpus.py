"""The text and the vocabulary that every program in a tokenizer benchmark gets, as files in one folder."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundup import bundled
from groundup.bench.record import checkout
from groundup.bench.tokenizer_turns import SEPARATOR
from groundup.corpus import read_documents
from groundup.environ import env
from groundup.tokenizer import Tokenizer, formats

MEGABYTE = 1_000_000
TRAINED_SIZE = 32_000


@dataclass(frozen=True)
class Cut:
    """The first bytes of the text: a UTF-8 file with `<|endoftext|>` between documents."""

    path: Path
    text_bytes: int
    documents: int

    @property
    def megabytes(self) -> float:
        return self.text_bytes / MEGABYTE

    def __str__(self) -> str:
        return f"{self.megabytes:.3g} MB"


@dataclass(frozen=True)
class Corpus:
    """Where the text is from, and its cuts."""

    source: str
    folder: Path
    whole: Cut

    def cut(self, megabytes: float) -> Cut:
        """The first `megabytes`, or everything where there is no more."""
        if megabytes >= self.whole.megabytes:
            return self.whole
        documents = self.whole.path.read_bytes().decode().split(SEPARATOR)
        return write_cut(self.folder / f"{megabytes:g}mb.txt", documents, round(megabytes * MEGABYTE))

    @property
    def facts(self) -> dict[str, str | int]:
        return {"source": self.source, "bytes": self.whole.text_bytes, "documents": self.whole.documents}


@dataclass(frozen=True)
class Vocabulary:
    """`folder` has tokenizer.json and ranks.tiktoken: the same tokens in the forms that programs read."""

    name: str
    folder: Path
    size: int
    end_of_text: int

    @property
    def facts(self) -> dict[str, str | int]:
        return {"name": self.name, "size": self.size}


def prepare_corpus(files: Sequence[Path], folder: Path, megabytes: float) -> Corpus:
    """The first `megabytes` of `files`, or of the bundled text where none are named.

    The bundled text is measured at its own size: repeated to a larger one, it would only ask what caches know.
    """
    documents = (document.text for document in read_documents(list(files) or bundled.path()))
    whole = write_cut(folder / "text.txt", documents, round(megabytes * MEGABYTE))
    named = ", ".join(file.name for file in files)
    return Corpus(named or f"the bundled text (State of the Union), {whole}, not repeated", folder, whole)


def write_cut(path: Path, documents: Iterable[str], most_bytes: int) -> Cut:
    """Write documents until `most_bytes` are full, the last one cut between two characters."""
    kept = list(_first(documents, most_bytes))
    data = SEPARATOR.join(kept).encode()
    path.write_bytes(data)
    return Cut(path, len(data), len(kept))


def _first(documents: Iterable[str], most_bytes: int) -> Iterator[str]:
    room = most_bytes
    for document in documents:
        # A document that spells the separator would be two for some programs, and one with a token for others.
        data = document.replace(SEPARATOR, " ").encode("utf-8", "replace")
        yield data[:room].decode("utf-8", "ignore")
        room -= len(data) + len(SEPARATOR)
        if room <= 0:
            return


def prepare_vocabulary(corpus: Corpus, folder: Path) -> Vocabulary:
    """GPT-2's, where its files are (see `find_gpt2`), else one of 32,000 tokens trained on the text."""
    source = find_gpt2()
    if source is not None:
        return write_vocabulary("GPT-2's", Tokenizer.load(source), folder)
    tokenizer = Tokenizer.train(corpus.whole.path, TRAINED_SIZE, [SEPARATOR])
    return write_vocabulary("trained on the text", tokenizer, folder)


def find_gpt2() -> Path | None:
    """The folder `gpt2` with vocab.json and merges.txt in GROUNDUP_VOCABULARIES, or in .vocabularies of a checkout.

    ValueError when GROUNDUP_VOCABULARIES is set and does not have it.
    """
    named, root = env("GROUNDUP_VOCABULARIES"), checkout()
    folder = Path(named) if named else root / ".vocabularies" if root else None
    if folder and all((folder / "gpt2" / name).is_file() for name in ("vocab.json", "merges.txt")):
        return folder / "gpt2"
    if named:
        raise ValueError(f"GROUNDUP_VOCABULARIES={named}: no gpt2/vocab.json and gpt2/merges.txt there")
    return None


def write_vocabulary(name: str, tokenizer: Tokenizer, folder: Path) -> Vocabulary:
    """Write the forms that programs read. ValueError for a vocabulary with which they would not do the same."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    formats.export(tokenizer.parts(), folder / "ranks.tiktoken", "tiktoken")
    return Vocabulary(name, folder, tokenizer.vocab_size, tokenizer.end_of_text)
