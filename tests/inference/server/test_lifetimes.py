"""Clients that leave, dawdle or come in crowds; an engine that fails; a server that ends. Nothing is left behind."""

import contextlib
import itertools
import json
import logging
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from groundup.environ import for_child
from groundup.inference.server import Keys, Settings, application
from groundup.inference.server.metrics import OUTCOMES
from groundup.inference.server.run import FAILED, listen
from tests.inference.server.conftest import KEY, OTHER
from tests.inference.server.serving import events_of, new_engine, post_bytes, running_server

LONG = {"prompt": "the", "max_tokens": 400, "logit_bias": {"99": 100}, "temperature": 0}  # "c", 400 times
CHAT = {"messages": [{"role": "user", "content": "the"}], "max_tokens": 400, "logit_bias": {"99": 100}}


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(server, streamed):
    generated = server.service.stats().generated_tokens
    with server.connect() as connection:
        connection.sendall(post_bytes("/v1/completions", LONG | {"stream": streamed}))
        if streamed:
            until(lambda: b"data:" in connection.recv(4096))
        else:
            until(lambda: server.service.stats().generated_tokens > generated)
    server.wait_until_idle()
    assert server.service.stats().generated_tokens - generated < 400
    assert server.post("/v1/completions", LONG | {"max_tokens": 2})[0] == 200


def test_clients_that_leave_at_any_moment(server):
    """A whole request cut after any byte, or left at any time of its answer."""
    draw = random.Random(0)
    for number in range(60):
        body = (LONG if number % 2 else CHAT) | {"stream": number % 3 > 0, "n": 1 + number % 2}
        data = post_bytes("/v1/completions" if number % 2 else "/v1/chat/completions", body)
        with server.connect() as connection:
            connection.sendall(data[: draw.randrange(len(data) + 1)] if number % 4 == 0 else data)
            connection.settimeout(draw.choice((0.001, 0.01, 0.03)))
            try:
                while connection.recv(draw.randrange(1, 2000)):
                    if draw.random() < 0.2:
                        break
            except TimeoutError:
                pass
            if number % 5 == 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    server.wait_until_idle()
    stats = server.service.stats()
    assert (stats.running, stats.waiting, stats.requests_failed) == (0, 0, 0)
    assert server.post("/v1/completions", LONG | {"max_tokens": 2})[0] == 200


def test_a_second_request_before_the_answer_is_cut(server):
    data = post_bytes("/v1/completions", LONG)
    assert server.raw(data + data) == b""
    server.wait_until_idle()


@pytest.fixture(scope="module")
def hasty():
    """A server with short patience."""
    settings = Settings(header_seconds=0.3, body_seconds=0.4, idle_seconds=1.0, write_seconds=0.5)
    with running_server(new_engine(), settings) as server:
        yield server


def test_slow_headers_and_bodies(hasty):
    for begin, status in ((b"", b"408"), (b"GET / HTTP/1.1\r\nHost: lo", b"408")):
        assert hasty.raw(begin)[9:12] == status
    slow_body = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
    answer = hasty.raw(slow_body)
    assert answer[9:12] == b"408"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "timeout_error"


def test_headers_that_trickle(hasty):
    with hasty.connect() as connection:
        began = time.monotonic()
        connection.settimeout(0.05)
        answer = b""
        for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1000:
            try:
                connection.sendall(bytes([byte]))
                answer += connection.recv(100)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < 60
    assert hasty.ask("GET", "/health")[0] == 200


