"""One request from its body to its last byte, watched for the client going away.

    parse -> validate -> tokenize -> admit -> streams of the engine -> JSON, or server-sent events

Nothing is sent before the engine has taken the request, so that what it refuses has its own status. After that an
error is an event, and a stream ends with `[DONE]` or with an error event.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from groundup.inference.scoring import score
from groundup.inference.server import body
from groundup.inference.server.choosing import Compile, Wanted, compiled, wanted
from groundup.inference.server.errors import ApiError, field_error
from groundup.inference.server.metrics import Metrics, outcome_of
from groundup.inference.server.prompts import Prompts
from groundup.inference.server.schemas import ChatRequest, CompletionRequest, Sampling, validated
from groundup.inference.server.settings import Settings
from groundup.inference.server.writing import ChatWriter, CompletionWriter, Writer
from groundup.inference.service import Service
from groundup.inference.streams import QueueFull, RequestFailed, Stream, Unavailable

logger = logging.getLogger(__name__)

LARGE_BODY = 16 << 10  # parsed on the thread
EVENT_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]


@dataclass(frozen=True)
class Desk:
    """What answering needs."""

    engine: Any
    service: Service
    settings: Settings
    metrics: Metrics
    prompts: Prompts
    compile_constraint: Compile | None


class Answer(Response):
    """Answers when it is sent; stops, and frees what the engine holds, as soon as the client has gone."""

    def __init__(self, desk: Desk, endpoint: str, state: dict[str, Any]) -> None:
        self.desk, self.endpoint = desk, endpoint
        self.given, self.salt, self.ticket = state["body"], state["salt"], state.get("ticket")
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        outcome = "cancelled"
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                outcome = "failed"  # unless it has a result
                outcome = work.result()
        finally:
            self.desk.metrics.count(self.endpoint, outcome)
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> str:
        """Returns the outcome for the metrics."""
        started = False

        async def noting(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self.desk.settings.request_seconds):
                await self._respond(noting)
            return "completed"
        except Exception as raised:
            error = as_api_error(raised, self.desk.settings)
            if started:
                await send({"type": "http.response.body", "body": event(error.body())})
            else:
                await error.response()(scope, receive, send)
            return outcome_of(error.status)

    async def _respond(self, send: Send) -> None:
        desk = self.desk
        request = await self._request()
        if request.model not in (None, desk.settings.model_name):
            raise ApiError(404, f"there is no model {request.model[:80]!r} here; there is {desk.settings.model_name!r}",
                           "model", "model_not_found")  # fmt: skip
        want = wanted(request, desk.engine.context_length)
        self._admit(request.n)  # a full queue is told before anything is computed
        writer = await self._writer(request, want)
        with contextlib.ExitStack() as closing:
            streams = await self._open(writer, want, closing, request.stream)
            if self.ticket is not None:
                self.ticket.release()
            pieces = merged(streams)
            async with contextlib.aclosing(pieces):
                if request.stream:
                    await self._send_events(writer, pieces, request.stream_options.include_usage, send)
                else:
                    await _send_json(writer, pieces, send)
            for stream in streams:
                self._note(stream)

    def _admit(self, answers: int) -> None:
        most = self.desk.service.max_waiting
        if answers > most:  # to come again later would not help
            raise field_error(f"n: {answers} answers in one request; here at most {most} may wait for their first "
                              "token, so ask for fewer at a time", "n")  # fmt: skip
        self.desk.service.admit(answers)

    async def _request(self) -> Sampling:
        kind = ChatRequest if self.endpoint == "chat" else CompletionRequest
        depth = self.desk.settings.max_depth

        def read() -> Any:
            return validated(kind, body.parse(self.given, depth))

        return await asyncio.to_thread(read) if len(self.given) > LARGE_BODY else read()

    async def _writer(self, request: Sampling, want: Wanted) -> Writer:
        desk = self.desk
        if isinstance(request, ChatRequest):
            ids = await desk.prompts.run(desk.prompts.of_chat, request)
            names = {tool.function.name for tool in request.tools} if request.tool_choice == "auto" else set()
            must_call = want.constraint is not None and want.constraint[0] == "tool_choice"
            return ChatWriter(
                desk.engine.tokenizer, desk.settings.model_name, request.stream, want, [ids], names, must_call
            )
        assert isinstance(request, CompletionRequest)
        prompts = await desk.prompts.run(desk.prompts.of_completion, request)
        scores: list[Any] | None = None
        if request.echo and want.top is not None:
            if request.stream:
                raise field_error("echo: with logprobs, only without stream", "echo")
            scores = [await self._score(ids, want.top) for ids in prompts]
        return CompletionWriter(desk.engine.tokenizer, desk.settings.model_name, request.stream, want, prompts,
                                request.echo, scores)  # fmt: skip

    async def _score(self, ids: list[int], top: int) -> list[Any]:
        chunks = await self.desk.service.score(
            lambda engine: score(engine.model, ids, max(top, 1), engine.tokenizer.vocab_size)
        )
        return [entry for chunk in chunks for entry in chunk]

    async def _open(self, writer: Writer, want: Wanted, closing: contextlib.ExitStack, at_once: bool) -> list[Stream]:
        service, pairs = self.desk.service, [(ids, params) for ids in writer.prompts for params in want.params]
        constraints = [None] * len(pairs)
        if want.constraint is not None:
            arguments = (want.constraint, self.desk.compile_constraint)
            constraints = [await asyncio.to_thread(compiled, *arguments) for _ in pairs]
        if writer.nothing_to_generate:
            return []
        self._admit(len(pairs))
        streams = []
        for (ids, params), constraint in zip(pairs, constraints, strict=True):
            stream = service.open(ids, params, salt=self.salt, constraint=constraint, at_once=at_once)
            closing.callback(stream.close)
            streams.append(stream)
        return streams

    async def _send_events(
        self, writer: Writer, pieces: AsyncGenerator[tuple[int, Any], None], with_usage: bool, send: Send
    ) -> None:
        begun = False
        async for index, output in pieces:
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
                await _send_chunks(send, writer.opening())
            await _send_chunks(send, writer.chunks(index, output))
        if not begun:
            await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
            await _send_chunks(send, [*writer.opening(), *writer.empty_chunks()])
        last = [writer.usage_chunk()] if with_usage else []
        await send({"type": "http.response.body", "body": b"".join(map(event, last)) + b"data: [DONE]\n\n"})

    def _note(self, stream: Stream) -> None:
        metrics = self.desk.metrics
        if stream.first is not None and stream.last is not None:
            metrics.first_token.observe(stream.first - stream.opened)
            metrics.request.observe(stream.last - stream.opened)
            if stream.count > 1:
                metrics.per_token.observe((stream.last - stream.first) / (stream.count - 1))


async def _send_json(writer: Writer, pieces: AsyncGenerator[tuple[int, Any], None], send: Send) -> None:
    async for index, output in pieces:
        writer.add(index, output)
    answer = encoded(writer.whole())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def _send_chunks(send: Send, chunks: list[dict[str, Any]]) -> None:
    if chunks:
        await send({"type": "http.response.body", "body": b"".join(map(event, chunks)), "more_body": True})


async def merged(streams: list[Stream]) -> AsyncGenerator[tuple[int, Any], None]:
    """(index, output) of all streams as they come."""
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    ready: asyncio.Queue[Any] = asyncio.Queue()

    async def pump(index: int, stream: Stream) -> None:
        try:
            async for output in stream:
                ready.put_nowait((index, output))
        except Exception as error:
            ready.put_nowait(error)
        else:
            ready.put_nowait(None)

    tasks = [asyncio.create_task(pump(*pair)) for pair in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            item = await ready.get()
            left -= item is None
            if isinstance(item, Exception):
                raise item
            if item is not None:
                yield item
    finally:
        for task in tasks:
            task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def encoded(value: Any) -> bytes:
    """JSON, with U+FFFD's place taken by `?` where a text is no Unicode."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


def as_api_error(error: Exception, settings: Settings) -> ApiError:
    """What the client is told. Errors that are nobody's mistake but ours are logged, without the request."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after)})
        case Unavailable():
            return ApiError(503, str(error), code="unavailable", headers={"Retry-After": "5"})
        case RequestFailed():
            return ApiError(500, str(error)[:300], code="request_failed")
        case TimeoutError():
            return ApiError(504, f"no complete answer within {settings.request_seconds:g} s", code="timeout")
        case ValueError():  # what the engine refuses at admission
            return ApiError(400, str(error)[:300], str(error).partition(":")[0].partition("=")[0][:40])
    logger.error("a request failed: %s", type(error).__name__, exc_info=error)
    return ApiError(500, "internal error")
