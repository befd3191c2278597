"""From a model that continues text to one that answers: conversations cut from the text itself, and the talk.

A raw text holds no instructions, so the build makes the plainest conversation that it does hold: someone says
how a passage opens, and the answer is how it goes on, and where it ends. What is learnt is the form of a dialogue
(whose turn it is, and when to stop); what is said comes from pretraining.
"""

import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from groundup.inference import Engine, SamplingParams
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import render

WORD = re.compile(r"\S+\s*")
SENTENCE = re.compile(r".+?(?:(?<=[.!?])\s+|\Z)", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
OPENING_WORDS = (3, 24)
ANSWER_WORDS = (8, 80)
QUIT = ("/exit", "/quit")


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


def load_chat_engine(model: str | Path, device: str | None = None) -> Engine:
    """The chat model of a run (its `chat/` folder), or any model folder that knows a form of chats."""
    folder = Path(model)
    engine = Engine.load(folder / "chat" if (folder / "chat" / "config.json").exists() else folder, device=device)
    if not engine.can_chat:
        raise ValueError(
            f"{model}: it has no chat template, and no <|user|> and <|assistant|> tokens: it was not tuned to chat; "
            "use `groundup generate` to continue text with it"
        )
    return engine


def converse(engine: Engine, params: SamplingParams, message: str | None = None) -> int:
    """Talk in the terminal until /exit or end of input; /reset forgets. With `message`, one exchange and out."""
    if message is not None:
        print(engine.chat([{"role": "user", "content": message}], params).text.strip())
        return 0
    is_ours = engine.chat_template is None  # tuned by a build, on passages of its text
    opening = "Say how a passage begins; the model goes on." if is_ours else "Say something; the model answers."
    print(f"{opening} /reset forgets what was said, /exit leaves.", file=sys.stderr)
    turns: list[dict[str, str]] = []
    while (line := _ask()) is not None:
        if line in QUIT:
            break
        if line == "/reset":
            turns = []
        elif line:
            turns = _exchange(engine, params, [*turns, {"role": "user", "content": line}])
    return 0


def _ask() -> str | None:
    try:
        return input("you: ").strip()
    except EOFError:
        print()
        return None


def _exchange(engine: Engine, params: SamplingParams, turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """One answer, streamed. The oldest turns are forgotten when the conversation outgrows the context."""
    turns = list(turns)
    room = engine.context_length - min(params.max_tokens, engine.context_length // 2)
    while len(turns) > 1 and len(engine.chat_prompt(turns)) > room:
        turns = turns[2:]
    if len(engine.chat_prompt(turns)) >= engine.context_length:
        print(f"too long: the model reads {engine.context_length} tokens at once; say it shorter", file=sys.stderr)
        return turns[:-1]
    print("model: ", end="", flush=True)
    answer = ""
    for piece in engine.stream_chat(turns, params):
        print(piece, end="", flush=True)
        answer += piece
    print()
    return [*turns, {"role": "assistant", "content": answer}]
