"""API keys: where they come from, and a comparison that takes as long for a wrong key as for a right one."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

from groundup.environ import env

VARIABLE = "GROUNDUP_API_KEYS"
SHORTEST = 16


class Keys:
    """The keys that are let in. Only their digests are kept.

    A key's `salt` keeps its prompts' cached prefixes apart from those of other keys: without it, the time to the first
    token tells whether somebody else has sent the same beginning (CVE-2025-46570).
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]
        self._secret = secrets.token_bytes(32)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def number_of(self, authorization: bytes) -> int | None:
        """Which key an Authorization header carries, or None. Every key is compared, whichever fits."""
        scheme, _, given = authorization.partition(b" ")
        digest = _digest(given.strip())
        found = None
        for number, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = number
        return found if scheme.lower() == b"bearer" else None

    def salt(self, number: int) -> str:
        """Secret, and another one for every key and every start of the server."""
        return hmac.new(self._secret, str(number).encode(), "sha256").hexdigest()


def read_keys(file: str | Path | None) -> Keys:
    """The keys of `file` (one a line, # begins a comment), or of the variable GROUNDUP_API_KEYS (between spaces or
    commas). ValueError for a key that is too short to be secret, or for a file without keys."""
    if file is not None:
        lines = Path(file).read_text("utf-8").splitlines()
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ValueError(f"{file}: no keys; write one on each line")
    else:
        found = (env(VARIABLE) or "").replace(",", " ").split()
    where = file or VARIABLE
    for number, key in enumerate(found, 1):
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"{where}: key {number} is no {SHORTEST} printable ASCII characters without spaces or more; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return Keys(found)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
