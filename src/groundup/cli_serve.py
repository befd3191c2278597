"""`groundup serve`: an OpenAI-compatible server with a page to talk to the model, for this machine unless told."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_chat import chat_folder
from groundup.cli_generate import engine_options, load_engine
from groundup.cli_parts import Arguments, Parser, count, number

if TYPE_CHECKING:
    from groundup.inference.server import Settings


def options(parser: Parser) -> None:
    """Of `groundup serve`."""
    add = parser.add_argument
    add("model", metavar="DIR", help="a finished run, or any model folder in Hugging Face layout")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=count, default=8000, metavar="N", help="0 takes a free one (default: %(default)s)")
    add("--name", metavar="NAME", help="what clients call the model (default: the folder's name)")
    add("--base", action="store_true", help="of a run, serve the pretrained model, not the one tuned to chat")
    add("--api-keys", metavar="FILE",
        help="keys that are let in, one a line (default: those in GROUNDUP_API_KEYS; or no key)")  # fmt: skip
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="another name of this server in a Host header; may be repeated (default: localhost)")  # fmt: skip
    add("--batch-size", type=count, default=32, metavar="N", help="answers that run at once (default: %(default)s)")
    add("--max-waiting", type=count, default=64, metavar="N",
        help="requests that may wait; one more gets 429 (default: %(default)s)")  # fmt: skip
    add("--requests-per-minute", type=count, metavar="N", help="of each key (default: no limit)")
    add("--drain", type=number, default=10.0, metavar="SECONDS",
        help="time for answers to end after SIGTERM (default: %(default)s)")  # fmt: skip
    add("--hang", type=number, default=300.0, metavar="SECONDS",
        help="a step that takes longer counts as hung and ends the server, code 70 (default: %(default)s)")  # fmt: skip
    engine_options(parser)


def run(options: Arguments) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from groundup.inference.server.keys import read_keys
    from groundup.inference.server.run import check_exposure, listen, serve
    from groundup.inference.service import Service

    keys = read_keys(options.api_keys)
    check_exposure(options.host, keys)
    folder = Path(options.model) if options.base else chat_folder(options.model)
    settings = _settings(options)
    bound = listen(options.host, options.port)  # before the model is loaded: a taken port is said at once
    engine = load_engine(folder, options, batch_size=options.batch_size)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    bound.listen()  # from here on clients wait until the server takes them, and are not refused
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{settings.model_name} on http://{shown}:{port} (page), http://{shown}:{port}/v1 (OpenAI API)", flush=True)
    code = serve(Service(engine, options.max_waiting), bound, settings, keys, partial(_constraint, engine))
    if code:
        print(f"groundup serve: the engine has failed; start again (exit code {code})", file=sys.stderr, flush=True)
        os._exit(code)  # a thread that hangs in a step would be in the way of a usual end
    return 0


def _settings(options: Arguments) -> "Settings":
    from groundup.inference.server.settings import LOOPBACK, Settings

    own = f"[{options.host}]" if ":" in options.host else options.host
    hosts = tuple(dict.fromkeys((*LOOPBACK, own, *(name.lower() for name in options.allow_host))))
    return Settings(
        model_name=options.name or Path(options.model).resolve().name,
        hosts=hosts,
        requests_per_minute=options.requests_per_minute,
        drain_seconds=options.drain,
        hang_seconds=options.hang,
    )


def _constraint(engine: Any, kind: Any, source: Any) -> Any:
    from groundup.inference.constraint import compile_constraint

    return compile_constraint(kind, source, engine.tokenizer, engine.end_ids)
