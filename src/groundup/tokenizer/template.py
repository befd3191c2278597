"""The chat format that a model of others brings along: a Jinja template, run in a sandbox, and its result as ids.

A template comes with a model's files, so it is a stranger's program. It gets no more of Jinja than templates of chats
use: no imports, macros or multiplication, a handful of filters and methods, a budget of loop steps, and a bound on the
length of every text. The tokens of a conversation stay unforgeable, as in `groundup.tokenizer.chat`: a content that
spells a control token is encoded as plain text.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from groundup.files import read_json
from groundup.tokenizer.chat import ROLES, ChatTokenizer, check_messages
from groundup.tokenizer.pretokenize import SpecialSplitter

MAX_CHARACTERS = 1 << 16  # of a template; published ones have up to some 10,000
FREE_STEPS, STEPS_PER_MESSAGE = 10_000, 20
FREE_LENGTH, LENGTH_PER_CHARACTER = 1 << 18, 4

FILTERS = ("trim", "upper", "lower", "length", "count", "first", "last", "default", "d", "int", "list")
METHODS = {"strip", "lstrip", "rstrip", "split", "startswith", "endswith", "upper", "lower", "title", "capitalize",
           "get", "items", "keys", "values"}  # fmt: skip
NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.Name, nodes.NSRef,
    nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand,
    nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Add, nodes.Sub, nodes.Mod, nodes.Concat, nodes.CondExpr,
    nodes.Call, nodes.Keyword, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Continue, nodes.Break,
)  # fmt: skip

# Noncharacters of Unicode, set aside for use inside a program: one that no content has takes control tokens apart.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class ChatTemplate:
    """A template and the texts of the two tokens that it may name, `bos_token` and `eos_token`.

    ValueError for a template that is no Jinja, too long, or that uses what the sandbox leaves out.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > MAX_CHARACTERS:
            raise ValueError(f"chat template: {len(source)} characters; at most {MAX_CHARACTERS}")
        self.source, self.tokens = source, {"bos_token": bos_token, "eos_token": eos_token}
        environment = _Sandbox()
        try:
            parsed = environment.parse(source)
            for node in list(parsed.find_all(nodes.Node)):
                if not isinstance(node, NODES):
                    what = type(node).__name__
                    raise ValueError(f"chat template, line {node.lineno}: {what} is not something a template may use")
            _count_and_bound(parsed)
            self._template = environment.from_string(parsed)
        except (TemplateError, RecursionError, SyntaxError) as error:
            raise ValueError(f"chat template: {error}") from error
        self._environment = environment

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of a conversation. ValueError when the template refuses it, or does not come to an end."""
        given = [*messages, *(tools or ())]
        contents = sum(len(text) for text in _texts(given))
        self._environment.steps = FREE_STEPS + STEPS_PER_MESSAGE * len(given)
        self._environment.length = FREE_LENGTH + LENGTH_PER_CHARACTER * contents
        variables: dict[str, Any] = {"messages": [dict(m) for m in messages],
                                     "add_generation_prompt": add_generation_prompt}  # fmt: skip
        if tools:
            variables["tools"] = [dict(tool) for tool in tools]
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(**variables, **self.tokens):
                length += len(piece)
                self._environment.check_length(length)
                pieces.append(piece)
        except (TemplateError, RecursionError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"chat template: {error}") from error
        return "".join(pieces)

    def encode(
        self,
        tokenizer: ChatTokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The ids of a conversation, in which only the template's own control tokens are control tokens.

        `tools` describe functions, as the OpenAI API writes them: {"type": "function", "function": {...}}. A message
        may have the role "tool", with a function's result, and an assistant's may have `tool_calls`.
        """
        check_messages(messages, (*ROLES, "tool"))
        specials = tokenizer.special_tokens
        everything = "".join(_texts([*messages, *(tools or ())]))
        mark = next((mark for mark in _MARKS if mark not in everything), None)
        if mark is None:
            raise ValueError("messages: they have all of the characters U+FDD0 to U+FDEF, which no text should have")
        apart = [{**_kept_apart(message, specials, mark), "role": message["role"]} for message in messages]
        self._environment.apart = lambda text: _apart(text, specials, mark)
        text = self.render(
            apart,
            tools=[_kept_apart(tool, specials, mark) for tool in tools or ()],
            add_generation_prompt=add_generation_prompt,
        )
        ids: list[int] = []
        for part, is_special in SpecialSplitter(specials).split(text):
            ids += [specials[part]] if is_special else tokenizer.encode(part.replace(mark, ""))
        return ids


