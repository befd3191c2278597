"""A full server: refusals that cost nearly nothing, the same on every way, and nothing left over afterwards."""

import contextlib
import json
import socket
import threading
import time

import pytest

from groundup.inference.server import Keys, Settings
from groundup.inference.server.metrics import Metrics
from groundup.inference.server.shedding import REMEMBERED, Shedder, whole_request
from groundup.inference.service import Service
from groundup.inference.streams import QueueFull
from tests.inference.server.conftest import KEY
from tests.inference.server.serving import SPECIAL, new_engine, post_bytes, running_server

PATH = "/v1/completions"


def endless(engine, tokens=3000):
    """A request that ends by its length alone."""
    never = {str(engine.tokenizer.special_tokens[token]): -100 for token in SPECIAL}
    return {"prompt": "the cat", "max_tokens": tokens, "logit_bias": never, "stream": True}


@pytest.fixture(scope="module")
def small():
    """One place in the batch, one in the queue; headers have half a second."""
    engine = new_engine(4096, batch_size=1)
    with running_server(engine, Settings(header_seconds=0.5), max_waiting=1) as running:
        yield running


@contextlib.contextmanager
def filled(server, more=""):
    """While inside, one request runs and one waits."""
    held = []
    try:
        for number in (1, 2):
            held.append(server.connect())  # now, as it must not wait long for its headers
            held[-1].sendall(post_bytes(PATH, endless(server.service.engine), more))
            deadline = time.monotonic() + 60
            while server.service.open_streams < number or server.service.stats().running < 1:
                assert time.monotonic() < deadline
                time.sleep(0.002)
        yield
    finally:
        for connection in held:
            connection.close()
        server.wait_until_idle()


