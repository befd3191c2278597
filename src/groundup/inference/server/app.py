"""The routes: OpenAI's completions and chat, models, health, metrics, and the page. Everything else is 404.

There is no route that reads a file: the page is part of the package and held in memory.
"""

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundup.inference.server.answers import ChatForm, Choice, CompletionForm, TokenNames
from groundup.inference.server.bounded_json import read_json
from groundup.inference.server.errors import ApiError, json_response
from groundup.inference.server.fields import CHAT, COMPLETION, Call, chat_call, check_names, completion_call, flag
from groundup.inference.server.guard import Guard, read_body
from groundup.inference.server.jobs import Jobs
from groundup.inference.server.metrics import Responses, as_json, prometheus
from groundup.inference.server.page import Page
from groundup.inference.server.prompts import Prompts, chat_messages, chat_tools, completion_prompts
from groundup.inference.server.replies import Reply, unless_gone
from groundup.inference.server.settings import ServerSettings
from groundup.inference.service import Service

LARGE_BODY = 64 << 10  # is parsed on another thread


class Server:
    """The endpoints of one service, and what they share."""

    def __init__(self, service: Service, settings: ServerSettings) -> None:
        self.service, self.settings = service, settings
        self.responses = Responses()
        self._engine: Any = service.engine
        self._prompts, self._jobs = Prompts(self._engine), Jobs(self._engine)
        self._names = TokenNames(self._engine.tokenizer)
        self._page = Page(self._engine, settings.model_name)

    def app(self) -> ASGIApp:
        """The ASGI application, guarded."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        app.add_exception_handler(HTTPException, _http_error)
        for path, method, endpoint in (
            ("/", "GET", self.page),
            ("/explorer", "GET", self.explorer),
            ("/health", "GET", self.health),
            ("/metrics", "GET", self.metrics),
            ("/stats", "GET", self.stats),
            ("/v1/models", "GET", self.models),
            ("/v1/models/{name}", "GET", self.model),
            ("/v1/completions", "POST", self.completions),
            ("/v1/chat/completions", "POST", self.chat),
        ):
            app.add_api_route(path, endpoint, methods=[method], response_model=None)
        return _Counted(Guard(app, self.settings), self.responses)

    async def completions(self, request: Request) -> Response:
        asked = check_names(await self._body(request), COMPLETION, self.settings.model_name)
        call, echo = completion_call(asked, self.settings), flag(asked, "echo")
        given = completion_prompts(asked, self.settings)
        self._check_count(len(given) * call.n)
        self._refuse_if_full()
        prompts = [await self._prompts.ids(prompt) for prompt in given]
        if echo and call.stream:
            raise ApiError(400, "echo: not together with stream=true", "echo")
        jobs = await self._jobs.made(prompts, call, request.state.caller.salt)
        ending = self._echoing(given, prompts, call) if echo else None
        return self._reply(jobs, call, CompletionForm(self._names, call.tops), sum(map(len, prompts)), ending)

    async def chat(self, request: Request) -> Response:
        asked = check_names(await self._body(request), CHAT, self.settings.model_name)
        call = chat_call(asked, self.settings)
        messages, tools = chat_messages(asked, self.settings), chat_tools(asked)
        self._refuse_if_full()
        prompt = await self._prompts.chat_ids(messages, tools)
        jobs = await self._jobs.made([prompt], call, request.state.caller.salt)
        return self._reply(jobs, call, ChatForm(self._names, call.tops), len(prompt), None)

    async def models(self) -> Response:
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        if name != self.settings.model_name:
            raise ApiError(404, f"model: there is no {name[:64]!r} here", "model", code="model_not_found")
        return json_response(self._model())

    async def health(self) -> Response:
        """200 while requests are taken; 503 while draining, or when the engine does not move."""
        well = self.service.healthy and not self.service.draining
        return json_response({"status": "ok" if well else "unavailable"}, 200 if well else 503)

    async def metrics(self) -> Response:
        return PlainTextResponse(prometheus(self.service, self.responses), media_type="text/plain; version=0.0.4")

    async def stats(self) -> Response:
        return json_response(as_json(self.service))

    async def page(self) -> Response:
        return HTMLResponse(self._page.chat, headers={"Content-Security-Policy": self._page.policy})

    async def explorer(self) -> Response:
        html = await asyncio.to_thread(self._page.explorer)
        return HTMLResponse(html, headers={"Content-Security-Policy": self._page.explorer_policy})

    async def _body(self, request: Request) -> dict[str, Any]:
        data = await read_body(request, self.settings)
        return await asyncio.to_thread(read_json, data) if len(data) > LARGE_BODY else read_json(data)

    def _refuse_if_full(self) -> None:
        """Before any work is put into a request that would be refused after it."""
        self.service.check_room()

    def _check_count(self, count: int) -> None:
        most = min(self.settings.max_choices, self.service.capacity)
        if count > most:
            raise ApiError(400, f"n: {count} answers in one request; at most {most}", "n")

    def _reply(self, jobs: Any, call: Call, form: Any, prompt_tokens: int, ending: Any) -> Reply:
        settings = self.settings
        return Reply(self.service, jobs, call, form, settings.model_name, prompt_tokens, settings.request_seconds,
                     ending)  # fmt: skip

    def _echoing(self, given: list[Any], prompts: list[list[int]], call: Call) -> Any:
        """The prompt before each answer, with its own log-probabilities when they are asked for."""
        form = CompletionForm(self._names, call.tops)
        texts = [g if isinstance(g, str) else self._engine.tokenizer.decode(ids) for g, ids in zip(given, prompts, strict=True)]  # fmt: skip

        async def ending(choices: list[Choice]) -> list[dict[str, Any]]:
            scored = await self.service.score(prompts, max(1, call.tops)) if call.tops is not None else None
            shown = []
            for choice in choices:
                place = choice.index // call.n
                if scored is not None:
                    choice.logprobs = [*scored[place], *choice.logprobs]
                shown.append(form.choice(choice, texts[place] + choice.text, prompts[place]))
            return shown

        return ending

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.settings.model_name,
            "object": "model",
            "created": 0,
            "owned_by": "groundup",
            "max_model_len": self._engine.context_length,
        }


class _Counted:
    """Counts answers by path and status, also those that the guard gives."""

    def __init__(self, app: ASGIApp, responses: Responses) -> None:
        self._app, self._responses = app, responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._responses.add(scope["path"], message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "there is nothing at this path", 405: "this path does not take this method"}
    return ApiError(error.status_code, texts.get(error.status_code, "refused"), close=True).response()