def load_template(folder: str | Path) -> ChatTemplate | None:
    """The chat template of a folder in Hugging Face's layout, or None where there is none.

    It is `chat_template.jinja`, or the key "chat_template" of tokenizer_config.json. ValueError for a broken one.
    """
    folder = Path(folder)
    file, config_file = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{config_file}: expected a JSON object")
    try:
        source = file.read_text("utf-8") if file.is_file() else config.get("chat_template")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not isinstance(source, str):  # some list several templates, by name, for tools that are not offered here
        return None
    try:
        return ChatTemplate(source, *(_token_text(config.get(key)) for key in ("bos_token", "eos_token")))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _token_text(value: Any) -> str:
    """A token, which older files write as an object with its content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _apart(content: str, specials: Iterable[str], mark: str) -> str:
    """`content` with the mark inside whatever spells a special token."""
    return "".join(
        part[:1] + mark + part[1:] if is_special else part
        for part, is_special in SpecialSplitter(list(specials)).split(content)
    )


def _kept_apart(value: Any, specials: Iterable[str], mark: str) -> Any:
    """Every text in a value of JSON as `_apart` makes it, keys too."""
    if isinstance(value, str):
        return _apart(value, specials, mark)
    if isinstance(value, Mapping):
        return {_apart(key, specials, mark): _kept_apart(inner, specials, mark) for key, inner in value.items()}
    return [_kept_apart(inner, specials, mark) for inner in value] if isinstance(value, list) else value


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value of JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


# the sandbox -----------------------------------------------------------------------------------------------------


def _count_and_bound(parsed: nodes.Template) -> None:
    """Let every loop draw from the budget, and every `a ~ b` be measured: Jinja has no hook for these two."""
    for loop in list(parsed.find_all(nodes.For)):
        loop.iter = _call("counted", [loop.iter], loop.lineno)
    for join in list(parsed.find_all(nodes.Concat)):
        join.nodes = [_call("joined", list(join.nodes), join.lineno)]


def _call(name: str, arguments: list[Any], line: int) -> nodes.Call:
    return nodes.Call(nodes.Name(f"_{name}", "load", lineno=line), arguments, [], None, None, lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with most of its contents taken out. `steps` and `length` are what is left to spend."""

    intercepted_binops = frozenset({"+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"],
                         finalize=_plain)  # fmt: skip
        self.steps, self.length = 0, 0
        self.filters = {name: self.filters[name] if name in FILTERS else _refused(name) for name in self.filters}
        self.filters |= {"tojson": self._to_json}
        self.apart: Callable[[str], str] = str
        kept = {name: self.globals[name] for name in ("range", "namespace")}
        self.globals = {**kept, "raise_exception": _raise, "_counted": self._counted, "_joined": self._joined}

    def check_length(self, length: int) -> None:
        if length > self.length:
            raise ValueError(f"chat template: makes a text or list longer than {self.length}; stopped")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and (not callable(value) or attr in METHODS)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Stop at once, where Jinja goes on as long as the value is only printed."""
        raise ValueError(f"chat template: the attribute {attribute!r} of a {type(obj).__name__} is unsafe")

    def wrap_str_format(self, value: Any) -> None:
        """Leave str.format as unsafe as any other method: '{:>1000000000}' makes a gigabyte."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and all(isinstance(side, (str, list, tuple)) for side in (left, right)):
            self.check_length(len(left) + len(right))
        if operator == "%" and not all(isinstance(side, int) for side in (left, right)):
            raise ValueError("chat template: % is for numbers only")
        return super().call_binop(context, operator, left, right)

    def _to_json(self, value: Any, indent: int | None = None) -> str:
        """JSON as Hugging Face's templates have it, unescaped. Written piece by piece: a value can be endless."""
        if isinstance(value, Undefined):
            raise ValueError("chat template: tojson of something undefined")
        if indent is not None and not 0 <= indent <= 8:
            raise ValueError("chat template: tojson takes an indent of at most 8")
        pieces: list[str] = []
        length = 0
        for piece in json.JSONEncoder(ensure_ascii=False, indent=indent).iterencode(value):
            length += len(piece)
            self.check_length(length)
            pieces.append(piece)
        return self.apart("".join(pieces))

    def _joined(self, *parts: Any) -> str:
        texts = [str(_plain(part)) for part in parts]
        self.check_length(sum(map(len, texts)))
        return "".join(texts)

    def _counted(self, items: Any) -> Iterator[Any]:
        listed = list(items)
        self.steps -= len(listed)
        if self.steps < 0:
            raise ValueError("chat template: loops too often; stopped")
        return iter(listed)


def _plain(value: Any) -> Any:
    """A text or number. A list of lists of lists could be printed in a length that doubles at each level."""
    if isinstance(value, (str, int, float, Undefined)) or value is None:
        return value
    raise ValueError(f"chat template: prints a {type(value).__name__}, not a text")


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError(f"chat template: the filter {name!r} is not supported; there are tojson, {', '.join(FILTERS)}")

    return refuse


def _raise(message: str = "refused") -> NoReturn:
    raise ValueError(f"chat template: {message}")
