"""The routes: OpenAI's, and those of the page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from groundup.inference.server.answering import Answer, Desk
from groundup.inference.server.choosing import Compile
from groundup.inference.server.errors import ApiError
from groundup.inference.server.gate import Gate
from groundup.inference.server.keys import Keys
from groundup.inference.server.metrics import Metrics
from groundup.inference.server.page import chat_page, explorer_page
from groundup.inference.server.prompts import Prompts
from groundup.inference.server.settings import Settings
from groundup.inference.service import Service

_STARTED = 1_700_000_000  # `created` of the model: clients want a number, and nobody knows this one


def create_app(
    service: Service,
    settings: Settings | None = None,
    keys: Keys | None = None,
    compile_constraint: Compile | None = None,
    metrics: Metrics | None = None,
) -> ASGIApp:
    """The application for an engine that runs in `service`. It closes neither."""
    settings = settings or Settings()
    engine: Any = service.engine
    desk = Desk(engine, service, settings, metrics or Metrics(), Prompts(engine, settings), compile_constraint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.prompts.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    _add_answers(app, desk)
    _add_facts(app, desk)
    _add_page(app, desk)
    _add_errors(app)
    return Gate(app, keys or Keys([]), settings, desk.metrics)


def _add_answers(app: FastAPI, desk: Desk) -> None:
    def answer(request: Request, endpoint: str) -> Response:
        types = request.headers.getlist("content-type")
        if [value.partition(";")[0].strip().lower() for value in types] != ["application/json"]:
            desk.metrics.count(endpoint, "invalid")
            raise ApiError(415, "send JSON, with Content-Type: application/json")
        return Answer(desk, endpoint, request.scope["state"])

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return answer(request, "completions")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return answer(request, "chat")


def _add_facts(app: FastAPI, desk: Desk) -> None:
    service, name = desk.service, desk.settings.model_name
    model = {"id": name, "object": "model", "created": _STARTED, "owned_by": "groundup"}

    @app.get("/health")
    async def health() -> Response:
        status = "ok"
        if service.failure is not None or service.stuck_seconds() > desk.settings.hang_seconds:
            status = "failed"
        elif service.draining:
            status = "draining"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{model_name:path}")
    async def one_model(model_name: str) -> Response:
        if model_name != name:
            raise ApiError(404, f"there is no model {model_name[:80]!r} here", "model", "model_not_found")
        return JSONResponse(model)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(desk.metrics.render(service), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/stats")
    async def stats() -> Response:
        return JSONResponse(statistics(desk))


def statistics(desk: Desk) -> dict[str, Any]:
    """What the page shows of the engine."""
    service, stats, metrics = desk.service, desk.service.stats(), desk.metrics
    fields = ("running", "pages_total", "pages_used", "pages_cached", "prompt_tokens", "cached_prompt_tokens",
              "generated_tokens", "preemptions", "steps")  # fmt: skip
    return {
        "model": desk.settings.model_name,
        "context_length": desk.engine.context_length,
        "can_chat": desk.engine.can_chat,
        "queue": service.waiting,
        "queue_limit": service.max_waiting,
        "tokens_per_second": service.tokens_per_second(),
        "time_to_first_token": metrics.first_token.median,
        "time_per_output_token": metrics.per_token.median,
        "requests": {o: sum(n for (_, end), n in metrics.requests.items() if end == o)
                     for o in sorted({end for _, end in metrics.requests})},
        **{name: getattr(stats, name) for name in fields},
    }  # fmt: skip


def _add_page(app: FastAPI, desk: Desk) -> None:
    page, policy = chat_page()
    explored = cache(lambda: explorer_page(desk.settings.model_name, desk.engine.tokenizer))

    @app.get("/")
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/explorer")
    async def explorer() -> Response:
        try:
            return HTMLResponse(await desk.prompts.run(explored))
        except ValueError as error:
            raise ApiError(404, f"no explorer here: {error}") from None


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {404: "there is nothing at this path", 405: f"{request.method[:16]} is not for this path"}
        headers = dict(error.headers or {})
        return ApiError(error.status_code, words.get(error.status_code, error.detail), headers=headers).response()

    @app.exception_handler(Exception)
    async def internal_error(_: Request, error: Exception) -> Response:
        return ApiError(500, "internal error").response()
