"""Servers in a thread of the test, and requests as bytes."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from groundup import presets
from groundup.inference import Engine
from groundup.inference.server import Keys, Settings, create_app
from groundup.inference.server.metrics import Metrics
from groundup.inference.server.run import listen, new_server
from groundup.inference.service import Service
from groundup.model import Transformer
from groundup.tokenizer import Tokenizer

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEXT = ["the cat in the hat and the bat sat on the mat; and that was that, said the rat. ä ö 你好"]


def new_engine(
    context_length: int = 512, vocab_size: int = 300, specials: Sequence[str] = SPECIAL, **options: Any
) -> Engine:
    """Random weights, always the same."""
    tokenizer = Tokenizer.train_from_iterator(TEXT, vocab_size, special_tokens=specials)
    config = presets.llama(
        vocab_size=tokenizer.vocab_size, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2,
        context_length=context_length,
    )  # fmt: skip
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return Engine(model.eval(), tokenizer, **options)


class Running:
    """A server and how to reach it."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one request. Header names have _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if data is not None else {}
        try:
            connection.request(method, path, data, given | {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """(status, JSON) of a POST."""
        status, _, answer = self.ask("POST", path, body, **headers)
        return status, json.loads(answer)

    def raw(self, data: bytes, timeout: float = 60.0) -> bytes:
        """Everything that the server answers to these bytes, until it closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            connection.sendall(data)
            parts = []
            try:
                while part := connection.recv(1 << 16):
                    parts.append(part)
            except OSError:
                pass
            return b"".join(parts)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), 60)

    def wait_until_idle(self, seconds: float = 60.0) -> None:
        """Until nothing runs in the engine and no stream is open; AssertionError when that does not come."""
        deadline = time.monotonic() + seconds
        while True:
            stats = self.service.stats()
            busy = stats.running + stats.waiting + self.service.open_streams
            if not busy:
                return
            assert time.monotonic() < deadline, f"still busy: {stats}"
            time.sleep(0.005)


def post_bytes(path: str, body: Any, more: str = "") -> bytes:
    """A whole request, for a bare connection."""
    data = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n{more}\r\n"
    ).encode() + data


def events_of(body: bytes) -> list[Any]:
    """The JSON of each server-sent event; [DONE] as it is."""
    lines = [line for line in body.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


@contextmanager
def running_server(
    engine: Any, settings: Settings | None = None, keys: Keys | None = None, *, max_waiting: int = 64, **options: Any
) -> Iterator[Running]:
    """A real server on a free port of this machine, in a thread."""
    settings = settings or Settings(exit_on_failure=False)
    service = Service(engine, max_waiting)
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    metrics = Metrics()
    app = create_app(service, settings, keys, metrics=metrics, **options)
    server = new_server(app, service, settings, "127.0.0.1", port, metrics, keys)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Running(service, port)
    finally:
        server.should_exit = True
        thread.join(30)
        service.close()
        assert not thread.is_alive()
