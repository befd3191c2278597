"""Conversations as tokens: control tokens are placed as ids, contents are encoded as plain text.

    <|user|>How are you?<|end|><|assistant|>Fine.<|end|>

A content that spells a control token stays text, so a user cannot speak as the assistant or end a turn.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from groundup.config import nearest

END_OF_TEXT = "<|endoftext|>"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
CONTROL_TOKENS = (USER, ASSISTANT, END)
END_TOKENS = (END_OF_TEXT, END)
"""What ends a generation: the end of a document, or of a turn."""
ROLES = ("system", "user", "assistant")

_TEMPLATE = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for message in messages -%}"
    "{%- set content = message['content'] -%}"
    "{%- for control in CONTROL_TOKENS -%}"
    "{%- if control in content -%}"
    "{{- raise_exception('a message contains the control token ' + control) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if message['role'] == 'system' and loop.first and not loop.last -%}"
    "{%- set ns.system = content + '\\n\\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '<|user|>' + ns.system + content + '<|end|>' -}}"
    "{%- set ns.system = '' -%}"
    "{%- elif message['role'] == 'assistant' and not ns.system -%}"
    "{{- '<|assistant|>' + content + '<|end|>' -}}"
    "{%- else -%}"
    "{{- raise_exception('expected user and assistant messages, after at most one system message') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def chat_template(special_tokens: Iterable[str]) -> str:
    """`render` as a Jinja template for Hugging Face's `apply_chat_template`: the same ids.

    A template makes one string, tokenized afterwards, in which a forged control token looks like a real one:
    a content that spells one of `special_tokens` is an error there, where `render` encodes it as plain text.
    """
    return _TEMPLATE.replace("CONTROL_TOKENS", json.dumps(list(special_tokens), ensure_ascii=False))


CHAT_TEMPLATE = chat_template([END_OF_TEXT, *CONTROL_TOKENS])


class ChatTokenizer(Protocol):
    """What a conversation needs of a tokenizer."""

    special_tokens: dict[str, int]

    def encode(self, text: str) -> list[int]: ...


def render(
    tokenizer: ChatTokenizer, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of a conversation and its loss mask: 1 on assistant contents and the `<|end|>` that closes them.

    A system message (first only) is prepended to the user message after it, separated by an empty line.
    `add_generation_prompt` appends `<|assistant|>`, for the model to go on. ValueError names a bad message.
    """
    user, assistant, end = (_control_id(tokenizer, token) for token in CONTROL_TOKENS)
    ids: list[int] = []
    mask: list[int] = []
    for role, content in _turns(messages):
        spoken = [*tokenizer.encode(content), end]
        ids += [assistant if role == "assistant" else user, *spoken]
        mask += [0] + [int(role == "assistant")] * len(spoken)
    if add_generation_prompt:
        ids.append(assistant)
        mask.append(0)
    return ids, mask


def check_messages(messages: Sequence[Mapping[str, Any]], roles: Sequence[str] = ROLES) -> None:
    """ValueError for a message whose role is not one of `roles`, or whose content is no text."""
    for number, message in enumerate(messages):
        _checked(message, number, roles)


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(role, content) of each user and assistant message, the system message folded in."""
    turns: list[tuple[str, str]] = []
    system = ""
    for number, message in enumerate(messages):
        role, content = _checked(message, number)
        if role == "system":
            if number > 0 or len(messages) == 1:
                raise ValueError(f"messages[{number}]: a system message comes first, before a user message")
            system = content + "\n\n"
        elif role == "assistant" and system:
            raise ValueError(f"messages[{number}]: a system message needs a user message after it")
        else:
            turns.append((role, system + content))
            system = ""
    return turns


def _checked(message: Mapping[str, Any], number: int, roles: Sequence[str] = ROLES) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in roles:
        raise ValueError(f"messages[{number}]: role {role!r}{nearest(str(role), roles)}")
    if not isinstance(content, str):
        raise ValueError(f"messages[{number}]: content is {type(content).__name__}, not text")
    return role, content


def _control_id(tokenizer: ChatTokenizer, token: str) -> int:
    if token not in tokenizer.special_tokens:
        raise ValueError(f"the tokenizer has no special token {token!r}, which a conversation needs")
    return tokenizer.special_tokens[token]
