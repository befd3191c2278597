"""Pauses of the event loop, with a clock that only notes how long it was to sleep."""

import socket

import pytest

from groundup.inference.server import patience
from groundup.inference.server.patience import PAUSE_SECONDS, PatientSelector


@pytest.fixture
def slept(monkeypatch):
    """What was slept."""
    noted = []
    monkeypatch.setattr(patience.time, "sleep", noted.append)
    return noted


@pytest.fixture
def pair():
    """Two sockets, of which the first has something to read."""
    ours, theirs = socket.socketpair()
    theirs.send(b"x")
    with ours, theirs:
        yield ours


@pytest.mark.parametrize(
    ("full", "timeout", "expected"),
    [
        (True, None, [PAUSE_SECONDS]),
        (True, 10.0, [PAUSE_SECONDS]),
        (True, PAUSE_SECONDS / 2, [PAUSE_SECONDS / 2]),
        (True, 0, []),
        (True, -1.0, []),
        (False, None, []),
        (False, 10.0, []),
    ],
)
def test_it_pauses_while_full_and_never_where_a_callback_is_due(pair, slept, full, timeout, expected):
    with PatientSelector(lambda: full) as selector:
        selector.register(pair, patience.selectors.EVENT_READ, "ours")
        ((key, _),) = selector.select(timeout)
    assert key.data == "ours" and slept == expected
