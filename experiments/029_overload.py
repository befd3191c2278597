"""What a server does with 1, 10 and 100 times the requests that it can answer.

    PYTHONPATH=src python experiments/029_overload.py --seconds 120 --times 100 --out 029_overload.jsonl

`groundup serve` runs as a process of its own, with a small model. Its peak is measured with as many clients as its
batch has places, each asking again when it is answered. Then requests arrive by chance (Poisson) at multiples of that
rate, whether or not earlier ones are answered, over connections that are kept. Counted are the answers that were
completed (goodput), how long they and the refusals took, the server's memory, what it still holds afterwards, and how
connections broke, if any did. The last line is all of it as JSON.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from groundup import presets
from groundup.model import Transformer
from groundup.model.source import Source, write_folder
from groundup.tokenizer import Tokenizer

PEAK_SECONDS = 10.0
MOST_OPEN = 1500  # connections of the generator: an arrival that finds none free is not sent, and counted


def write_model(folder: Path, d_model: int, num_layers: int) -> None:
    """A model that never ends by itself: its answers are as long as they are asked to be."""
    tokenizer = Tokenizer.train_from_iterator(["the cat in the hat sat on the mat"] * 9, 270, ["<|endoftext|>"])
    config = presets.llama(d_model=d_model, num_layers=num_layers, num_heads=4, vocab_size=270, context_length=512)
    write_folder(Source(Transformer(config), tokenizer), folder)


class Load:
    """Sends requests to one server and keeps account of what came back."""

    def __init__(self, port: int, tokens: int) -> None:
        self.port = port
        body = json.dumps({"prompt": "the cat", "max_tokens": tokens, "logit_bias": {"269": -100}}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.open = 0
        self.reset()

    def reset(self) -> None:
        """A new account."""
        self.answered: list[float] = []
        self.refused: list[float] = []
        self.failed = self.unsent = self.stale = self.without_retry = 0
        self.broken: Counter[str] = Counter()

    async def ask(self, request: bytes | None = None) -> tuple[int, float]:
        """One request: status and seconds; status 0 for a connection that broke."""
        began = time.perf_counter()
        kept = bool(self.idle)
        try:
            reader, writer = self.idle.pop() if kept else await self._connect()
        except OSError as error:
            self.broken[f"{type(error).__name__} in connecting"] += 1
            return 0, time.perf_counter() - began
        try:
            writer.write(request or self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, EOFError, ValueError) as error:
            self.broken[f"{type(error).__name__} on a {'kept' if kept else 'new'} connection"] += 1
            writer.close()
            self.open -= 1
            if kept:  # the server had closed it, as it does after half a minute without a request
                self.stale += 1
                return await self.ask(request)
            return 0, time.perf_counter() - began
        status = int(head[9:12])
        self.without_retry += status in (429, 503) and b"retry-after:" not in head.lower()
        if b"connection: close" in head.lower():
            writer.close()
            self.open -= 1
        else:
            self.idle.append((reader, writer))
        return status, time.perf_counter() - began

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.open += 1
        try:
            return await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            self.open -= 1
            raise

    async def count(self) -> None:
        """One request, accounted for."""
        status, seconds = await self.ask()
        if status == 200:
            self.answered.append(seconds)
        elif status in (429, 503):
            self.refused.append(seconds)
        else:
            self.failed += 1

    async def closed(self, clients: int, seconds: float) -> None:
        """Clients that ask again as soon as they are answered."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self.count()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def arriving(self, rate: float, seconds: float, draw: random.Random) -> None:
        """Requests at random times, `rate` a second on average."""
        began = due = time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        while due < began + seconds:
            due += draw.expovariate(rate)
            if (wait := due - time.perf_counter()) > 0.001:
                await asyncio.sleep(wait)
            if self.open - len(self.idle) >= MOST_OPEN:
                self.unsent += 1
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self.count())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


async def watch(load: Load, pid: int, seen: dict[str, list[float]]) -> None:
    """Every second: how long /health takes, and the server's memory in MB."""
    while True:
        status, seconds = await load.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seen["health_ms"].append(1000 * seconds if status == 200 else 1e6)
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        seen["mb"].append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        await asyncio.sleep(1)


def quantile(values: list[float], share: float) -> float | None:
    """In milliseconds."""
    return round(1000 * sorted(values)[int(share * (len(values) - 1))], 1) if values else None


async def measure(load: Load, pid: int, name: str, seconds: float, work: Any) -> dict[str, Any]:
    """One line of the result."""
    load.reset()
    seen: dict[str, list[float]] = {"health_ms": [], "mb": []}
    watching = asyncio.create_task(watch(load, pid, seen))
    began = time.perf_counter()
    await work
    took = time.perf_counter() - began
    watching.cancel()
    half = len(seen["mb"]) // 2
    return {
        "load": name, "seconds": round(took, 1), "goodput": round(len(load.answered) / took, 2),
        "answered": len(load.answered), "refused": len(load.refused), "failed": load.failed,
        "stale": load.stale, "broken": dict(load.broken), "unsent": load.unsent,
        "refusals_without_retry_after": load.without_retry,
        "answer_ms": {"p50": quantile(load.answered, 0.5), "p99": quantile(load.answered, 0.99)},
        "refusal_ms": {"p50": quantile(load.refused, 0.5), "p99": quantile(load.refused, 0.99)},
        "health_ms": {"p50": round(statistics.median(seen["health_ms"]), 1), "max": round(max(seen["health_ms"]), 1)},
        "mb": {"first": round(seen["mb"][0], 1), "half": round(seen["mb"][half], 1), "last": round(seen["mb"][-1], 1)},
    }  # fmt: skip


async def held(load: Load) -> dict[str, int]:
    """What the server holds when nothing runs and the kept connections are closed: all of it should be 0."""
    for _, writer in load.idle:
        writer.close()
    load.open -= len(load.idle)
    load.idle.clear()
    await asyncio.sleep(1.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
    writer.write(b"GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    stats = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    return {name: stats[name] for name in ("running", "queue", "pages_used")}


async def run(port: int, pid: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Warm up, the peak, and each load."""
    load, draw = Load(port, options.tokens), random.Random(0)
    await load.closed(options.batch_size, 3)
    seconds = min(options.seconds, PEAK_SECONDS)
    lines = [await measure(load, pid, "peak", seconds, load.closed(options.batch_size, seconds))]
    peak = lines[0]["goodput"]
    for times in options.times:
        arriving = load.arriving(times * peak, options.seconds, draw)
        line = await measure(load, pid, f"{times}x", options.seconds, arriving)
        line |= {"of_peak": round(line["goodput"] / peak, 3), "held_afterwards": await held(load)}
        lines.append(line)
        print(json.dumps(line), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--times", type=int, nargs="*", default=[1, 10, 100])
    parser.add_argument("--weights", default=None)
    parser.add_argument("--d-model", type=int, default=64, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "tiny", options.d_model, options.layers)
        command = [sys.executable, "-m", "groundup.cli", "serve", f"{folder}/tiny", "--port", "0", "--device", "cpu",
                   "--batch-size", str(options.batch_size), "--max-waiting", str(2 * options.batch_size)]  # fmt: skip
        command += ["--weights", options.weights] if options.weights else []
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split(" (page)")[0].rpartition(":")[2])
            lines = asyncio.run(run(port, server.pid, options))
        finally:
            server.send_signal(signal.SIGTERM)
            print("exit code", server.wait(60))
    if options.out:
        Path(options.out).write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
