"""Entry 036: what a server is told that makes no sense, and clients that behave badly, by the ten thousand.

    python experiments/036_serving_faults.py [--direct 1000000] [--requests 20000] [--bytes 20000] [--leavers 10000]

Direct, in this process and without HTTP: random fields of sampling on their way through the checks of the server and
of the engine, and random bytes through the reading of bodies; whatever is neither taken nor answered with a 4xx stops
the experiment. Then against `groundup serve` in a process of its own: requests with random fields, requests with bytes
changed, cut or doubled, clients that leave at any moment, connections that send a byte a second while others are
served, SIGKILL and a new start on the same port, SIGTERM under load. Prints a line per part, and all of them as one
JSON line at the end. Needs the repository's tests beside it.
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.inference.server.serving import new_engine
from tests.inference.server.test_requests import CHAT, CHAT_FIELDS, FIELDS, GOOD, fuzzed

from groundup import presets
from groundup.inference.server.body import parse
from groundup.inference.server.choosing import wanted
from groundup.inference.server.errors import ApiError
from groundup.inference.server.schemas import ChatRequest, CompletionRequest, validated
from groundup.model import Transformer
from groundup.model.source import Source, write_folder
from groundup.tokenizer import Tokenizer

CLIENTS = 8
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
EXTREMES = (float("nan"), float("inf"), -float("inf"), 10**9, -1, 0, 1e-300, 2**63, "", "x" * 5000, [""] * 100, {})
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "stop", "logit_bias", "n", "seed", "max_tokens", "logprobs",
            "presence_penalty", "frequency_penalty", "repetition_penalty", "best_of", "stream")  # fmt: skip


def value(name: str, draw: random.Random) -> Any:
    """What a client may write there: a known mistake, an extreme, a number near the edge, or anything."""
    kind = draw.randrange(4)
    if kind == 0:
        return draw.choice([given for field, values in (*FIELDS, *CHAT_FIELDS) if field == name for given in values])
    if kind == 1:
        return {str(i): draw.uniform(-100, 100) for i in range(300)} if name == "logit_bias" else draw.choice(EXTREMES)
    return draw.choice([draw.uniform(-0.1, 2.1), draw.randrange(-1, 4)]) if kind == 2 else fuzzed(draw)


def body(draw: random.Random, names: list[str]) -> tuple[bool, dict[str, Any]]:
    """(whether it is a chat, the JSON) of a request with up to four random fields."""
    chat = draw.random() < 0.5
    base = {"messages": CHAT, "max_tokens": 1} if chat else dict(GOOD)
    given = base | {name: value(name, draw) for name in draw.sample(names, draw.randrange(1, 5))}
    if isinstance(given.get("max_tokens"), int):
        given["max_tokens"] = min(given["max_tokens"], 2)  # answers are not what is tested
    return chat, given


def fields(count: int, seed: int) -> Counter[str]:
    """Fields of sampling through the server's checks and the engine's: accepted, or refused with a 4xx."""
    draw, engine, found = random.Random(seed), new_engine(), Counter[str]()
    known = [name for name in SAMPLING if any(field == name for field, _ in FIELDS)]
    for _ in range(count):
        chat, given = body(draw, known)
        try:
            request = validated(
                ChatRequest if chat else CompletionRequest, {k: v for k, v in given.items() if v is not None}
            )
            for params in wanted(request, engine.context_length).params:
                engine.abort(engine.submit([1, 2, 3], params))
            found["taken"] += 1
        except ApiError as error:
            assert 400 <= error.status < 500, given
            found[str(error.status)] += 1
        except ValueError:  # what the engine refuses is a 400 as well
            found["refused by the engine"] += 1
        if len(engine.core._ready) > 1000:
            engine.step()
    assert engine.stats().pages_used == 0
    return found


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes with some of them changed, cut out or doubled."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del changed[at : at + draw.choice([1, 5, 40])]
            case 2:
                changed[at:at] = changed[max(0, at - 20) : at]
            case _:
                changed[at:at] = draw.choice(
                    [b"{", b"[[[[", b'"', b"\\ud800", b"1e999", b"NaN", b"\xff", b"\r\n", b"\0"]
                )
    return bytes(changed)


def bodies(count: int, seed: int) -> Counter[str]:
    """Damaged JSON through the reading of bodies."""
    draw, found = random.Random(seed), Counter[str]()
    names = [name for name, _ in (*FIELDS, *CHAT_FIELDS)]
    for _ in range(count):
        chat, given = body(draw, names)
        try:
            validated(ChatRequest if chat else CompletionRequest, parse(damaged(json.dumps(given).encode(), draw), 32))
            found["taken"] += 1
        except ApiError as error:
            assert 400 <= error.status < 500
            found[str(error.status)] += 1
    return found


class Server:
    """`groundup serve` with a tiny model, as a process."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "groundup.cli", "serve", str(folder), "--port", str(port), "--device", "cpu",
                   "--batch-size", "8", "--max-waiting", "64", "--drain", "2"]  # fmt: skip
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split(" (page)")[0].rpartition(":")[2])
        self.seconds_to_start = round(time.perf_counter() - began, 1)

    def end(self, how: signal.Signals) -> tuple[int, float]:
        """(exit code, seconds)."""
        began = time.perf_counter()
        self.process.send_signal(how)
        return self.process.wait(60), round(time.perf_counter() - began, 2)


