"""Closing, over a transport that notes what is done to it."""

import asyncio

import pytest

from groundup.inference.server.lingering import LINGER_BYTES, LingeringTransport


class Noting(asyncio.Transport):
    """A transport whose client may have gone."""

    def __init__(self, gone=False):
        super().__init__()
        self.gone, self.done = gone, []
        for name in ("write", "close", "abort", "resume_reading"):
            setattr(self, name, lambda *_, name=name: self.done.append(name))

    def write_eof(self):
        self.done.append("write_eof")
        if self.gone:
            raise OSError(107, "Transport endpoint is not connected")

    def is_closing(self):
        return "abort" in self.done or "close" in self.done

    def can_write_eof(self):
        return True


def closed(transport, is_unread, then=lambda lingering: None):
    """What `close` did, and whether the transport lingered then."""

    async def close():
        lingering = LingeringTransport(transport, lambda: is_unread)
        lingering.write(b"the answer")
        lingering.close()
        lingers = lingering.lingers
        then(lingering)
        lingering.close()
        lingering.write(b"nothing is sent behind the end")
        lingering.end()
        return transport.done, lingers

    return asyncio.run(close())


@pytest.mark.parametrize(
    ("gone", "is_unread", "expected", "lingers"),
    [
        (False, True, ["write", "resume_reading", "write_eof"], True),
        (False, False, ["write", "close"], False),
        (True, True, ["write", "resume_reading", "write_eof", "abort"], False),
    ],
)
def test_closing(gone, is_unread, expected, lingers):
    assert closed(Noting(gone), is_unread) == (expected, lingers)


def test_a_client_that_sends_on_and_on_is_cut():
    def flood(lingering):
        for _ in range(3):
            lingering.discard(bytes(LINGER_BYTES // 2))

    assert closed(Noting(), True, flood)[0][-1] == "abort"
