"""The variants of a model that `groundup compress` compares: how each is made, kept and run.

fp32, bf16            as it is, rounded                    kv-int8, kv-fp8    keys and values in eight bits
int8, int4, fp8       weights quantised                    magnitude-50       half of each matrix zero, by |w|
2:4                   two of four zero, by Wanda           wanda-50           half of each row zero, by Wanda
narrow-75             75 % of the channels of each feed-forward layer, healed by training
shallow-75            75 % of the layers, healed            distilled-50       half of them, healed by the teacher
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from groundup.compression.distill import distillation
from groundup.compression.importance import part_scores, weight_scores
from groundup.compression.prune import apply_masks, semi_structured_masks, sparse_masks
from groundup.compression.quantize import Quantization, quantize_model, save_quantized, weight_bytes
from groundup.compression.settings import CompressSettings, parse_method
from groundup.compression.shrink import Smaller, choose_parts, shrink
from groundup.compression.teacher_logits import TeacherLogits
from groundup.compression.text import Texts
from groundup.data.batch import Batch
from groundup.inference import Engine
from groundup.inference.batch_cache import bytes_per_token
from groundup.inference.decode import CompiledDecoder
from groundup.inference.quantized_pages import quantized_bytes_per_token, rounded_caches
from groundup.model import MLPConfig, Transformer
from groundup.model.cache import Cache
from groundup.model.source import Source, write_folder
from groundup.optim import AdamW, warmup_stable_decay
from groundup.train import next_token, train
from groundup.train.loop import Hook
from groundup.train.step import Objective

QUANTIZED = {"int8": Quantization("int8", 32), "int4": Quantization("int4", 32), "fp8": Quantization("fp8", None)}


@dataclass(frozen=True)
class Variant:
    """One compressed model.

    model         what is scored; its matrices are packed where weights are quantised
    dense         what the compiled step packs by itself (None: it cannot run this)
    weights       the compiled step's number format
    cache_format  of keys and values (None: as activations)
    """

    name: str
    model: Transformer
    dense: Transformer | None
    weights: str = "bf16"
    quantization: Quantization | None = None
    cache_format: str | None = None

    @property
    def weight_bytes(self) -> int:
        """As the variant keeps them; dense ones in bfloat16, but for the baseline in float32."""
        size = weight_bytes(self.model)
        return size if self.quantization is not None or self.name == "fp32" else size // 2

    @property
    def cache_bytes_per_token(self) -> int:
        """Of keys and values of one sequence; bfloat16 unless they are quantised or all is float32."""
        if self.cache_format is not None:
            return quantized_bytes_per_token(self.model.config)
        return bytes_per_token(self.model.config, torch.float32 if self.name == "fp32" else torch.bfloat16)

    @property
    def caches(self) -> list[Cache] | None:
        """For scoring: what shows layers their keys and values rounded."""
        return None if self.cache_format is None else rounded_caches(self.model.config, self.cache_format)

    def engine(self, source: Source) -> tuple[Engine, str]:
        """An engine and what it decodes with: "compiled" where the compiled step covers the variant, else "torch"."""
        assert source.tokenizer is not None
        options: dict[str, Any] = {"batch_size": 1, "end_ids": source.end_ids}
        if self.dense is not None:
            taken: list[bool] = []
            built = partial(_noted, taken=taken, weights=self.weights)
            engine = Engine(self.dense, source.tokenizer, decoder=built, **options)
            engine.generate([source.tokenizer.end_of_text], max_tokens=1)
            if taken == [True]:
                return engine, "compiled"
        return Engine(self.model, source.tokenizer, cache_format=self.cache_format, **options), "torch"

    def save(self, source: Source, folder: Path) -> None:
        """The model as a folder, in the layout of Hugging Face or, if quantised, of `load_quantized`."""
        if self.quantization is None:
            write_folder(replace(source, model=self.model), folder, "f32" if self.name == "fp32" else "bf16")
            return
        save_quantized(self.model, self.quantization, folder)
        assert source.tokenizer is not None
        source.tokenizer.save(folder)


def _noted(model: Transformer, store: Any, *, taken: list[bool], weights: str) -> Any:
    built = CompiledDecoder.build(model, store, weights)
    taken.append(isinstance(built, CompiledDecoder))
    return built


Heal = Callable[[Transformer, Objective, Iterable[Batch]], None]
"""Trains a smaller model in place."""


def make_variant(
    name: str,
    model: Transformer,
    texts: Texts,
    settings: CompressSettings,
    healed: Heal,
    logits: TeacherLogits | None = None,
) -> Variant:
    """The variant of this name; `model` stays as it is. ValueError for what the architecture cannot have.

    `healed` trains a smaller model: `heal` with the settings of the comparison. `logits`: what a distilled one learns
    from, instead of the model.
    """
    kind, share = parse_method(name)
    if kind == "fp32":
        return Variant(name, model, None)
    if kind.startswith("kv-"):
        return Variant(name, rounded_to_bf16(model), None, cache_format=kind.removeprefix("kv-"))
    if kind in QUANTIZED:
        packed = quantize_model(copy.deepcopy(model), QUANTIZED[kind])
        return Variant(name, packed, None if kind == "fp8" else model, kind, QUANTIZED[kind])
    if kind in ("narrow", "shallow", "distilled"):
        small = _smaller(kind, share, model, texts, settings)
        drawn = texts.draws(settings.heal_batch, settings.heal_steps, settings.seed)
        if kind != "distilled":
            healed(small, next_token, drawn)
        else:
            teacher = model if logits is None else logits
            source = drawn if logits is None else logits.beside(drawn)
            healed(small, distillation(teacher, temperature=settings.temperature), source)
        return _dense(name, small)
    return _dense(name, model if kind == "bf16" else _sparse(kind, share, model, texts, settings))


def _dense(name: str, model: Transformer) -> Variant:
    rounded = rounded_to_bf16(model)
    return Variant(name, rounded, rounded)


@torch.no_grad()
def rounded_to_bf16(model: Transformer) -> Transformer:
    """A copy whose weights are numbers of bfloat16, kept in float32 so that sums stay what they were."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.copy_(parameter.bfloat16())
    return copied


