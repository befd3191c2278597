"""What each compressed variant costs and what it saves: size, memory, bits per byte, tokens per second.

    settings.json         what is compared
    variants/NAME/        each variant, as a model folder
    rows/NAME.json        its figures, written when they are whole: an interrupted comparison goes on after them
    result.json           all rows, and which of them no other beats in both accuracy and speed (or size)

Speed is measured by turns with the baseline bf16, so that what slows the machine slows both, and ratios of neighbours
are what variants are compared by. Everything is scored in float32 arithmetic, so differences are those of the weights,
keys and values alone.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from groundup.compression.quantize import weight_bytes
from groundup.compression.settings import CompressSettings, parse_method
from groundup.compression.teacher_logits import TeacherLogits
from groundup.compression.teacher_writing import write_teacher_logits
from groundup.compression.text import Texts, read_texts
from groundup.compression.variants import Variant, heal, make_variant
from groundup.config import to_dict
from groundup.data.batch import Batch
from groundup.device import environment
from groundup.evaluation import bits_per_byte
from groundup.files import read_json, write_json
from groundup.inference import Engine
from groundup.model import Transformer
from groundup.model.source import Source, read_source
from groundup.train.step import Objective

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]
Row = dict[str, Any]
NEVER = -100.0  # a bias that keeps a model from ending its text


def compress(
    model: str | Path,
    files: Sequence[str] = (),
    settings: CompressSettings | None = None,
    *,
    out: str | Path,
    logits: str | Path | None = None,
    device: torch.device | str = "cpu",
    say: Say = lambda line: None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Make and measure every variant of a model folder (or GGUF file); returns the result.

    A folder `out` of the same comparison is gone on with. Raises ValueError for one of another, for a model without a
    tokenizer, and for a method that the architecture cannot have. KeyboardInterrupt leaves what is finished.

    logits: a folder for the model's top k logits of the text that distilled variants see. They learn from it instead of
    from the running model; what is not there yet is written first. ValueError for one of another model or other text.
    """
    settings, folder = settings or CompressSettings(), Path(out)
    if logits is not None and not (settings.heal_steps and any(map(_learns, settings.names))):
        raise ValueError("--logits: nothing would learn from them; name a method such as distilled-50, and heal_steps")
    asked = {"model": str(model), "files": list(files), "logits": str(logits) if logits else None, **to_dict(settings)}
    _begin(folder, asked)
    source = read_source(model)
    if source.tokenizer is None:
        raise ValueError(f"{model}: has no tokenizer, and text is needed to measure on")
    source.model.to(device)
    texts = read_texts(model, files, source.tokenizer, settings)
    cache = None if logits is None else _taught(source, texts, settings, logits, progress)
    rows, spent, base = [], 0.0, None
    for number, name in enumerate(settings.names, 1):
        file = folder / "rows" / f"{_plain(name)}.json"
        if not file.is_file():
            left = f"; about {spent / (number - 1) * (len(settings.names) - number + 1):,.0f} s left" if spent else ""
            say(f"[{number}/{len(settings.names)}] {name}{left}")
            base = base or Variant("bf16", source.model, source.model).engine(source)[0]
            write_json(file, _measured(name, source, texts, settings, folder, base, cache, progress))
        rows.append(read_json(file))
        spent += rows[-1]["seconds"]
    result = {"settings": asked, "text": texts.source, "rows": mark_frontier(rows), "environment": environment()}
    write_json(folder / "result.json", result)
    return result


def _begin(folder: Path, asked: dict[str, Any]) -> None:
    file = folder / "settings.json"
    if file.is_file():
        if read_json(file) != asked:
            raise ValueError(f"--out {folder}: holds a comparison with other settings; name another folder")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder}: it already holds something; name another folder")
    else:
        write_json(file, asked)


def _learns(name: str) -> bool:
    """Whether the variant is taught by the model."""
    return parse_method(name)[0] == "distilled"


def _taught(
    source: Source, texts: Texts, settings: CompressSettings, folder: str | Path, progress: Progress
) -> TeacherLogits:
    """The model's logits of all that distilled variants are trained on."""
    assert source.tokenizer is not None
    return write_teacher_logits(
        source.model, texts.drawn_once(settings.heal_batch, settings.heal_steps, settings.seed), folder,
        tokenizer=source.tokenizer, k=min(settings.top_k, source.model.config.vocab_size),
        temperature=settings.temperature, progress=partial(progress, "teacher's logits"),
    )  # fmt: skip


