"""The page: chat, the token explorer and the engine's statistics, in one file that loads nothing.

What a model or a user says is only ever text in it: the scripts set `textContent`, and the policy allows no script or
style but the page's own, by their hashes, and no connection but to this server.
"""

import base64
import hashlib
from importlib import resources
from typing import Any

from groundup.tokenizer import explorer

_SCRIPTS = ("dom.js", "api.js", "tokens.js", "chat.js", "engine.js", "main.js")


def chat_page() -> tuple[str, str]:
    """The page and its Content-Security-Policy."""
    style, script = _asset("style.css"), "".join(map(_asset, _SCRIPTS))
    page = _asset("page.html").replace("{{style}}", style).replace("{{script}}", script)
    its_script, its_style = explorer.policy_sources()  # the explorer stands in a sandboxed frame under this policy
    policy = (
        f"default-src 'none'; script-src {_source(script)} {its_script}; style-src {_source(style)} {its_style}; "
        "img-src data:; connect-src 'self'; frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    )
    return page, policy


def explorer_page(name: str, tokenizer: Any) -> bytes:
    """The token explorer with one tokenizer. ValueError when the vocabulary is too large for a page."""
    return explorer.render_page({name: tokenizer})


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (resources.files("groundup.inference.server.page") / name).read_text("utf-8")
