"""What a server does with 1, 10 and 100 times the requests that it can answer.

    PYTHONPATH=src python experiments/029_overload.py --seconds 120 --times 100 --out 029_overload.jsonl

`groundup serve` runs as a process of its own, with a small model. Its peak is measured with as many clients as its
batch has places, each asking again when it is answered. Then requests arrive by chance (Poisson) at multiples of that
rate, whether or not earlier ones are answered, over connections that are kept. Counted are the answers that were
completed (goodput), how long they and the refusals took, the server's memory, what it still holds afterwards, and how
connections broke, if any did.

The generator of the load shares the server's processors. It is one loop over bare sockets with bytes made beforehand,
and the processor time that it takes is measured. The control is the peak once more, beside a process that burns just
that much and sends nothing: what 100 times the load leaves of the control is the server's own doing.

    of_peak      goodput / goodput of the peak          the server's loss and the generator's
    of_control   goodput / goodput of the control       the server's loss

The last line is all of it as JSON.
"""

import argparse
import json
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundup import presets
from groundup.model import Transformer
from groundup.model.source import Source, write_folder
from groundup.tokenizer import Tokenizer

MOST_OPEN = 1500  # requests under way: an arrival beyond them is not sent, and counted
IDLE_SECONDS = 20.0  # a kept connection is closed before the server does so, after 30
BURN = """
import sys, time
share, began, own = float(sys.argv[1]), time.perf_counter(), time.process_time()
while True:
    while time.process_time() - own < share * (time.perf_counter() - began):
        pass
    time.sleep(0.001)
"""
"""Takes a share of a processor, a millisecond at a time, as the generator does."""


def write_model(folder: Path, d_model: int, num_layers: int) -> None:
    """A model that never ends by itself: its answers are as long as they are asked to be."""
    tokenizer = Tokenizer.train_from_iterator(["the cat in the hat sat on the mat"] * 9, 270, ["<|endoftext|>"])
    config = presets.llama(d_model=d_model, num_layers=num_layers, num_heads=4, vocab_size=270, context_length=512)
    write_folder(Source(Transformer(config), tokenizer), folder)


class Connection:
    """A socket, and the request that is under way on it."""

    __slots__ = ("began", "buffer", "is_health", "is_idle", "socket", "used")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.began, self.used, self.buffer, self.is_health, self.is_idle = 0.0, False, b"", False, False


