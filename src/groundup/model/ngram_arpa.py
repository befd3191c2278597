"""ARPA files: the text form of n-gram models that KenLM, SRILM and others read and write.

Sections of n-grams of one length, a line each: log10 P of the last word, the words, log10 of the backoff weight.
`<s>` is the begin symbol; its own probability means nothing, as it is never predicted.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from groundup.files import write_atomic
from groundup.model.ngram import KneserNey
from groundup.model.ngram_files import check_trie
from groundup.model.ngram_trie import Trie, kernels

BEGIN = "<s>"
NEVER = -99.0  # what stands for log10 of 0
Section = tuple[np.ndarray, np.ndarray, np.ndarray]  # token ids [grams, n], P and backoff weights [grams]


def save_arpa(model: KneserNey, path: str | Path, words: Sequence[str]) -> None:
    """Write a model as ARPA, the token i as `words[i]`.

    KenLM wants a word `</s>`, which it scores at the end of a sentence, and takes what it does not know for `<unk>`:
    so name end_of_text `</s>`, and an id that never occurs `<unk>`. A sentence there is a document here.
    """
    _check_words(words, model.vocab_size)
    symbols = [*words, BEGIN]
    trie = model.trie
    grams = np.arange(len(symbols))[:, None]
    lines = ["\\data\\", *(f"ngram {n}={size}" for n, size in enumerate(np.diff(trie.levels[1:]).tolist(), 1))]
    for n in range(1, trie.order + 1):
        nodes = slice(int(trie.levels[n]), int(trie.levels[n + 1]))
        if n > 1:
            followers = np.diff(trie.first[trie.levels[n - 1] : trie.levels[n] + 1])
            grams = np.column_stack([np.repeat(grams, followers, axis=0), trie.token[nodes]])
        lines += ["", f"\\{n}-grams:", *_lines(trie, nodes, [" ".join(symbols[t] for t in g) for g in grams.tolist()])]
    write_atomic(path, "\n".join([*lines, "", "\\end\\", ""]))


def load_arpa(path: str | Path) -> tuple[KneserNey, list[str]]:
    """A model from an ARPA file, and the words of its token ids, in the order of the file's unigrams.

    ValueError, with the line, for what is no ARPA file or lacks the shorter n-grams that a longer one needs.
    """
    lines = Path(path).read_text("utf-8").splitlines()
    sizes = _sizes(path, lines)
    rows = {n: _rows(path, lines, n, size) for n, size in enumerate(sizes, 1)}
    words = [gram for _, gram, _ in rows[1] if gram != BEGIN]
    _check_words(words, len(words), str(path))
    numbers = {word: number for number, word in enumerate([*words, BEGIN])}
    if len(rows[1]) == len(words):
        rows[1].append((NEVER, BEGIN, 0.0))
    sections = [_section(path, rows[n], numbers, n) for n in rows]
    trie = _trie(path, sections, len(numbers))
    check_trie(path, trie)
    return KneserNey.of(trie), words


def _check_words(words: Sequence[str], vocab_size: int, where: str = "save_arpa") -> None:
    if len(words) != vocab_size or not words:
        raise ValueError(f"{where}: {len(words)} words; expected one for each of {vocab_size} tokens")
    if bad := [word for word in words if len(word.split()) != 1 or word.strip() != word or word == BEGIN]:
        raise ValueError(f"{where}: the word {bad[0]!r}; expected words without white space, and none named {BEGIN}")
    if len(set(words)) < len(words):
        twice = next(word for number, word in enumerate(words) if word in words[:number])
        raise ValueError(f"{where}: the word {twice!r} occurs twice; expected a name of its own for each token")


def _lines(trie: Trie, nodes: slice, grams: list[str]) -> Iterator[str]:
    begin = trie.symbols if nodes.start == 1 else -1
    with np.errstate(divide="ignore"):
        log10_prob = np.log10(trie.prob[nodes]).tolist()
        log10_backoff = np.log10(trie.backoff[nodes]).tolist()  # empty for the highest order
    if begin >= 0:
        log10_prob[begin - 1] = NEVER
    if not log10_backoff:
        return (f"{p:.12g}\t{gram}" for p, gram in zip(log10_prob, grams, strict=True))
    return (f"{p:.12g}\t{gram}\t{b:.12g}" for p, gram, b in zip(log10_prob, grams, log10_backoff, strict=True))


def _sizes(path: str | Path, lines: list[str]) -> list[int]:
    """How many n-grams of each length the head of the file announces."""
    head = lines[lines.index("\\data\\") + 1 :] if "\\data\\" in lines else []
    sizes: list[int] = []
    for line in head:
        name, _, size = line.partition("=")
        if name.strip() != f"ngram {len(sizes) + 1}" or not size.strip().isdecimal():
            break
        sizes.append(int(size))
    if not sizes or sizes[0] == 0:
        raise ValueError(f"{path}: no \\data\\ with 'ngram 1=...' below it; expected an ARPA file")
    return sizes


def _rows(path: str | Path, lines: list[str], n: int, size: int) -> list[tuple[float, str, float]]:
    """(log10 P, words, log10 backoff) of each n-gram of one length."""
    title = f"\\{n}-grams:"
    if title not in lines:
        raise ValueError(f"{path}: no section {title}, which \\data\\ announces")
    start = lines.index(title) + 1
    rows = []
    for number, line in enumerate(lines[start : start + size], start + 1):
        fields = line.split()
        if len(fields) not in (n + 1, n + 2):
            raise ValueError(f"{path}:{number}: {line[:80]!r}; expected log10 P, {n} words and a backoff, {size} lines")
        rows.append((_number(path, number, fields[0]), " ".join(fields[1 : n + 1]), _backoff(path, number, fields, n)))
    if len(rows) < size:
        raise ValueError(f"{path}: {len(rows)} {n}-grams, and \\data\\ announces {size}: the file is cut short")
    return rows


def _backoff(path: str | Path, number: int, fields: list[str], n: int) -> float:
    return _number(path, number, fields[n + 1]) if len(fields) > n + 1 else 0.0


def _number(path: str | Path, number: int, field: str) -> float:
    try:
        return float(field)
    except ValueError:
        raise ValueError(f"{path}:{number}: {field[:40]!r}; expected a number, log10 of a probability") from None


def _section(path: str | Path, rows: list[tuple[float, str, float]], numbers: dict[str, int], n: int) -> Section:
    """The n-grams of one length as arrays. The begin symbol's own probability is made 1."""
    try:
        grams = np.array([[numbers[word] for word in gram.split()] for _, gram, _ in rows], np.int64).reshape(-1, n)
    except KeyError as error:
        raise ValueError(f"{path}: the word {error} of a {n}-gram is not among the unigrams") from None
    if n == 1:
        rows = sorted(rows, key=lambda row: numbers[row[1]])
        grams = np.arange(len(rows))[:, None]
    prob = 10.0 ** np.array([row[0] for row in rows])
    if n == 1:
        prob[-1] = 1.0
    return grams, prob, 10.0 ** np.array([row[2] for row in rows])


