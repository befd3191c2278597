"""`groundup generate`, and what it shares with `chat` and `serve`: the options of sampling, and loading an engine."""

import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import Arguments, Parser, add_device, count, number, print_json, whole_number

if TYPE_CHECKING:
    from groundup.accounting import Ceiling
    from groundup.inference import Completion, Engine, SamplingParams
    from groundup.inference.pace import Pace
    from groundup.inference.request import EngineStats

WEIGHTS = ("fp32", "bf16", "int8", "int4", "torch")
PROBE_SECONDS = 1.0
SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty")


def sampling_options(parser: Parser) -> None:
    """The model, how to draw its tokens, and how to compute them."""
    add = parser.add_argument
    add("model", metavar="DIR", help="a finished run, or any model folder in Hugging Face layout")
    add("--max-tokens", type=whole_number, default=128, metavar="N",
        help="most tokens to write (default: %(default)s)")  # fmt: skip
    add("--temperature", type=number, default=0.8, metavar="X",
        help="0 takes the likeliest token every time (default: %(default)s)")  # fmt: skip
    add("--top-k", type=whole_number, metavar="N", help="choose among the N likeliest tokens (default: all)")
    add("--top-p", type=number, metavar="X",
        help="choose among the likeliest tokens that together have probability X (default: all)")  # fmt: skip
    add("--min-p", type=number, metavar="X",
        help="leave out tokens below X times the likeliest one's probability (default: none)")  # fmt: skip
    add("--repetition-penalty", type=number, default=1.0, metavar="X",
        help="above 1 makes tokens that were there before less likely (default: %(default)s)")  # fmt: skip
    add("--seed", type=whole_number, metavar="N", help="makes the draws repeatable (default: a new one each time)")
    engine_options(parser)


def engine_options(parser: Parser) -> None:
    """Where and with which weights to compute."""
    add_device(parser)
    parser.add_argument("--weights", choices=WEIGHTS, metavar="TYPE",
                        help="on a CPU, decode by a compiled step with a copy of the weights in fp32, bf16, int8 or "
                        "int4 (fewer bits: faster), or through torch (default: the model's own type)")  # fmt: skip


def sampling_params(options: Arguments, **others: Any) -> "SamplingParams":
    """The options as parameters. ValueError naming the one that makes no sense."""
    from groundup.inference import SamplingParams

    return SamplingParams(**{name: getattr(options, name) for name in SAMPLING}, **others)


def load_engine(model: str | Path, options: Arguments, **settings: Any) -> "Engine":
    """The engine of a model folder, as the options say; `settings` are further ones of Engine."""
    from groundup.inference import Engine

    loaded = Engine.load(model, device=options.device)
    weights = options.weights or own_weights(loaded)
    if weights != "torch":
        from groundup.inference.decode import CompiledDecoder

        settings["decoder"] = partial(CompiledDecoder.build, weights=weights)
    if not settings:
        return loaded
    return Engine(
        loaded.model, loaded.tokenizer, chat_template=loaded.chat_template, end_ids=loaded.end_ids, **settings
    )


def own_weights(engine: "Engine") -> str:
    """The format of the compiled step in which a model's weights lose nothing; elsewhere than on a CPU, torch.

    Weights are held in float32 whatever their file had, so what they were is seen in their bits.
    """
    if engine.model.device.type != "cpu":
        return "torch"
    matrices = (p.detach() for p in engine.model.parameters() if p.ndim > 1)
    return "bf16" if all(bool((m == m.bfloat16()).all()) for m in matrices) else "fp32"


def options(parser: Parser) -> None:
    """Of `groundup generate`."""
    sampling_options(parser)
    add = parser.add_argument
    add("--prompt", default="", help="text to continue, - for standard input (default: start a new document)")
    add("--prompt-file", metavar="FILE", help="continue the text of this file (default: none)")
    add("--count", type=count, default=1, metavar="N", help="answers to write (default: %(default)s)")
    add("--stop", action="append", default=[], metavar="TEXT",
        help="stop before this text; may be repeated (default: none)")  # fmt: skip
    add("--speed", action="store_true",
        help="say how long the first token and each further one took, as shares of what this machine can do: on "
        "standard error, with --json in the object")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of the text")


def run(options: Arguments) -> int:
    """Continue a prompt: streamed when it is one answer, else all of them with a line between."""
    params = sampling_params(options, stop=tuple(options.stop))
    if options.count < 1:
        raise ValueError("--count 0: expected at least 1")
    prompt = _prompt(options)
    engine = load_engine(options.model, options)
    if options.speed:
        engine.generate("", max_tokens=2)  # compiles, and packs weights
    before = engine.stats()
    if options.json or options.count > 1:
        answers = engine.samples(prompt, options.count, params)
    else:
        show(prompt)
        answers = [spoken(engine.stream(prompt, params))]
        print()
    measured = _speed(engine, answers, before) if options.speed and answers[0].tokens else None
    if options.json:
        print_json(_record(prompt, answers) | ({"speed": measured[0].record(measured[1])} if measured else {}))
        return 0
    if options.count > 1:
        print("\n\n---\n\n".join(visible(prompt + answer.text) for answer in answers))
    if measured:
        print("\n".join(measured[0].lines(measured[1])), file=sys.stderr)
    return 0


def _speed(engine: "Engine", answers: "list[Completion]", before: "EngineStats") -> "tuple[Pace, Ceiling]":
    """How fast the answers were, and what this machine does at best, measured now that the engine rests."""
    from groundup.accounting import ceiling, probe
    from groundup.inference.pace import pace

    now = engine.stats()
    known = now.cached_prompt_tokens - before.cached_prompt_tokens
    found = pace(engine, answers, now.prompt_tokens - before.prompt_tokens - known)
    return found, ceiling(probe(engine.model.device, PROBE_SECONDS))


def _prompt(options: Arguments) -> str:
    if options.prompt and options.prompt_file:
        raise ValueError("--prompt and --prompt-file: give one of them")
    if options.prompt_file:
        return Path(options.prompt_file).read_text("utf-8")
    return sys.stdin.read() if options.prompt == "-" else options.prompt


def _record(prompt: str, answers: "list[Completion]") -> dict[str, Any]:
    found = [{"text": a.text, "tokens": len(a.tokens), "finish_reason": a.finish_reason} for a in answers]
    return {"prompt": prompt, **found[0]} if len(found) == 1 else {"prompt": prompt, "answers": found}


def spoken(stream: "Generator[str, None, Completion]") -> "Completion":
    """Show the pieces of an answer as they come; returns the whole."""
    while True:
        try:
            show(next(stream))
        except StopIteration as end:
            return end.value


def show(text: str) -> None:
    """Print a piece of text at once."""
    print(visible(text), end="", flush=True)


def visible(text: str) -> str:
    """Text that commands a terminal nothing: control characters as their pictures, where one reads along.

    >>> visible("a\\x1b[2Jb\\n") if sys.stdout.isatty() else "a␛[2Jb\\n"
    'a␛[2Jb\\n'
    """
    return "".join(map(_picture, text)) if sys.stdout.isatty() else text


def _picture(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or not (code < 32 or 127 <= code < 160):
        return character
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else "\ufffd"


def speed(tokens: int, seconds: float) -> str:
    """How much was written how fast."""
    return f"{tokens} tokens in {seconds:.2f} s, {tokens / max(seconds, 1e-9):.1f} tokens/s"
