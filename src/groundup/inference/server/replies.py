"""An answer on its way to the client, whole or as server-sent events; a client that leaves ends it.

    data: {... "choices": [{"index": 0, "delta": {"content": "Hel"}}]}
    data: {... "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    data: [DONE]                                        or  data: {"error": {...}}, if it could not be finished

A step of the engine is sent as it comes; when the client reads more slowly than that, what has come meanwhile goes
out together, so what waits here is never more than the answer itself.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from groundup.inference.server.answers import Choice, Envelope, Form, usage_of
from groundup.inference.server.errors import ApiError, as_api_error, json_response
from groundup.inference.server.fields import Call
from groundup.inference.service import Event, Job, Service

log = logging.getLogger("groundup.server")

Ending = Callable[[Sequence[Choice]], Coroutine[Any, Any, Any]]


class ClientGone(Exception):
    """The client closed the connection."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns. ClientGone as soon as the client has left; `work` is then cancelled, and has ended."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGone
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Reply(Response):
    """The answer to one request: submits its jobs, and sends what becomes of them."""

    media_type = "application/json"

    def __init__(
        self, service: Service, jobs: Sequence[Job], call: Call, form: Form, model: str, prompt_tokens: int,
        seconds: float, ending: Ending | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._service, self._jobs, self._call, self._form = service, jobs, call, form
        self._envelope, self._prompt_tokens, self._seconds = Envelope(form, model), prompt_tokens, seconds
        self._ending = ending
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            self._started = True
            await send(message)

        work = self._stream(sending) if self._call.stream else self._whole(scope, receive, sending)
        try:
            await unless_gone(receive, work)
        except ClientGone:
            return
        except asyncio.CancelledError:  # the server ends sooner than the answer
            await self._fail(ApiError(503, "the server is shutting down", code="unavailable"), scope, receive, send)
            raise
        except Exception as error:
            answer = as_api_error(error)
            if answer.status == 500:
                log.exception("an answer failed")
            await self._fail(answer, scope, receive, send)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = [Choice(index) for index in range(len(self._jobs))]
        async with asyncio.timeout(self._seconds):
            async with self._service.answer(self._jobs) as events:
                async for event in events:
                    _check(event)
                    choices[event.index].add(event)
            shown = await self._ending(choices) if self._ending else list(map(self._form.choice, choices))
        body = self._envelope.whole(shown, self._usage(sum(choice.tokens for choice in choices)))
        await json_response(body)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        tokens = 0
        async with asyncio.timeout(self._seconds), self._service.answer(self._jobs) as events:
            await send({"type": "http.response.start", "status": 200, "headers": _stream_headers()})
            openings = [self._form.opening(index) for index in range(len(self._jobs))]
            await self._send_chunks(send, [opening for opening in openings if opening])
            async for event in events:
                _check(event)
                tokens += len(event.tokens)
                if event.text or event.logprobs or event.finish_reason:
                    await self._send_chunks(send, [self._form.piece(event)])
        usage = [self._envelope.chunk([], self._usage(tokens))] if self._call.include_usage else []
        end = b"".join(map(_event, usage)) + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _send_chunks(self, send: Send, choices: list[dict[str, Any]]) -> None:
        body = b"".join(_event(self._envelope.chunk([choice])) for choice in choices)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _fail(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            await error.response()(scope, receive, send)
        elif self._call.stream:
            await send({"type": "http.response.body", "body": _event(error.body), "more_body": False})

    def _usage(self, tokens: int) -> dict[str, int]:
        return usage_of(self._prompt_tokens, tokens)


def _check(event: Event) -> None:
    if event.finish_reason == "error":
        raise ApiError(500, event.error or "the engine failed on this request", code="engine_error")


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def _stream_headers() -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