def _trie(path: str | Path, sections: list[Section], symbols: int) -> Trie:
    keys, levels = [np.arange(symbols)], [0, 1, 1 + symbols]
    prob, backoff, followers = (
        [np.array([1 / max(symbols - 1, 1)]), sections[0][1]],
        [np.ones(1)],
        [np.array([symbols])],
    )
    token = [np.zeros(1, np.int64), np.arange(symbols)]
    last_backoff = sections[0][2]
    for grams, section_prob, section_backoff in sections[1:]:
        key = _histories(path, grams, keys, levels, symbols) * symbols + grams[:, -1]
        by_key = np.argsort(key, kind="stable")
        key = key[by_key]
        if (key[1:] == key[:-1]).any():
            raise ValueError(f"{path}: a {grams.shape[1]}-gram occurs twice")
        followers.append(np.bincount(key // symbols - levels[-2], minlength=levels[-1] - levels[-2]))
        keys.append(key)
        token.append(key % symbols)
        prob.append(section_prob[by_key])
        backoff.append(last_backoff)
        last_backoff = section_backoff[by_key]
        levels.append(levels[-1] + len(key))
    first = np.cumsum(np.concatenate([[1], *followers]), dtype=np.int32)
    tokens = np.concatenate(token).astype(np.int32)
    suffix = kernels().find_suffixes(first, tokens, levels[-2])
    if (suffix < 0).any():
        raise ValueError(f"{path}: an n-gram is there without its words but the first; expected every shorter one too")
    return Trie(np.array(levels), first, tokens, suffix, np.concatenate(prob), np.concatenate(backoff))


def _histories(
    path: str | Path, grams: np.ndarray, keys: list[np.ndarray], levels: list[int], symbols: int
) -> np.ndarray:
    """The node of each n-gram without its last word."""
    node = 1 + grams[:, 0]
    for n in range(1, grams.shape[1] - 1):
        key = node * symbols + grams[:, n]
        at = np.minimum(np.searchsorted(keys[n], key), max(len(keys[n]) - 1, 0))
        if len(key) and (not len(keys[n]) or (keys[n][at] != key).any()):
            raise ValueError(f"{path}: a {grams.shape[1]}-gram is there without its first {n + 1} words")
        node = levels[n + 1] + at
    return node