def _plain(name: str) -> str:
    return name.replace(":", "-")


def _measured(
    name: str,
    source: Source,
    texts: Texts,
    settings: CompressSettings,
    folder: Path,
    base: Engine,
    cache: TeacherLogits | None,
    progress: Progress,
) -> Row:
    """One variant, made, saved, scored and timed."""
    began = time.monotonic()

    def trained(step: int, *_: Any) -> None:
        progress(f"{name}: training", step, settings.heal_steps)

    def healed(model: Transformer, objective: Objective, batches: Iterable[Batch]) -> None:
        heal(model, objective, batches, settings, trained)

    progress(f"{name}: making", 0, 0)
    variant = make_variant(name, source.model, texts, settings, healed, cache)
    path = folder / "variants" / _plain(name)
    shutil.rmtree(path, ignore_errors=True)  # of an attempt that did not come to its row
    variant.save(source, path)
    assert source.tokenizer is not None
    score = bits_per_byte(
        variant.model, source.tokenizer, texts.scored, context_length=settings.context_length, caches=variant.caches,
        progress=partial(progress, f"{name}: scoring"),
    )  # fmt: skip
    parameters = sum(p.numel() for p in variant.model.parameters())
    speed = _speed(variant, source, settings, base, partial(progress, f"{name}: decoding"))
    return {
        "name": name,
        "bits_per_byte": score.bits_per_byte,
        "token_perplexity": score.token_perplexity,
        "disk_bytes": sum(file.stat().st_size for file in path.iterdir()),
        "weight_bytes": variant.weight_bytes,
        "cache_bytes_per_token": variant.cache_bytes_per_token,
        "zeros": _zeros(variant) if variant.quantization is None else 0.0,
        "parameters": parameters if variant.quantization is None else None,
        "seconds": time.monotonic() - began,
        **speed,
    }


def _zeros(variant: Variant) -> float:
    """The share of weights that are zero."""
    weights = list(variant.model.parameters())
    return sum(int((w == 0).sum()) for w in weights) / (weight_bytes(variant.model) / weights[0].element_size())


def _speed(
    variant: Variant, source: Source, settings: CompressSettings, base: Engine, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Tokens per second of one sequence, by turns with the baseline."""
    engine, runner = variant.engine(source)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(2):  # the first call compiles, the second finds memory warm
        decode_rate(base, 4)
        decode_rate(engine, 4)
    for turn in range(settings.rounds):
        pair = [(base, theirs), (engine, ours)]
        for each, rates in pair[:: 1 if turn % 2 else -1]:
            rates.append(decode_rate(each, settings.decode_tokens))
        progress(turn + 1, settings.rounds)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "runner": runner, "tokens_per_second": statistics.median(ours), "tokens_per_second_spread": _spread(ours),
        "speed": statistics.median(ratios), "speed_spread": _spread(ratios),
    }  # fmt: skip


def decode_rate(engine: Engine, tokens: int) -> float:
    """Tokens per second of one greedy answer of so many tokens, prompt of one token included."""
    never = {i: NEVER for i in engine.end_ids}
    began = time.perf_counter()
    answer = engine.generate([engine.tokenizer.end_of_text], temperature=0, max_tokens=tokens, logit_bias=never)
    return len(answer.tokens) / (time.perf_counter() - began)


def _spread(values: list[float]) -> float:
    """The interquartile range; 0 of one value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def mark_frontier(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with whether no other is at least as good in accuracy and in speed (or in size) and better in one.

    >>> [r["fast"] for r in mark_frontier([
    ...     {"bits_per_byte": 1.0, "speed": 0.5, "disk_bytes": 9},
    ...     {"bits_per_byte": 1.1, "speed": 1.0, "disk_bytes": 9},
    ...     {"bits_per_byte": 1.2, "speed": 0.9, "disk_bytes": 9},
    ... ])]
    [True, True, False]
    """
    speeds = [(row["bits_per_byte"], -row["speed"]) for row in rows]
    sizes = [(row["bits_per_byte"], row["disk_bytes"]) for row in rows]
    return [
        {**row, "fast": _unbeaten(speed, speeds), "small": _unbeaten(size, sizes)}
        for row, speed, size in zip(rows, speeds, sizes, strict=True)
    ]


def _unbeaten(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """Whether no point is at most as large in both and smaller in one."""
    return not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
