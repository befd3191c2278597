"""Refusals in one compiled call, over sockets of which this test holds both ends."""

import selectors
import socket
import sys

import pytest

from groundup.inference.server.repeating import MOST_BYTES, Repeats

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a socket is no number there")
REQUEST, ANSWER = b"POST /v1/completions HTTP/1.1\r\n\r\n{}", b"HTTP/1.1 429 Too Many Requests\r\n\r\n"


class Client:
    """Both ends of a connection, and what the server's end was told."""

    def __init__(self):
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.settimeout(5)
        self.writable, self.notes = True, []

    def is_writable(self):
        return self.writable

    def note_refusal(self, unsent):
        self.notes.append(unsent)

    def came(self):
        """What the client has got so far."""
        self.theirs.setblocking(False)
        try:
            return self.theirs.recv(1 << 16)
        except BlockingIOError:
            return b""


class Server:
    """Connections whose first request was refused, and a selector that looks at them."""

    def __init__(self, clients, most=16, request=REQUEST):
        self.clients, self.counted, self.refusal = clients, [], ANSWER
        self.repeats = Repeats(most, lambda: self.refusal, self.counted.append)
        self.selector = selectors.DefaultSelector()
        for client in clients:
            self.selector.register(client.ours, selectors.EVENT_READ)
            self.repeats.add(client.ours.fileno(), client, request)

    def round(self):
        """The clients whose events are left to the event loop."""
        left = {key.fd for key, _ in self.repeats.answer(self.selector.select(0))}
        return [client for client in self.clients if client.ours.fileno() in left]


@pytest.fixture
def clients():
    made = [Client() for _ in range(5)]
    yield made
    for client in made:
        client.ours.close()
        client.theirs.close()


def test_the_same_request_is_answered_and_taken_away(clients):
    server = Server(clients)
    for client in clients[:3]:
        client.theirs.send(REQUEST)
    assert server.round() == [] and server.round() == []
    assert [client.came() for client in clients] == [ANSWER] * 3 + [b""] * 2
    assert [client.notes for client in clients] == [[b""]] * 3 + [[]] * 2
    assert server.counted == [REQUEST] * 3


OTHERS = {
    "another one": REQUEST[:-1] + b"]",
    "a shorter one": REQUEST[:-1],
    "more": REQUEST + b"x",
    "two at once": 2 * REQUEST,
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_left_as_it_is(clients, name):
    server, odd = Server(clients), clients[0]
    odd.theirs.send(OTHERS[name])
    clients[1].theirs.send(REQUEST)
    clients[2].theirs.close()
    assert server.round() == [odd, clients[2]]
    assert odd.ours.recv(1 << 16) == OTHERS[name] and clients[1].came() == ANSWER
    assert odd.came() == b"" and odd.notes == [] and server.counted == [REQUEST]


def test_nobody_is_refused_while_there_is_room(clients):
    server = Server(clients)
    server.refusal = None
    clients[0].theirs.send(REQUEST)
    assert server.round() == [clients[0]] and clients[0].came() == b""


def test_a_connection_that_is_not_done_writing_is_left_and_so_is_one_that_was_taken_out(clients):
    server = Server(clients)
    clients[0].writable = False
    for _ in range(2):
        server.repeats.remove(clients[1].ours.fileno())
    for client in clients[:3]:
        client.theirs.send(REQUEST)
    assert server.round() == clients[:2] and clients[2].came() == ANSWER


def test_what_does_not_fit_the_socket_is_told(clients):
    server, slow = Server(clients), clients[0]
    server.refusal = ANSWER + b"x" * (8 << 20)
    slow.theirs.send(REQUEST)
    assert server.round() == []
    (unsent,) = slow.notes
    assert 0 < len(unsent) < len(server.refusal) and server.refusal.endswith(unsent)
    slow.theirs.send(REQUEST)
    assert server.round() == [slow]  # no room for a byte: the request stays
    assert slow.ours.recv(1 << 16) == REQUEST


def test_more_connections_and_longer_requests_than_there_is_room_for_are_left(clients):
    server = Server(clients, most=2)
    for client in clients:
        client.theirs.send(REQUEST)
    assert server.round() == clients[2:]
    server.repeats.remove(clients[0].ours.fileno())
    server.repeats.add(clients[2].ours.fileno(), clients[2], REQUEST)
    assert server.round() == clients[3:]
    long = Server(clients[3:], request=b"x" * (MOST_BYTES + 1))
    assert long.round() == clients[3:]