class Load:
    """Sends requests to one server and keeps account of what came back."""

    def __init__(self, port: int, pid: int, tokens: int) -> None:
        self.port, self.pid = port, pid
        body = json.dumps({"prompt": "the cat", "max_tokens": tokens, "logit_bias": {"269": -100}}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body
        self.health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.idle: list[Connection] = []  # the one that was used last comes first
        self.known: dict[bytes, tuple[int, bool]] = {}  # short answers that have been read before
        self.reset()

    def reset(self) -> None:
        """A new account."""
        self.answered: list[float] = []
        self.refused: list[float] = []
        self.health_ms: list[float] = []
        self.mb: list[float] = []
        self.failed = self.unsent = self.stale = self.without_retry = 0
        self.broken: Counter[str] = Counter()
        self.next_look = 0.0

    @property
    def under_way(self) -> int:
        """Requests without an answer."""
        return len(self.connections) - len(self.idle)

    def send(self, is_health: bool = False) -> None:
        """One request, on a kept connection if there is one."""
        if self.under_way >= MOST_OPEN:
            self.unsent += 1
            return
        if self.idle:
            connection = self.idle.pop()
        else:
            connection = Connection(self.port)
            self.connections[connection.socket.fileno()] = connection
            self.poll.register(connection.socket, select.EPOLLIN)
        connection.began, connection.is_health, connection.is_idle = time.perf_counter(), is_health, False
        try:
            connection.socket.send(self.health if is_health else self.request)
        except OSError as error:
            self.lose(connection, type(error).__name__)

    def receive(self, seconds: float) -> int:
        """Wait so long at most for answers, and take those that came; how many came to an end."""
        before = self.under_way
        for number, _ in self.poll.poll(seconds):
            connection = self.connections.get(number)
            if connection is None:
                continue
            try:
                data = connection.buffer + connection.socket.recv(1 << 16)
            except BlockingIOError:  # a connection that has just got the number of another
                continue
            except OSError as error:
                self.lose(connection, type(error).__name__)
                continue
            if data == connection.buffer or connection.is_idle:
                self.lose(connection, "closed by the server")
            elif (status := self.read(data)) is None:
                connection.buffer = data
            else:
                self.account(connection, status)
        return before - self.under_way

    def read(self, data: bytes) -> int | None:
        """The status of an answer that is whole."""
        found = self.known.get(data)
        if found is None:
            head, end, body = data.partition(b"\r\n\r\n")
            lower = head.lower()
            length = lower.partition(b"content-length:")[2].partition(b"\r\n")[0]
            if not end or len(body) < int(length):
                return None
            status = int(head[9:12])
            found = status, status in (429, 503) and b"retry-after:" not in lower
            if status != 200 and len(self.known) < 1000:
                self.known[data] = found
        status, lacks_retry = found
        self.without_retry += lacks_retry
        return status

    def account(self, connection: Connection, status: int) -> None:
        """An answer came."""
        seconds = time.perf_counter() - connection.began
        if connection.is_health:
            self.health_ms.append(1000 * seconds if status == 200 else 1e6)
        elif status == 200:
            self.answered.append(seconds)
        elif status in (429, 503):
            self.refused.append(seconds)
        else:
            self.failed += 1
        connection.buffer, connection.used, connection.is_idle = b"", True, True
        self.idle.append(connection)

    def lose(self, connection: Connection, how: str) -> None:
        """A connection broke; a request that had gone out on a kept one is asked again."""
        self.close(connection)
        if connection.is_idle:
            self.idle.remove(connection)
            return
        self.broken[f"{how} on a {'kept' if connection.used else 'new'} connection"] += 1
        self.stale += connection.used
        if connection.used:
            self.send(connection.is_health)
        else:
            self.failed += 1

    def close(self, connection: Connection) -> None:
        """Also out of the books."""
        number = connection.socket.fileno()
        self.poll.unregister(number)
        del self.connections[number]
        connection.socket.close()

    def look(self) -> None:
        """Every second: ask for /health, note the server's memory, close connections that have not been used."""
        now = time.perf_counter()
        if now < self.next_look:
            return
        self.next_look = now + 1
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        self.mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        while self.idle and self.idle[0].began < now - IDLE_SECONDS:
            self.close(self.idle.pop(0))
        self.send(is_health=True)

    def closed(self, clients: int, seconds: float) -> None:
        """Clients that ask again as soon as they are answered."""
        end = time.perf_counter() + seconds
        for _ in range(clients):
            self.send()
        while self.under_way:
            before = len(self.answered) + len(self.refused) + self.failed
            self.receive(1.0)
            if time.perf_counter() < end:
                for _ in range(len(self.answered) + len(self.refused) + self.failed - before):
                    self.send()
                self.look()

    def arriving(self, rate: float, seconds: float, draw: random.Random) -> None:
        """Requests at random times, `rate` a second on average."""
        due = time.perf_counter()
        end = due + seconds
        while (now := time.perf_counter()) < end:
            while due <= now:
                self.send()
                due += draw.expovariate(rate)
            self.look()
            self.receive(max(0.0, min(due, end) - time.perf_counter()))
        while self.under_way:
            self.receive(1.0)


def cpu_seconds(pid: int) -> dict[int, float]:
    """Processor time of each of the process's threads."""
    times = {}
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        times[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times


def cpu_shares(pid: int, before: dict[int, float], seconds: float) -> dict[str, float]:
    """Of a processor, since then: the event loop's, of the busiest other thread (the engine's), of all others."""
    shares = {thread: (now - before.get(thread, 0.0)) / seconds for thread, now in cpu_seconds(pid).items()}
    loop = shares.pop(pid)
    others = sorted(shares.values(), reverse=True) or [0.0]
    return {name: round(share, 3) for name, share in
            (("loop", loop), ("engine", others[0]), ("others", sum(others[1:])))}  # fmt: skip


def quantile(values: list[float], share: float) -> float | None:
    """In milliseconds."""
    return round(1000 * sorted(values)[int(share * (len(values) - 1))], 1) if values else None


def measure(load: Load, name: str, work: Callable[[], None]) -> dict[str, Any]:
    """One line of the result."""
    load.reset()
    began, own, before = time.perf_counter(), time.process_time(), cpu_seconds(load.pid)
    work()
    took = time.perf_counter() - began
    health, mb = load.health_ms or [0.0], load.mb
    return {
        "load": name, "seconds": round(took, 1), "goodput": round(len(load.answered) / took, 2),
        "answered": len(load.answered), "refused": len(load.refused), "failed": load.failed,
        "stale": load.stale, "broken": dict(load.broken), "unsent": load.unsent,
        "refusals_without_retry_after": load.without_retry,
        "answer_ms": {"p50": quantile(load.answered, 0.5), "p99": quantile(load.answered, 0.99)},
        "refusal_ms": {"p50": quantile(load.refused, 0.5), "p99": quantile(load.refused, 0.99)},
        "health_ms": {"p50": round(statistics.median(health), 1), "max": round(max(health), 1)},
        "mb": {"first": round(mb[0], 1), "half": round(mb[len(mb) // 2], 1), "last": round(mb[-1], 1)},
        "cpu": {"generator": round((time.process_time() - own) / took, 4),
                **cpu_shares(load.pid, before, took)},
    }  # fmt: skip


def held(load: Load) -> dict[str, int]:
    """What the server holds when nothing runs and the kept connections are closed: all of it should be 0."""
    while load.idle:
        load.close(load.idle.pop())
    time.sleep(1.0)
    with socket.create_connection(("127.0.0.1", load.port), 10) as connection:
        connection.sendall(b"GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as answer:
            stats = json.loads(answer.read().partition(b"\r\n\r\n")[2])
    return {name: stats[name] for name in ("running", "queue", "pages_used")}


def controlled(load: Load, options: argparse.Namespace, share: float) -> dict[str, Any]:
    """The peak beside a process that burns this share of a processor."""
    burner = subprocess.Popen([sys.executable, "-c", BURN, str(share)])
    try:
        time.sleep(0.5)
        before = cpu_seconds(burner.pid)
        line = measure(load, "control", lambda: load.closed(options.batch_size, options.peak_seconds))
        line["cpu"]["burned"] = cpu_shares(burner.pid, before, line["seconds"])["loop"]
    finally:
        burner.kill()
        burner.wait()
    return line


def run(port: int, pid: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Warm up, the peak, each load, and its control."""
    load, draw = Load(port, pid, options.tokens), random.Random(0)
    load.closed(options.batch_size, 3)
    lines: list[dict[str, Any]] = []

    def note(line: dict[str, Any]) -> None:
        lines.append(line)
        print(json.dumps(line), flush=True)

    note(measure(load, "peak", lambda: load.closed(options.batch_size, options.peak_seconds)))
    peak = lines[0]["goodput"]
    for times in options.times:
        line = measure(load, f"{times}x", lambda times=times: load.arriving(times * peak, options.seconds, draw))
        line |= {"of_peak": round(line["goodput"] / peak, 3), "held_afterwards": held(load)}
        control = controlled(load, options, line["cpu"]["generator"])
        note(line | {"of_control": round(line["goodput"] / control["goodput"], 3)})
        note(control)
    note(measure(load, "peak again", lambda: load.closed(options.batch_size, options.peak_seconds)))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--peak-seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--times", type=int, nargs="*", default=[1, 10, 100])
    parser.add_argument("--weights", default=None)
    parser.add_argument("--threads", type=int, help="of the server; OMP_NUM_THREADS")
    parser.add_argument("--d-model", type=int, default=64, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "tiny", options.d_model, options.layers)
        command = [sys.executable, "-m", "groundup.cli", "serve", f"{folder}/tiny", "--port", "0", "--device", "cpu",
                   "--batch-size", str(options.batch_size), "--max-waiting", str(2 * options.batch_size)]  # fmt: skip
        command += ["--weights", options.weights] if options.weights else []
        environment = os.environ | ({"OMP_NUM_THREADS": str(options.threads)} if options.threads else {})
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split(" (page)")[0].rpartition(":")[2])
            lines = run(port, server.pid, options)
        finally:
            server.send_signal(signal.SIGTERM)
            print("exit code", server.wait(60))
    if options.out:
        Path(options.out).write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
