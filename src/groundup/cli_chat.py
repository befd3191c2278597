"""`groundup chat`: a conversation in the terminal. Ctrl-C stops an answer, and what was said of it stays said.

/help  /reset  /undo  /retry  /system TEXT  /set NAME VALUE  /save FILE  /exit
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_generate import SAMPLING, load_engine, sampling_options, sampling_params, show, speed
from groundup.cli_parts import Arguments, Parser
from groundup.config import nearest

if TYPE_CHECKING:
    from groundup.inference import Engine, SamplingParams

HELP = {
    "/help": "this list",
    "/reset": "forget what was said",
    "/undo": "take back the last question and its answer",
    "/retry": "another answer to the last question",
    "/system": "TEXT: instructions that stand before the conversation; nothing: none",
    "/set": f"NAME VALUE: one of {', '.join(SAMPLING)}; nothing: show them",
    "/save": "FILE: write the conversation as JSON",
    "/exit": "leave; so does /quit, and the end of input",
}


def options(parser: Parser) -> None:
    """Of `groundup chat`."""
    sampling_options(parser)
    parser.add_argument("--message", help="say one thing, print the answer, and leave (default: a conversation)")
    parser.add_argument("--system", default="", metavar="TEXT",
                        help="instructions that stand before the conversation (default: none)")  # fmt: skip


def run(options: Arguments) -> int:
    """Talk until /exit; with --message, one exchange."""
    params = sampling_params(options)
    engine = load_engine(chat_folder(options.model), options)
    check_can_chat(engine, options.model)
    talk = Talk(engine, params, options.system)
    if options.message is not None:
        print(engine.chat(talk.messages([{"role": "user", "content": options.message}]), params).text.strip())
        return 0
    return converse(talk)


def chat_folder(model: str) -> Path:
    """The chat model of a run (its `chat/` folder), or the folder itself."""
    chat = Path(model) / "chat"
    return chat if (chat / "config.json").exists() else Path(model)


def check_can_chat(engine: "Engine", model: str) -> None:
    """ValueError for a model that knows no form of conversations."""
    if not engine.can_chat:
        raise ValueError(
            f"{model}: it has no chat template, and no <|user|> and <|assistant|> tokens: it was not tuned to chat; "
            "use `groundup generate` to continue text with it"
        )


class Talk:
    """A conversation with an engine: what was said, and how the next answer is drawn."""

    def __init__(self, engine: "Engine", params: "SamplingParams", system: str = "") -> None:
        self.engine, self.params, self.system = engine, params, system
        self.turns: list[dict[str, str]] = []

    def messages(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """The turns, with the instructions before them."""
        return [{"role": "system", "content": self.system}, *turns] if self.system else turns

    def fitting(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """The turns without the oldest ones, as far as the context demands. ValueError when the last is too long."""
        context = self.engine.context_length
        room = context - min(self.params.max_tokens, context // 2)
        while len(turns) > 1 and self._size(turns) > room:
            turns = turns[2:]
        if self._size(turns) >= context:
            raise ValueError(f"too long: the model reads {context} tokens at once; say it shorter")
        return turns

    def _size(self, turns: list[dict[str, str]]) -> int:
        return len(self.engine.chat_prompt(self.messages(turns)))

    def ask(self, text: str, show: Callable[[str], None]) -> tuple[int, float, float]:
        """Answer `text`, piece by piece: tokens, seconds, and seconds to the first piece. ValueError: too long."""
        turns = self.fitting([*self.turns, {"role": "user", "content": text}])
        stream = self.engine.stream_chat(self.messages(turns), self.params)
        said: list[str] = []
        began, first, tokens = time.perf_counter(), 0.0, 0
        try:
            while True:
                said.append(next(stream))
                first = first or time.perf_counter() - began
                show(said[-1])
        except StopIteration as end:
            tokens = len(end.value.tokens)
        except KeyboardInterrupt:
            stream.close()
        self.turns = [*turns, {"role": "assistant", "content": "".join(said)}]
        return tokens, time.perf_counter() - began, first

    def undo(self) -> str | None:
        """Forget the last exchange; returns its question, None where there is none."""
        if not self.turns:
            return None
        question = self.turns[-2]["content"]
        self.turns = self.turns[:-2]
        return question

    def set(self, name: str, value: str) -> None:
        """Change a parameter of sampling. ValueError for a name or value that makes no sense."""
        if name not in SAMPLING:
            raise ValueError(f"{name}: no such setting{nearest(name, SAMPLING)}")
        self.params = replace(self.params, **{name: None if value == "none" else _number(value)})


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def converse(talk: Talk) -> int:
    """Read lines and answer them, until the end."""
    from rich.console import Console
    from rich.text import Text

    notes = Console(stderr=True, highlight=False)

    def note(text: str) -> None:
        notes.print(Text(text, style="dim"))

    is_ours = talk.engine.chat_template is None  # tuned by a build, on passages of its text
    note("Say how a passage begins; the model goes on." if is_ours else "Say something; the model answers.")
    note("/help lists what else can be said, /exit leaves, Ctrl-C stops an answer.")
    while (line := _line()) is not None:
        if line in ("/exit", "/quit"):
            break
        try:
            question = _command(talk, line, note) if line.startswith("/") else line
            if question:
                _exchange(talk, question, note)
        except (ValueError, OSError) as error:
            note(str(error))
    return 0


def _line() -> str | None:
    prompt = "\x1b[1;36myou\x1b[0m " if sys.stdout.isatty() else "you: "
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return None


def _exchange(talk: Talk, question: str, note: Callable[[str], None]) -> None:
    name = "\x1b[1;32mmodel\x1b[0m " if sys.stdout.isatty() else "model: "
    talk.fitting([*talk.turns, {"role": "user", "content": question}])  # too long: said before the model's name
    print(name, end="", flush=True)
    tokens, seconds, first = talk.ask(question, show)
    print()
    if sys.stdout.isatty():
        note(f"{speed(tokens, seconds)}, first after {first:.2f} s" if tokens else "stopped")


def _command(talk: Talk, line: str, note: Callable[[str], None]) -> str | None:
    """Do what a line with a slash says; returns a question that is to be asked again."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    match word:
        case "/help":
            note("\n".join(f"{name:<8} {meaning}" for name, meaning in HELP.items()))
        case "/reset":
            talk.turns = []
        case "/undo":
            talk.undo()
        case "/retry":
            return talk.undo()
        case "/system":
            talk.system = rest
        case "/set" if not rest:
            note("\n".join(f"{name} {getattr(talk.params, name)}" for name in SAMPLING))
        case "/set":
            name, _, value = rest.partition(" ")
            talk.set(name, value.strip())
        case "/save":
            if not rest:
                raise ValueError("/save FILE: the file is missing")
            Path(rest).write_text(json.dumps(talk.messages(talk.turns), ensure_ascii=False, indent=1) + "\n", "utf-8")
        case _:
            raise ValueError(f"{word}: no such command{nearest(word, HELP)}; /help lists them")
    return None