def test_what_is_no_http_and_long_headers(hasty):
    for data in (b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        answer = hasty.raw(data + b"\r\n\r\n")
        assert answer[9:12] in (b"400", b"421", b"505"), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    long = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"
    assert hasty.raw(long)[9:12] in (b"431", b"400", b"")


def test_a_crowd_of_idle_connections():
    """Whoever is one too many learns it, also while sending."""
    settings = Settings(max_connections=40, header_seconds=60)
    with running_server(new_engine(), settings) as server, contextlib.ExitStack() as closing:
        crowd = [closing.enter_context(server.connect()) for _ in range(60)]
        refused = 0
        for connection in crowd[45:]:
            with contextlib.suppress(OSError):
                connection.sendall(post_bytes("/v1/completions", {"prompt": "the", "max_tokens": 1}))
            refused += b"503" in connection.recv(200)[:20]
        assert refused == 15
        closing.close()
        until(lambda: server.ask("GET", "/health")[0] == 200)


def test_a_reader_that_reads_nothing_is_cut():
    """Its answer is larger than all buffers on the way."""
    with running_server(new_engine(), Settings(write_seconds=0.3)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", server.port))
        many = LONG | {"n": 60, "stream": True, "logprobs": 20, "max_tokens": 120}
        connection.sendall(post_bytes("/v1/completions", many))
        until(lambda: server.service.open_streams > 0)
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200  # others go on
        server.wait_until_idle(120)


def test_one_too_many_is_told_at_once():
    with running_server(new_engine(), Settings(), max_waiting=4) as server:
        answers = []

        def one():
            began = time.monotonic()
            answers.append(
                (*server.ask("POST", "/v1/completions", LONG | {"max_tokens": 60}), time.monotonic() - began)
            )

        threads = [threading.Thread(target=one) for _ in range(48)]
        for thread in threads:
            thread.start()
        health = server.ask("GET", "/health")[0]
        for thread in threads:
            thread.join()
        assert health == 200
        statuses = [status for status, *_ in answers]
        assert set(statuses) == {200, 429}
        for status, headers, body, _ in answers:
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= 60
                assert json.loads(body)["error"]["code"] == "queue_full"
        server.wait_until_idle()


def test_an_engine_that_fails_one_request_goes_on(monkeypatch):
    """NaN logits in one step: an error event in a stream that has begun, a 500 otherwise, and nothing after it."""
    engine = new_engine()
    with running_server(engine, Settings()) as server:
        logits = engine.model.logits
        for streamed in (True, False):
            steps = itertools.count()

            def broken(hidden, steps=steps):
                good = logits(hidden)
                return torch.full_like(good, torch.nan) if next(steps) == 3 else good

            monkeypatch.setattr(engine.model, "logits", broken)
            status, _, body = server.ask("POST", "/v1/completions", LONG | {"stream": streamed})
            monkeypatch.setattr(engine.model, "logits", logits)
            if streamed:
                assert status == 200
                last = events_of(body)[-1]
            else:
                assert status == 500
                last = json.loads(body)
            assert set(last["error"]) == {"message", "type", "param", "code"}
        assert server.post("/v1/completions", LONG | {"max_tokens": 2})[0] == 200
        server.wait_until_idle()


def test_an_engine_that_dies_is_told_of():
    engine = new_engine()
    with running_server(engine, Settings(exit_on_failure=False)) as server:
        engine.step = lambda: 1 / 0
        status, answer = server.post("/v1/completions", LONG)
        assert (status, answer["error"]["code"]) == (500, "request_failed")
        assert server.ask("GET", "/health")[0] == 503
        status, headers, _ = server.ask("POST", "/v1/completions", LONG)
        assert status == 503
        assert "retry-after" in headers


def test_an_engine_that_hangs_is_told_of():
    """Whoever waits gets an error: for tokens, for the score of a prompt, for a place in the queue."""
    engine, free = new_engine(), threading.Event()
    step = engine.step

    def hang():
        free.wait(60)
        return step()

    with running_server(engine, Settings(hang_seconds=0.5, exit_on_failure=False), max_waiting=4) as server:
        engine.step = hang
        echo = {"prompt": "the cat", "echo": True, "logprobs": 1, "max_tokens": 0}
        answers = []
        asked = [LONG, LONG | {"stream": True}, CHAT, echo]
        paths = ["/v1/chat/completions" if "messages" in body else "/v1/completions" for body in asked]
        threads = [
            threading.Thread(target=lambda *given: answers.append(server.ask("POST", *given)), args=pair)
            for pair in zip(paths, asked, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = [json.loads(body)["error"]["message"] for status, _, body in answers if status in (500, 503)]
        assert len(told) >= 3 and all("hangs" in words for words in told)  # the score may have come before a step
        assert server.ask("GET", "/health")[0] == 503
        assert server.post("/v1/completions", LONG)[0] == 503
        free.set()
        del engine.step


def test_an_answer_that_takes_too_long():
    engine = new_engine()
    with running_server(engine, Settings(request_seconds=0.2)) as server:
        step = engine.step
        engine.step = lambda: (time.sleep(0.05), step())[1]
        try:
            assert server.post("/v1/completions", LONG)[0] == 504
            status, _, body = server.ask("POST", "/v1/completions", LONG | {"stream": True})
            last = events_of(body)[-1] if status == 200 else json.loads(body)  # the first token may be late, too
            assert last["error"]["type"] == "timeout_error"
        finally:
            del engine.step
        server.wait_until_idle()


def test_draining_ends_what_has_begun():
    with running_server(new_engine(), Settings(drain_seconds=5)) as server, server.connect() as connection:
        connection.sendall(post_bytes("/v1/completions", LONG | {"stream": True, "max_tokens": 100}))
        body = connection.recv(1 << 16)
        server.service.draining = True
        assert server.ask("GET", "/health")[0] == 503
        assert server.post("/v1/completions", LONG)[0] == 503
        while b"[DONE]" not in body:
            part = connection.recv(1 << 16)
            assert part
            body += part


def test_metrics_and_statistics():
    with running_server(new_engine(), Settings(), Keys([KEY])) as server:
        given = {"Authorization": f"Bearer {KEY}"}
        secret = "the marker of a prompt"
        assert server.post("/v1/completions", {"prompt": secret, "max_tokens": 5}, **given)[0] == 200
        assert server.post("/v1/chat/completions", {"messages": 5}, **given)[0] == 400
        _, headers, body = server.ask("GET", "/metrics", **given)
        text = body.decode()
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'groundup_requests_total{endpoint="completions",outcome="completed"} 1' in text
        assert 'groundup_requests_total{endpoint="chat",outcome="invalid"} 1' in text
        assert "groundup_time_to_first_token_seconds_count 1" in text
        assert re.search(r"^groundup_engine_pages_total [1-9]", text, re.MULTILINE)
        sample = re.compile(r"^(# (HELP|TYPE) \w+ .+|\w+(\{(\w+=\"[^\"]*\",?)+\})? -?[0-9.e+-]+)$")
        assert [line for line in text.splitlines() if not sample.match(line)] == []
        before = text.count("\n")
        for number in range(20):
            server.ask("GET", f"/nothing-{number}", **given)
            server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "model": f"m{number}"}, **given)
        text = server.ask("GET", "/metrics", **given)[2].decode()
        assert text.count("\n") == before
        assert secret not in text
        stats = json.loads(server.ask("GET", "/stats", **given)[2])
        assert stats["generated_tokens"] == server.service.stats().generated_tokens
        assert stats["time_to_first_token"] > 0


def test_every_request_is_counted_once_with_its_outcome():
    """Those refused at the gate too; of the engine's answers, each under the reason for which it ended."""
    settings = Settings(max_body=2000, requests_per_minute=12)
    with running_server(new_engine(), settings, Keys([KEY])) as server:
        given, good = {"Authorization": f"Bearer {KEY}"}, {"prompt": "the", "max_tokens": 2}
        asks = [
            (good, given), (good | {"n": 3}, given), (good | {"max_tokens": 0}, given), (good | {"prompt": 5}, given),
            (good | {"prompt": "the" * 900}, given), (good, {}), (good, {"Authorization": "Bearer wrong"}),
            (good, given | {"Host": "evil"}), (good, given | {"Content_Type": "text/plain"}),
            (good | {"prompt": [1] * 600}, given), (good | {"model": "other"}, given),
        ]  # fmt: skip
        statuses = [server.ask("POST", "/v1/completions", body, **headers)[0] for body, headers in asks]
        assert statuses == [200, 200, 200, 400, 413, 401, 401, 421, 415, 400, 404]
        head = post_bytes("/v1/completions", good, f"Authorization: Bearer {'x' * 20}\r\n")
        with server.connect() as connection:  # refused from its first bytes
            connection.sendall(head)
            assert b"401" in connection.recv(100)
        later = [server.post("/v1/completions", good, **given)[0] for _ in range(9)]
        answered, refused = 3 + later.count(200), later.count(429)

        def counts():
            lines = server.ask("GET", "/metrics", **given)[2].decode().splitlines()
            pairs = [line.split() for line in lines if line.startswith("groundup_requests_")]
            return {name.removeprefix("groundup_requests_"): int(value) for name, value in pairs}

        sent = len(asks) + 1 + len(later)
        until(lambda: sum(n for name, n in counts().items() if name.startswith("total")) >= sent)
        found = counts()
    outcomes = {o: found[f'total{{endpoint="completions",outcome="{o}"}}'] for o in OUTCOMES}
    assert outcomes == {"completed": answered, "invalid": 9, "rejected": refused, "failed": 0, "cancelled": 0}
    assert answered + 9 + refused == sent
    ended = sum(count for name, count in found.items() if name.startswith("ended_total"))
    assert ended == found["submitted_total"] == 1 + 3 + later.count(200)


def test_a_vocabulary_without_an_explorer_says_so(monkeypatch):
    def refuse(name, tokenizer):
        raise ValueError("this vocabulary is too large for a page")

    monkeypatch.setattr(application, "explorer_page", refuse)
    with running_server(new_engine()) as server:
        status, _, body = server.ask("GET", "/explorer")
    assert status == 404 and "too large for a page" in json.loads(body)["error"]["message"]


def test_logs_have_neither_prompts_nor_keys(caplog, capfd):
    caplog.set_level(logging.INFO)
    with running_server(new_engine(), Settings(), Keys([KEY])) as server:
        for body in ({"prompt": "marker-of-a-prompt", "max_tokens": 2}, {"prompt": "marker-of-a-prompt", "n": -1}):
            server.post("/v1/completions", body, Authorization=f"Bearer {KEY}")
        server.ask("GET", "/x%0d%0aforged-line", Authorization="Bearer marker-of-a-key")
        server.raw(b"forged-line\r\n\r\n")
    out, err = capfd.readouterr()
    logged = caplog.text + out + err
    for marker in ("marker-of", KEY, "forged-line"):
        assert marker not in logged


def test_prefixes_are_shared_within_a_key_only():
    prompt = "the cat in the hat and the bat sat on the mat; and that was that, said the rat"
    body = {"prompt": prompt * 2, "max_tokens": 1}
    with running_server(new_engine(), Settings(), Keys([KEY, OTHER])) as server:

        def cached(key):
            before = server.service.stats().cached_prompt_tokens
            assert server.post("/v1/completions", body, Authorization=f"Bearer {key}")[0] == 200
            server.wait_until_idle()
            return server.service.stats().cached_prompt_tokens - before

        assert cached(KEY) == 0
        assert cached(KEY) > 0
        assert cached(OTHER) == 0
        assert cached(OTHER) > 0


HANGS = """
import itertools, time
engine, steps = new_engine(), itertools.count()
step = engine.step
engine.step = lambda: time.sleep(3600) if next(steps) == 3 else step()
service = Service(engine)
"""

PROGRAM = """
import sys
from groundup.inference.server import Keys, Settings, serve
from groundup.inference.server.run import listen
from groundup.inference.service import Service
from tests.inference.server.serving import new_engine
service = Service(new_engine())
bound = listen("127.0.0.1", 0)
print(bound.getsockname()[1], flush=True)
sys.exit(serve(service, bound, Settings(drain_seconds=2), Keys([])))
"""


@pytest.mark.slow
def test_sigterm_lets_answers_end(repository):
    environment = for_child({"PYTHONPATH": f"{repository / 'src'}:{repository}"})
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=environment, cwd=repository)  # fmt: skip
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(post_bytes("/v1/completions", LONG | {"stream": True}))
            body = connection.recv(1 << 16)
            process.send_signal(signal.SIGTERM)
            while part := connection.recv(1 << 16):
                body += part
            assert b"[DONE]" in body or b'"error"' in body
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_server_whose_engine_hangs_ends_and_another_one_takes_its_place(repository):
    """As a supervisor sees it: no answer is lost in silence, the exit code is FAILED, and nothing keeps the port."""
    environment = for_child({"PYTHONPATH": f"{repository / 'src'}:{repository}"})
    hanging = PROGRAM.replace("service = Service(new_engine())", HANGS).replace("=2)", "=2, hang_seconds=5)")
    with subprocess.Popen([sys.executable, "-c", hanging], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment, cwd=repository) as process:  # fmt: skip
        try:
            assert process.stdout
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                connection.sendall(post_bytes("/v1/completions", LONG | {"stream": True}))
                connection.settimeout(120)
                body = b""
                while part := connection.recv(1 << 16):
                    body += part
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert b"data: " in body and b"hangs" in body.rpartition(b"data: ")[2]
    assert process.returncode == FAILED and "the engine has been in one step for" in err
    with listen("127.0.0.1", port):
        pass