def request(path: str, given: bytes, more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(given)}\r\n\r\n".encode() + given


async def answer(port: int, data: bytes, seconds: float = 60.0) -> tuple[int, bytes]:
    """(status, body) of a connection that sends this and reads to the end; status 0 where nothing came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(seconds):
            got = await reader.read(-1)
    except ConnectionError:
        got = b""
    finally:
        writer.close()
    return int(got[9:12] or b"0"), got.partition(b"\r\n\r\n")[2]


async def many(count: int, one: Callable[[int], Awaitable[str]]) -> Counter[str]:
    """Outcomes of so many, some at a time."""
    found, numbers = Counter[str](), iter(range(count))

    async def client() -> None:
        for number in numbers:
            found[await one(number)] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return found


async def warmed(server: Server) -> None:
    """A first answer, for which the decode step may have to be compiled."""
    data = request("/v1/completions", json.dumps(GOOD).encode(), "Connection: close\r\n")
    assert (await answer(server.port, data, 600.0))[0] == 200


def is_error(given: bytes) -> bool:
    error = json.loads(given)["error"]
    return set(error) == {"message", "type", "param", "code"}


async def asked(server: Server, count: int) -> Counter[str]:
    """Requests with random fields, each with an answer of the API: 2xx, or an error as OpenAI writes it."""
    names = [name for name, _ in (*FIELDS, *CHAT_FIELDS)]

    async def one(number: int) -> str:
        chat, given = body(random.Random(number), names)
        data = request(f"/v1/{'chat/' * chat}completions", json.dumps(given).encode(), "Connection: close\r\n")
        status, got = await answer(server.port, data)
        assert status == 200 or (400 <= status < 500 and is_error(got)), (status, given, got[:300])
        return str(status)

    return await many(count, one)


async def broken(server: Server, count: int) -> Counter[str]:
    """Requests whose bytes, headers too, are damaged. Where they are cut short, the end of what is sent says so."""
    names = [name for name, _ in (*FIELDS, *CHAT_FIELDS)]

    async def one(number: int) -> str:
        draw = random.Random(number)
        chat, given = body(draw, names)
        whole = request(f"/v1/{'chat/' * chat}completions", json.dumps(given).encode(), "Connection: close\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(damaged(whole, draw))
        try:
            writer.write_eof()
            async with asyncio.timeout(60):
                got = await reader.read(-1)
        except ConnectionError:
            got = b""
        writer.close()
        status = int(got[9:12] or b"0")
        assert status in (0, 200) or 400 <= status < 500 or status == 505, (status, got[:300])
        return str(status) if status else "closed without an answer"

    return await many(count, one)


async def left_once(server: Server, number: int) -> str:
    """A client that leaves at a random moment, before, in or after the answer."""
    draw = random.Random(number)
    given = {"prompt": "the", "max_tokens": 100, "stream": number % 2 == 0, "n": draw.choice([1, 1, 3])}
    data = request("/v1/completions", json.dumps(given).encode())
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data[: draw.randrange(len(data))] if number % 4 == 3 else data)
    how = "left"
    try:
        async with asyncio.timeout(draw.choice([0.0, 0.001, 0.01, 0.05])):
            await reader.readexactly(draw.randrange(1, 3000))
            how = "left in the answer"
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        pass
    if number % 5 == 0:
        writer.transport.abort()  # a reset
    writer.close()
    return how


async def left(server: Server, count: int) -> Counter[str]:
    """So many of them."""
    return await many(count, partial(left_once, server))


async def trickling(server: Server, count: int, seconds: float) -> dict[str, Any]:
    """Connections that send a byte a second, or nothing: how long others wait, and that all of them end."""

    async def slow(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            for byte in b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100:
                if number % 2:
                    writer.write(bytes([byte]))
                await asyncio.sleep(1)
                if reader.at_eof() or writer.is_closing():
                    break
        except ConnectionError:
            pass
        writer.close()

    async def took(until: float) -> list[float]:
        times = []
        data = request("/v1/completions", json.dumps(GOOD).encode(), "Connection: close\r\n")
        while time.perf_counter() < until:
            began = time.perf_counter()
            assert (await answer(server.port, data))[0] == 200
            times.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(0.01)
        return sorted(times)

    before = await took(time.perf_counter() + seconds / 3)
    crowd = [asyncio.create_task(slow(number)) for number in range(count)]
    await asyncio.sleep(0.5)
    beside = await took(time.perf_counter() + seconds)
    await asyncio.gather(*crowd)
    quantiles = {name: [round(t[len(t) // 2], 1), round(t[int(0.99 * (len(t) - 1))], 1)]
                 for name, t in (("alone", before), ("beside", beside))}  # fmt: skip
    return {"connections": count, "ms_p50_p99": quantiles}


async def held(server: Server) -> dict[str, int]:
    """What the server holds once it is idle: all of it should be 0."""
    for _ in range(200):
        data = b"GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        stats = json.loads((await answer(server.port, data))[1])
        found = {name: stats[name] for name in ("running", "queue", "pages_used")}
        if not any(found.values()):
            break
        await asyncio.sleep(0.05)
    return found


async def ended(server: Server) -> dict[str, Any]:
    """SIGTERM while eight long answers stream: each ends with [DONE] or an error event."""
    data = request("/v1/completions", json.dumps({"prompt": "the", "max_tokens": 400, "stream": True}).encode())
    streams = [asyncio.create_task(answer(server.port, data)) for _ in range(8)]
    await asyncio.sleep(0.3)
    code, seconds = await asyncio.to_thread(server.end, signal.SIGTERM)
    bodies = [got for _, got in await asyncio.gather(*streams)]
    assert all(b"[DONE]" in got or b'"error"' in got for got in bodies)
    return {"exit_code": code, "seconds": seconds, "streams_with_an_end": len(bodies)}


def write_model(folder: Path) -> None:
    tokenizer = Tokenizer.train_from_iterator(["the cat in the hat sat on the mat"] * 9, 270, SPECIAL)
    config = presets.llama(d_model=32, num_layers=2, num_heads=4, vocab_size=270, context_length=512)
    write_folder(Source(Transformer(config), tokenizer), folder)


def against_a_server(options: argparse.Namespace, note: Callable[[str, Any], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "tiny")
        server = Server(Path(folder) / "tiny")
        try:
            asyncio.run(warmed(server))
            note("random fields", asyncio.run(asked(server, options.requests)))
            note("damaged bytes", asyncio.run(broken(server, options.bytes)))
            note("clients that leave", asyncio.run(left(server, options.leavers)))
            note("slow connections", asyncio.run(trickling(server, options.slow, 9.0)))
            note("held afterwards", asyncio.run(held(server)))
            server.end(signal.SIGKILL)
            server = Server(Path(folder) / "tiny", server.port)
            note("seconds to start again on the port after SIGKILL", server.seconds_to_start)
            asyncio.run(warmed(server))
            note("SIGTERM under load", asyncio.run(ended(server)))
        finally:
            server.process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--direct", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--leavers", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: dict[str, Any] = {}

    def note(name: str, outcome: Any) -> None:
        found[name] = outcome
        print(f"{name}: {json.dumps(outcome)}", flush=True)

    note("fields, direct", fields(options.direct, options.seed))
    note("bodies, direct", bodies(options.direct, options.seed))
    against_a_server(options, note)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
