"""One self-contained page with tokenizers in it: type, and see the tokens, and how each word is merged.

The page runs the real algorithm, in JavaScript that mirrors this room file by file (`explorer_page/`), and loads
nothing. Each tokenizer carries a sample with its ids, by which the page notices a browser that splits otherwise.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from groundup.files import write_atomic
from groundup.tokenizer.pretokenize import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer

MAX_PAGE_BYTES = 2_000_000
_SCRIPTS = ("unpack.js", "pretokenize.js", "bpe.js", "show.js", "detail.js", "side.js", "page.js")
_SAMPLE = (
    "It's 1999: DON'T stop, we'Ve 12345 cats'\u017f   \n \r\n\n x\x85y\ufeff\u3000 camelCase HTTPServer //\n!\n\n\t"
    "f(x) _a_ \u00dcber e\u0301te \u0928\u092e\u0938\u094d\u0924\u0947 \u4f60\u597d\uff0c \u0663\u0664 \u00bd \u2167 "
    "\u01c5 \u02b0 \U0001f30d\U0001f468\u200d\U0001f469 <|end|>  \n  "
)


def write_page(tokenizers: Mapping[str, Tokenizer], path: str | Path) -> Path:
    """Write the page with these tokenizers, by the names to show, the first two side by side; returns the path.

    The same tokenizers give the same bytes. ValueError without a tokenizer, or when the page would pass
    2 MB: two vocabularies of 100,000 tokens fit, or one of 200,000.
    """
    path = Path(path)
    try:
        page = render_page(tokenizers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    write_atomic(path, page)
    return path


def render_page(tokenizers: Mapping[str, Tokenizer]) -> bytes:
    """The HTML that `write_page` writes."""
    if not tokenizers:
        raise ValueError("no tokenizer to show; give at least one")
    headers = [pack(name, tokenizer) for name, tokenizer in tokenizers.items()]
    page = _page(headers)
    if len(page) > MAX_PAGE_BYTES:
        sizes = ", ".join(f"{header['name']!r} {len(header['packed']):,}" for header in headers)
        raise ValueError(
            f"the page would have {len(page):,} bytes, at most {MAX_PAGE_BYTES:,} ({sizes}); "
            f"{'show fewer tokenizers on one page' if len(headers) > 1 else 'this vocabulary is too large for a page'}"
        )
    return page


def policy_sources() -> tuple[str, str]:
    """The page's script and style as sources of a Content-Security-Policy, for a page that embeds it."""
    return _source("".join(map(_asset, _SCRIPTS))), _source(_asset("style.css"))


def pack(name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the page has of a tokenizer: names and flags, and the tokens and merges deflated, in base64.

    Unsigned numbers have seven bits a byte. In order: the ids as differences, the lengths of their tokens, the ids
    that the merges make as differences, how many bytes of each are from the left of the pair, the tokens.
    A merge is then a token and a cut, a byte or two before deflating. Ranked by token, there is none to store.
    """
    parts = tokenizer.parts()
    special_ids = set(parts.special_tokens.values())
    vocab = {token_id: token for token_id, token in sorted(parts.vocab.items()) if token_id not in special_ids}
    ids = {token: token_id for token_id, token in vocab.items()}
    merges = parts.merges or []
    numbers = [
        *_differences(vocab),
        *map(len, vocab.values()),
        *_differences(ids[left + right] for left, right in merges),
        *(len(left) for left, _ in merges),
    ]
    packed = zlib.compress(b"".join(map(_varint, numbers)) + b"".join(vocab.values()), 9)
    return {
        "name": name,
        "normalizer": parts.normalizer,
        "pattern": parts.pattern,
        "source": PATTERNS.get(parts.pattern, parts.pattern),
        "rankedByToken": parts.merges is None,
        "ignoreMerges": parts.ignore_merges,
        "specials": list(parts.special_tokens.items()),
        "tokens": len(vocab),
        "merges": len(merges),
        "check": {"text": _SAMPLE, "ids": tokenizer.encode(_SAMPLE)},
        "packed": base64.b64encode(packed).decode(),
    }


def _differences(values: Iterable[int]) -> list[int]:
    """Each value less the one before it, the sign in the lowest bit: small numbers for values that climb."""
    steps = (after - before for before, after in pairwise([0, *values]))
    return [2 * step if step >= 0 else -2 * step - 1 for step in steps]


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _page(headers: list[dict[str, Any]]) -> bytes:
    """The HTML. The policy allows the page's own style and script by their hashes, and no network at all."""
    style, script = _asset("style.css"), "".join(map(_asset, _SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # ASCII without "<": no text of a tokenizer can end the element that holds it.
    data = json.dumps(headers).replace("<", "\\u003c")
    page = _asset("page.html")
    for name, text in (("policy", policy), ("style", style), ("script", script), ("data", data)):
        page = page.replace(f"{{{{{name}}}}}", text)
    return page.encode()


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (resources.files("groundup.tokenizer") / "explorer_page" / name).read_text("utf-8")