def read_answer(connection):
    """Status, headers and JSON of one answer with a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(1 << 16)
    return int(lines[0].split()[1]), headers, json.loads(body)


SHORT = {"prompt": "the", "max_tokens": 1}


def test_a_refusal_is_the_same_the_short_and_the_long_way(small):
    with filled(small), small.connect() as short, small.connect() as long:
        short.sendall(post_bytes(PATH, SHORT))
        long.sendall(post_bytes(PATH, SHORT, "Connection: close\r\n"))
        (status, headers, body), (other_status, other_headers, other_body) = map(read_answer, (short, long))
    assert status == other_status == 429
    assert body == other_body
    assert body["error"]["code"] == "queue_full" and body["error"]["type"] == other_body["error"]["type"]
    assert int(headers["retry-after"]) >= 1 and int(other_headers["retry-after"]) >= 1
    assert headers["content-type"] == other_headers["content-type"] == "application/json"


def test_a_refused_connection_stays_open_and_is_answered_later(small):
    with contextlib.ExitStack() as closing:
        with filled(small):
            connection = closing.enter_context(small.connect())
            for _ in range(3):
                connection.sendall(post_bytes(PATH, SHORT))
                assert read_answer(connection)[0] == 429
            time.sleep(0.7)  # longer than headers may take, which are not awaited now
            connection.sendall(post_bytes("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}))
            assert read_answer(connection)[0] == 429
        connection.sendall(post_bytes(PATH, SHORT))
        status, _, body = read_answer(connection)
        assert status == 200 and body["usage"]["completion_tokens"] <= 1
    counts = small.ask("GET", "/metrics")[2].decode()
    assert 'groundup_requests_total{endpoint="completions",outcome="rejected"} ' in counts


def test_health_is_answered_while_requests_are_refused(small):
    with filled(small):
        assert small.ask("GET", "/health")[0] == 200
        assert small.post(PATH, SHORT)[0] == 429


@pytest.mark.parametrize(
    ("change", "endpoint"),
    [
        (lambda data: data, "completions"),
        (lambda data: data.replace(b"/v1/completions", b"/v1/chat/completions"), "chat"),
        (lambda data: data[:-1], None),
        (lambda data: data.replace(b"Host", b"Origin: http://localhost\r\nHost"), None),
        (lambda data: data.replace(b"Host", b"X: a\r\n b\r\nHost"), None),
        (lambda data: data.replace(b"Host", b"X: a\nHost"), None),
        (lambda data: data.replace(b"Host", b"Host: b\r\nHost"), None),
        (lambda data: data.replace(b"Host", b"X-Host"), None),
        (lambda data: data.replace(b"Content", b"Authorization: Bearer y\r\nContent"), None),
        (lambda data: data + b"G", None),
        (lambda data: data.replace(b"POST", b"GET"), None),
        (lambda data: data.replace(b"/v1/completions", b"/v1/completions?x"), None),
        (lambda data: data.replace(b"HTTP/1.1", b"HTTP/1.0"), None),
        (lambda data: data.replace(b"Host", b"Transfer-Encoding: chunked\r\nHost"), None),
        (lambda data: data.replace(b"Host", b"Expect: 100-continue\r\nHost"), None),
        (lambda data: data.replace(b"Host", b"Connection: close\r\nHost"), None),
        (lambda data: data.replace(b"Host", b"Content-Length: 1\r\nHost"), None),
        (lambda data: data.replace(b"Content-Length", b"X-Content-Length"), None),
        (lambda data: data.partition(b"\r\n\r\n")[0], None),
        (lambda data: b"\x00" * 100, None),
    ],
)
def test_only_a_plain_and_whole_request_takes_the_short_way(change, endpoint):
    plain = whole_request(change(post_bytes(PATH, SHORT, "Authorization: Bearer x\r\n")))
    assert (plain and plain.endpoint) == endpoint
    assert plain is None or (plain.host, plain.authorization) == (b"localhost", b"Bearer x")


class Places(Service):
    """A service without an engine that has so many places."""

    def __init__(self, places):
        self.places = places

    def has_no_place_but(self, claimed):
        return claimed >= self.places

    def queue_full(self):
        return QueueFull(5, 2)


def test_nobody_is_let_in_for_a_place_that_is_claimed():
    shedder = Shedder(Places(2), Metrics(), Keys([]), Settings())
    request, tickets = post_bytes(PATH, SHORT), [shedder.new_ticket() for _ in range(3)]
    assert shedder(request, tickets[0]) is None and shedder(request, tickets[1]) is None
    refused = shedder(request, tickets[2])
    assert refused is not None and b"429 Too Many" in refused and b"retry-after: 2" in refused
    tickets[2].release()  # which it never had
    assert shedder(request, tickets[2]) == refused
    for _ in range(2):
        tickets[0].release()
    assert shedder(request, tickets[2]) is None
    assert shedder(request, tickets[0]) == refused


def test_what_is_remembered_of_a_head_holds_for_that_head_and_length_alone():
    key, full = f"Authorization: Bearer {KEY}\r\n", Places(0)
    shedder = Shedder(full, Metrics(), Keys([KEY]), Settings())
    request, ticket = post_bytes(PATH, SHORT, key), shedder.new_ticket()
    for _ in range(2):
        assert b" 429 " in (shedder(request, ticket) or b"")
    for other in (request + b"x", request[:-1], request.replace(b"localhost", b"elsewhere"), b"GET" + request[4:]):
        assert shedder(other, ticket) is None
    for _ in range(2):
        wrong = shedder(request.replace(KEY.encode(), KEY[:-1].encode() + b"!"), ticket)
        assert b" 401 " in (wrong or b"")
    for number in range(3 * REMEMBERED):
        assert b" 429 " in (shedder(post_bytes(PATH, SHORT, f"{key}X: {number}\r\n"), ticket) or b"")
    assert len(shedder._heads) <= REMEMBERED and not shedder._taken


def test_a_claim_ends_with_its_request_however_that_ends():
    """One place in the queue, and requests before it that are wrong, refused by the gate, left or cut."""
    engine = new_engine(batch_size=1)
    with running_server(engine, max_waiting=1) as server:
        for wrong in ({"prompt": 5}, {"prompt": "x", "max_tokens": -1}, {"prompt": "x", "model": "other"}):
            assert server.post(PATH, wrong)[0] in (400, 404)
        for _ in range(5):
            with server.connect() as connection:
                connection.sendall(post_bytes(PATH, endless(engine, 50)))
        deadline = time.monotonic() + 60
        while server.post(PATH, SHORT)[0] == 429:  # until the server has seen that they left
            assert time.monotonic() < deadline, "a claim was never given up"
            time.sleep(0.01)
        server.wait_until_idle()
        with server.connect() as connection:
            for _ in range(3):
                connection.sendall(post_bytes(PATH, SHORT))
                assert read_answer(connection)[0] == 200


def test_without_a_key_nobody_learns_that_the_server_is_full():
    """The same bytes of an answer, full or not; with a key 429, and another host or origin is seen to first."""
    wrong = [post_bytes(PATH, SHORT), *(post_bytes(PATH, SHORT, f"Authorization: {given}\r\n") for given in (
        "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY[:-1]}", f"Bearer {KEY}\r\nAuthorization: Bearer {KEY}"
    ))]  # fmt: skip
    right = post_bytes(PATH, SHORT, f"AUTHORIZATION:  bearer {KEY}\r\n")
    engine = new_engine(4096, batch_size=1)
    with running_server(engine, Settings(), Keys([KEY]), max_waiting=1) as server:

        def asked(request):
            with server.connect() as connection:
                connection.sendall(request)
                status, headers, body = read_answer(connection)
            return status, headers.get("www-authenticate"), "retry-after" in headers, body

        before = [asked(request) for request in wrong]
        assert asked(right)[0] == 200
        with filled(server, f"Authorization: Bearer {KEY}\r\n"):
            assert [asked(request) for request in wrong] == before
            assert asked(right)[::2] == (429, True)
            assert asked(right.replace(b"localhost", b"evil.example"))[0] == 421
            assert asked(right.replace(b"Host", b"Origin: http://evil.example\r\nHost"))[0] == 403
        assert {answer[:3] for answer in before} == {(401, "Bearer", False)}


def test_under_overload_the_engine_works_on_and_nothing_is_left():
    """Forty clients for three places: whoever gets in is answered, the others are told, and no page is lost."""
    engine = new_engine(batch_size=2)
    answers = []

    def client(port, body):
        with socket.create_connection(("127.0.0.1", port), 120) as connection:
            for _ in range(12):
                connection.sendall(body)
                answers.append(read_answer(connection))

    with running_server(engine, max_waiting=1) as server:
        body = post_bytes(PATH, {**endless(engine, 24), "stream": False})
        clients = [threading.Thread(target=client, args=(server.port, body)) for _ in range(40)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        server.wait_until_idle()
        stats = server.service.stats()
        assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
        assert stats.requests_failed == stats.requests_aborted == 0
    assert len(answers) == 480
    done = [body for status, _, body in answers if status == 200]
    told = [(headers, body) for status, headers, body in answers if status == 429]
    assert len(done) + len(told) == 480 and done and told
    assert stats.requests_finished == len(done)
    assert {body["usage"]["completion_tokens"] for body in done} == {24}
    assert all("retry-after" in headers and body["error"]["code"] == "queue_full" for headers, body in told)
