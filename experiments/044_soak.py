"""Entry 044: does a server that answers everything at once for a long time hold ever more?

    python experiments/044_soak.py [--minutes 20] [--clients 6] [--samples FILE]

`groundup serve` with a tiny model in a process of its own, and clients that ask all kinds of things in random order:
whole answers and streams, several at a time, answers of a given form (many forms: what is compiled is kept only so
far), scored prompts, prompts as long as the context and longer, fields and bytes that make no sense, clients that leave
at any moment, the page and the metrics. Every ten seconds the server's resident memory, open files, threads and held
pages are noted. A minute counts while this process runs: when it is stopped, it stands still.

Prints a JSON line: answers by kind and status, memory over time, its slope after the first quarter, what is held at the
end, and whether the server's counts add up to what was sent. Needs the repository's tests beside it.
"""

import argparse
import asyncio
import importlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

faults = importlib.import_module("036_serving_faults")

NAMES = [name for name, _ in (*faults.FIELDS, *faults.CHAT_FIELDS)]
WORDS = ["the", " cat", " in", " hat", " sat", " on", " mat", ";", "äö", "你好", "\n"]
TEN = 10  # seconds between samples

Draw = random.Random
Kind = Callable[[Any, Draw], Awaitable[int]]


def text(draw: Draw, most: int) -> str:
    return "".join(draw.choices(WORDS, k=draw.randrange(1, most)))


def settings(draw: Draw) -> dict[str, Any]:
    """Some settings that make sense."""
    every = {
        "temperature": draw.choice([0, 0.7, 1.5]), "top_p": 0.9, "top_k": 20, "seed": draw.randrange(2**40),
        "stop": ["sat", " ma"], "logprobs": 3, "presence_penalty": 0.5, "repetition_penalty": 1.2,
        "logit_bias": {"65": 5}, "n": draw.choice([2, 3, 5]),
    }  # fmt: skip
    chosen = draw.sample(sorted(every), draw.randrange(4))
    return {name: every[name] for name in chosen} | {"max_tokens": draw.choice([1, 5, 20, 60])}


async def post(server: Any, given: Any, chat: bool = False) -> int:
    path = f"/v1/{'chat/' * chat}completions"
    data = faults.request(path, json.dumps(given).encode(), "Connection: close\r\n")
    status, got = await faults.answer(server.port, data, 900.0)
    if status == 200 and given.get("stream"):
        assert b"[DONE]" in got or b'"error"' in got, got[-300:]
    if status >= 500:
        print(status, given, got[:300], file=sys.stderr)
    return status


async def whole(server: Any, draw: Draw) -> int:
    return await post(server, {"prompt": text(draw, 30), **settings(draw)})


async def streamed(server: Any, draw: Draw) -> int:
    chat = draw.random() < 0.5
    given = settings(draw) | {"stream": True, "stream_options": {"include_usage": True}}
    if chat:
        given |= {"messages": [{"role": "user", "content": text(draw, 30)}], "logprobs": True, "top_logprobs": 2}
    return await post(server, given if chat else {"prompt": text(draw, 30), **given}, chat)


async def several(server: Any, draw: Draw) -> int:
    prompts = [text(draw, 12) for _ in range(draw.randrange(2, 6))]
    return await post(server, {"prompt": prompts, "n": 2, "max_tokens": 10, "stream": draw.random() < 0.5})


