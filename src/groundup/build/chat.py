"""From a model that continues text to one that answers: conversations cut from the text itself.

A raw text holds no instructions, so the build makes the plainest conversation that it does hold: someone says
how a passage opens, and the answer is how it goes on, and where it ends. What is learnt is the form of a dialogue
(whose turn it is, and when to stop); what is said comes from pretraining.
"""

import random
import re
from collections.abc import Iterable, Iterator

from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import render

WORD = re.compile(r"\S+\s*")
SENTENCE = re.compile(r".+?(?:(?<=[.!?])\s+|\Z)", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
OPENING_WORDS = (3, 24)
ANSWER_WORDS = (8, 80)


def passages(documents: Iterable[str]) -> list[tuple[str, str]]:
    """(opening, continuation) pairs: a sentence, and the sentences after it, up to about eighty words.

    A pair never crosses a blank line. A sentence that is too long or too short to open with is passed over; in a
    text without sentences the first words of a paragraph are the opening. Openings are on one line, as people type
    them; continuations keep the text's own line breaks.
    """
    return [
        pair
        for document in documents
        for paragraph in re.split(r"\n\s*\n", document)
        for pair in _pairs(_sentences(paragraph.strip()))
    ]


def _sentences(paragraph: str) -> list[list[str]]:
    """Sentences as words, each with the white space after it; the first words alone where there is one sentence."""
    most = OPENING_WORDS[1]
    words = [WORD.findall(sentence) for sentence in SENTENCE.findall(paragraph)]
    if len(words) == 1 and len(words[0]) > most:
        return [words[0][: most // 2], words[0][most // 2 :]]
    return words


def _pairs(sentences: list[list[str]]) -> Iterator[tuple[str, str]]:
    least, most = OPENING_WORDS
    at = 0
    while at < len(sentences) - 1:
        opening, answer = sentences[at], list(sentences[at + 1])
        at += 1
        if not least <= len(opening) <= most:
            continue
        at += 1
        while at < len(sentences) and len(answer) + len(sentences[at]) <= ANSWER_WORDS[1]:
            answer += sentences[at]
            at += 1
        if len(answer) >= ANSWER_WORDS[0]:
            yield " ".join(word.strip() for word in opening), "".join(answer[: 2 * ANSWER_WORDS[1]]).strip()


def examples(
    documents: Iterable[str], tokenizer: Tokenizer, context_length: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids and loss masks of one-turn conversations that fit into `context_length`, in seeded order."""
    made = []
    for opening, continuation in passages(documents):
        turns = [{"role": "user", "content": opening}, {"role": "assistant", "content": continuation}]
        ids, mask = render(tokenizer, turns)
        if len(ids) <= context_length:
            made.append((ids, mask))
    random.Random(seed).shuffle(made)
    return made
