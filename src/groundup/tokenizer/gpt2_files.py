"""GPT-2's two files: `vocab.json` (spelled token to id) and `merges.txt` (a merge on each line, in order).

OpenAI named them `encoder.json` and `vocab.bpe`. They hold neither a pattern, which is GPT-2's, nor which tokens
are special: those that are no byte and that no merge makes.
"""

from collections.abc import Iterator
from pathlib import Path

from groundup.files import write_atomic, write_json
from groundup.tokenizer.bpe import apply_merges, rank_merges
from groundup.tokenizer.hugging_face import parse_object
from groundup.tokenizer.parts import Parts, SpecialTokens, read_bounded, with_special_tokens
from groundup.tokenizer.pretokenize import canonical
from groundup.tokenizer.spelling import read_ids, read_merges, read_tokens, spell
from groundup.tokenizer.vocabulary import ids_of_bytes, ids_of_tokens

NAMES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_HEADER = "#version"


def find(folder: Path) -> tuple[Path, Path] | None:
    """The paths of the two files in a folder, under either pair of names, or None."""
    pairs = ((folder / vocab, folder / merges) for vocab, merges in NAMES)
    return next((pair for pair in pairs if pair[0].is_file() and pair[1].is_file()), None)


def load(
    vocab_path: Path, merges_path: Path, pattern: str | None = None, special_tokens: SpecialTokens | None = None
) -> Parts:
    """Read the two files. Without `special_tokens`, all are special that no merge makes, bytes aside."""
    ids = parse_object(read_bounded(vocab_path))
    lines = _lines(read_bounded(merges_path))
    if special_tokens is None:
        made = {line.replace(" ", "", 1) for line in lines}
        special_tokens = [text for text in ids if len(text) > 1 and text not in made]
    listed = {text: ids[text] for text in special_tokens if text in ids}
    tokens = read_tokens(ids, listed, vocab_path.name)
    vocab = read_ids(ids, tokens, listed, vocab_path.name)
    merges = read_merges(lines, tokens, merges_path.name)
    whole, placed = with_special_tokens(vocab, merges, special_tokens)
    return Parts(whole, merges, placed, canonical(pattern or "gpt2"))


def save(parts: Parts, folder: Path) -> None:
    """Write `vocab.json` and `merges.txt` into a folder.

    ValueError for what the two files cannot say: another pattern than GPT-2's, a normalizer, a token that its
    own bytes do not encode to by merges alone.
    """
    vocab, merges = _spelled(parts)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocab)
    write_atomic(folder / "merges.txt", "\n".join([f"{_HEADER}: 0.2", *merges, ""]))


def _lines(data: bytes) -> list[str]:
    try:
        lines = data.decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"merges: not UTF-8 ({error})") from error
    return [line for line in lines[lines[0].startswith(_HEADER) :] if line]


def _spelled(parts: Parts) -> tuple[dict[str, int], list[str]]:
    if parts.pattern != "gpt2" or parts.normalizer:
        raise ValueError(f"pattern {parts.pattern!r}, normalizer {parts.normalizer}: readers assume GPT-2's and none")
    merges = list(_one_each(parts)) if parts.merges is None else parts.merges
    unreached = parts.unreached() if parts.ignore_merges and parts.merges is not None else None
    made = {left + right for left, right in merges}
    loose = (token for token in parts.ordinary().values() if len(token) > 1 and token not in made)
    unreached = unreached or next(loose, None)
    if unreached is not None:
        raise ValueError(f"token {unreached!r}: no merge leads to it, so readers could not encode to it")
    special = {token_id: text for text, token_id in parts.special_tokens.items()}
    vocab = {special.get(token_id) or spell(token): token_id for token_id, token in sorted(parts.vocab.items())}
    if len(vocab) < len(parts.vocab):
        raise ValueError("a special token is spelled like an ordinary one")
    return vocab, [f"{spell(left)} {spell(right)}" for left, right in merges]


def _one_each(parts: Parts) -> Iterator[tuple[bytes, bytes]]:
    """The merge that makes each token of a vocabulary of ranks: the last two symbols that its bytes come down to.

    The others of its splits never stand side by side. Without them, its bytes stop at those two.
    """
    ordinary = parts.ordinary()
    ids = ids_of_tokens(ordinary)
    byte_ids, ranks = ids_of_bytes(ids), rank_merges(parts.listed_merges(), ids)
    for _, token in sorted(ordinary.items()):
        own = [(ids.get(token[:cut], -1), ids.get(token[cut:], -1)) for cut in range(1, len(token))]
        held = {pair: ranks.pop(pair) for pair in own if pair in ranks}
        halves = apply_merges([byte_ids[byte] for byte in token], ranks)
        ranks |= held
        if len(halves) == 2:
            yield ordinary[halves[0]], ordinary[halves[1]]
