"""What the commands share: the parser, the types of options, tables, and the JSON line at the end."""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from groundup.config import declared, near

Arguments = argparse.Namespace
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Verb:
    """One command: a line of help, its options, and the function that runs it and returns an exit code."""

    summary: str
    options: Callable[["Parser"], None]
    run: Callable[[Arguments], int]


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one line and where to read on, not with the whole usage."""

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self.more()}\n" if self.more else "")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, which leaves unknown options over: here the verb's own parser says what they are near to."""
        options, late = super().parse_known_args(args, namespace)
        for word in late:
            name = word.partition("=")[0]
            if name.startswith("-"):
                self.error(f"unknown option {name}{near(name, self._option_string_actions)}")
        return options, late

    def error(self, message: str) -> NoReturn:
        wrong_use(self.prog, message)


def wrong_use(command: str, message: str) -> NoReturn:
    """Say on one line what is wrong with the command line, and leave with exit code 2."""
    print(f"{command}: {message}\nsee: {command} --help", file=sys.stderr)
    raise SystemExit(2)


def say(line: str) -> None:
    """A line for the person who waits."""
    print(line, file=sys.stderr, flush=True)


def describe(error: BaseException) -> str:
    """The error as a sentence for the person who ran the command."""
    if isinstance(error, OSError):
        from groundup.files import is_full

        text = (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
        return text + ("; free some space, then go on" if is_full(error) else "")
    return str(error) or type(error).__name__


def whole_number(text: str) -> int:
    """The type of an option, with an error in words."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}") from None


def count(text: str) -> int:
    """The type of an option that says how many, with an error in words."""
    if (value := whole_number(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, not {text}")
    return value


def number(text: str) -> float:
    """The type of an option, with an error in words."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, not {text!r}") from None


def add_device(parser: Parser) -> None:
    """The option that names where to compute."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the fastest here)")


def settings_lines(
    module: str, name: str, width: int = 30, *, changed: Mapping[str, Any] | None = None, left_out: Sequence[str] = ()
) -> list[str]:
    """`key=default  meaning` of each field of a dataclass, from its own source: what it is made of is not imported.

    `changed` are defaults of the command that differ from the class's.
    """
    defaults, docstring = declared(module, name)
    meanings = dict(re.findall(r"^(\w+): (.+)$", docstring, re.MULTILINE))
    given = {key: (changed or {}).get(key, value) for key, value in defaults.items() if key not in left_out}
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    return [f"  {f'{key}={shown[key]}':<{width}} {meanings.get(key, '')}".rstrip() for key in shown]


def print_json(value: Any) -> None:
    """The machine-readable last line of a command run with --json."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)
) -> None:
    """A table for people: the columns of `words` go left, the others, which are figures, right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if place in words else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


@contextmanager
def progress_line() -> Iterator[Progress]:
    """A function of (stage, done, total) that keeps one line on a terminal's standard error, and nowhere else.

    A total of 0 is one that is not known: then the count is shown, and no time to wait.
    """
    last = 0.0
    began: dict[str, tuple[float, int]] = {}

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        since, before = began.setdefault(stage, (now, done))
        if sys.stderr.isatty() and now - last > 0.1:
            last = now
            share = f"{done / total:.0%}" if total else f"{done:,}"
            left = (now - since) * (total - done) / (done - before) if total and done > before else 0.0
            wait = f", {left:,.0f} s left" if left >= 1 else ""
            print(f"\r\x1b[K{stage} {share}{wait}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if last:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