async def formed(server: Any, draw: Draw) -> int:
    """An answer of a form, which is another one nearly every time."""
    name, most = "".join(draw.choices("abcdefgh", k=4)), draw.randrange(1, 50)
    schema = {"type": "object", "properties": {name: {"type": "string", "maxLength": most}}, "required": [name]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": name, "parameters": schema}}
    messages = [{"role": "user", "content": text(draw, 8)}]
    chats = [{"response_format": form}, {"tools": [tool], "tool_choice": "required"}]
    plain = [{"guided_regex": f"({name}|cat){{1,{most}}}"}, {"guided_choice": [name, "cat", text(draw, 5)]}]
    if draw.random() < 0.5:
        return await post(server, {"messages": messages, "max_tokens": 30, **draw.choice(chats)}, chat=True)
    return await post(server, {"prompt": "a", "max_tokens": 30, **draw.choice(plain)})


async def scored(server: Any, draw: Draw) -> int:
    ids = [draw.randrange(256) for _ in range(draw.randrange(1, 400))]
    return await post(server, {"prompt": ids, "echo": True, "logprobs": 2, "max_tokens": draw.choice([0, 1])})


async def long(server: Any, draw: Draw) -> int:
    ids = [draw.randrange(256) for _ in range(draw.choice([300, 505, 512, 513, 5000]))]
    return await post(server, {"prompt": ids, "max_tokens": 20, "stream": draw.random() < 0.5})


async def senseless(server: Any, draw: Draw) -> int:
    chat, given = faults.body(draw, NAMES)
    return await post(server, given, chat)


async def damaged(server: Any, draw: Draw) -> int:
    chat, given = faults.body(draw, NAMES)
    data = faults.request(f"/v1/{'chat/' * chat}completions", json.dumps(given).encode(), "Connection: close\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(faults.damaged(data, draw))
        writer.write_eof()
        got = await reader.read(-1)
    except OSError:
        got = b""
    finally:
        writer.close()
    return int(got[9:12] or b"0")


async def left(server: Any, draw: Draw) -> int:
    await faults.left_once(server, draw.randrange(10**6))
    return 0


async def looked(server: Any, draw: Draw) -> int:
    path = draw.choice(["/", "/explorer", "/metrics", "/stats", "/health", "/v1/models", "/nothing"])
    data = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    return (await faults.answer(server.port, data, 900.0))[0]


KINDS: dict[Kind, int] = {whole: 6, streamed: 6, several: 2, formed: 3, scored: 2, long: 2, senseless: 3, damaged: 2,
                          left: 4, looked: 1}  # fmt: skip


def held_by(pid: int) -> dict[str, float]:
    """Resident megabytes, threads and open files of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"mb": int(lines["VmRSS"].split()[0]) / 1024, "threads": int(lines["Threads"]), "files": files}


async def soak(server: Any, minutes: float, clients: int, write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    found: Counter[tuple[str, int]] = Counter()
    is_over = asyncio.Event()

    async def client(number: int) -> None:
        draw = Draw(number)
        while not is_over.is_set():
            (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
            found[kind.__name__, await kind(server, draw)] += 1

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    samples = []
    for tick in range(1, int(60 * minutes) + 1):
        await asyncio.sleep(1)
        for task in tasks:
            if task.done():
                task.result()
        if tick % TEN == 0:
            stats = json.loads((await faults.answer(server.port, STATS, 900.0))[1])
            now = {"running": stats["running"], "queue": stats["queue"], "pages_used": stats["pages_used"]}
            samples.append({"seconds": tick, **held_by(server.process.pid), **now, "asked": found.total()})
            write(samples[-1])
    is_over.set()
    await asyncio.gather(*tasks)
    return {"asked": found.total(), "by_kind": table(found), **summary(samples)}


STATS = b"GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
METRICS = STATS.replace(b"/stats", b"/metrics")


def table(found: Counter[tuple[str, int]]) -> dict[str, dict[str, int]]:
    by_kind: dict[str, dict[str, int]] = {}
    for (kind, status), count in sorted(found.items()):
        by_kind.setdefault(kind, {})[str(status) if status else "no status"] = count
    return by_kind


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """After the first quarter: the slope of memory, and the range of the rest."""
    later = samples[len(samples) // 4 :]
    slope = linear_regression([s["seconds"] / 3600 for s in later], [s["mb"] for s in later]).slope
    quarters = [samples[i * len(samples) // 4 : (i + 1) * len(samples) // 4] for i in range(4)]
    ranges = {name: [min(s[name] for s in later), max(s[name] for s in later)] for name in ("threads", "files", "mb")}
    return {"mb_by_quarter": [round(median(s["mb"] for s in quarter), 2) for quarter in quarters],
            "mb_per_hour": round(slope, 2), "later": ranges}  # fmt: skip


async def counts(server: Any) -> dict[str, Any]:
    """The server's own, once it is idle."""
    lines = (await faults.answer(server.port, METRICS, 900.0))[1].decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith(("groundup_requests_", "groundup_engine_"))]
    return {name.removeprefix("groundup_"): int(float(value)) for name, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--samples", type=Path, default=Path("044_soak.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, options.samples.open("w") as file:
        faults.write_model(Path(folder) / "tiny")
        server = faults.Server(Path(folder) / "tiny")

        def write(sample: dict[str, Any]) -> None:
            print(json.dumps(sample), file=file, flush=True)

        try:
            asyncio.run(faults.warmed(server))
            began = time.perf_counter()
            found = asyncio.run(soak(server, options.minutes, options.clients, write))
            found["wall_seconds"] = round(time.perf_counter() - began)
            found["held_at_the_end"] = asyncio.run(faults.held(server)) | held_by(server.process.pid)
            found["counts"] = asyncio.run(counts(server))
        finally:
            code, _ = server.end(signal.SIGTERM)
        print(json.dumps({**found, "exit_code": code}))


if __name__ == "__main__":
    main()