def _sparse(kind: str, share: float, model: Transformer, texts: Texts, settings: CompressSettings) -> Transformer:
    if kind == "magnitude":
        masks = sparse_masks(weight_scores(model), share)
    else:
        scores = weight_scores(model, "activations", texts.calibration(settings.calibration_windows))
        masks = semi_structured_masks(scores) if kind == "2:4" else sparse_masks(scores, share, "row")
    copied = copy.deepcopy(model)
    apply_masks(copied, masks)
    return copied


def _smaller(kind: str, share: float, model: Transformer, texts: Texts, settings: CompressSettings) -> Transformer:
    config = model.config
    scores = part_scores(model, "activations", texts.calibration(settings.calibration_windows))
    if kind == "narrow":
        ffn = config.block(0).ffn
        if not isinstance(ffn, MLPConfig):
            raise ValueError(f"{kind}: the first layer has no dense feed-forward layer; leave this method out")
        return shrink(model, choose_parts(config, scores, Smaller(d_ff=_whole(share * ffn.d_ff, 32))))
    layers = max(1, round(share * config.num_layers))
    return shrink(model, choose_parts(config, scores, Smaller(num_layers=layers)))


def _whole(size: float, multiple: int) -> int:
    """The nearest multiple of what kernels take at a time; smaller numbers as they are."""
    return max(1, round(size)) if size < multiple else round(size / multiple) * multiple


def heal(
    model: Transformer, objective: Objective, source: Iterable[Batch], settings: CompressSettings, hook: Hook
) -> None:
    """Train a smaller model for a few steps, with `hook` after each. KeyboardInterrupt when it was stopped."""
    steps = settings.heal_steps
    if not steps:
        return
    run = train(
        model, source, objective, AdamW(model, lr=settings.heal_rate), steps,
        schedule=warmup_stable_decay(min(5, steps), steps, 0.5), progress=False, every={1: hook},
    )  # fmt: skip
    model.eval()
    if run.stopped_by == "interrupt":
        raise KeyboardInterrupt
