"""Decoding one token at a time, as a model generates it."""

import codecs
from collections.abc import Callable


class StreamDecoder:
    r"""Turns ids into text as they come, and holds back the bytes of a character until its last one is there.

    What `push` and `flush` return, joined, is `decode` of all ids: bytes that no continuation can make valid
    are emitted as U+FFFD.

    >>> stream = StreamDecoder(lambda id: bytes([id]))
    >>> [stream.push(byte) for byte in "né".encode()] + [stream.flush()]
    ['n', '', 'é', '']
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this id completes, often none. ValueError when there is no such id."""
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        """What is left: U+FFFD for an incomplete character. The decoder then starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
