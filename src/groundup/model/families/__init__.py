"""Which Hugging Face class a config is, and a `ModelConfig` as that class's config.json, both ways.

A file per group of families; each has its keys and the places of its weights. A new family is a `Family` in `FAMILIES`.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from math import isclose
from typing import Any

from groundup.config import nearest, to_dict
from groundup.model.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from groundup.model.families.experts import MIXTRAL, OLMOE, untrained
from groundup.model.families.family import Family, Reasons
from groundup.model.families.gemma import GEMMA2, GEMMA3
from groundup.model.families.gpt2 import GPT2
from groundup.model.families.keys import ACTIVATION_NAMES, Keys
from groundup.model.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from groundup.model.families.mamba import MAMBA2
from groundup.model.families.olmo import OLMO2
from groundup.model.moe import MoEConfig
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import FamilyWeights

__all__ = [
    "ACTIVATION_NAMES", "ARCHITECTURES", "FAMILIES", "family_of", "from_hugging_face", "to_hugging_face", "weights_of",
]  # fmt: skip

# The first that claims a config decides, so Llama, which claims every attention, is last.
FAMILIES = (
    GPT2, DEEPSEEK_V3, DEEPSEEK_V2, MIXTRAL, OLMOE, MAMBA2, GEMMA3, GEMMA2, OLMO2, QWEN3, QWEN2, MISTRAL, LLAMA,
)  # fmt: skip
ARCHITECTURES = {family.model_type: family.architecture for family in FAMILIES}


def family_of(config: ModelConfig) -> str:
    """The model_type that expresses `config`. ValueError says what in it no Hugging Face class has."""
    return _expressed(config)[0].model_type


def to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The architecture's part of a config.json. ValueError as `family_of`."""
    return _expressed(config)[1]


def _expressed(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family and its config.json, which is read back: what does not return is not expressed."""
    family = next((family for family in FAMILIES if family.claims(config)), None)
    if family is None:
        parts = [part for block in config.blocks[: config.num_layers] for part in (block.mixer, block.ffn)]
        kinds = ", ".join(dict.fromkeys(type(part).__name__ for part in parts))
        raise ValueError(f"no Hugging Face class expresses this model: blocks of {kinds}")
    reasons = [reason for holds, reason in (*_not_alone(config), *family.reasons(config)) if holds]
    if not reasons:
        data = _common(config, family) | family.write(config)
        reasons = _lost_in(family, data, config)
        if not reasons:
            return family, data
    raise ValueError(f"no Hugging Face class expresses this model: {'; '.join(reasons)}")


def _not_alone(config: ModelConfig) -> Reasons:
    """What makes of a model an encoder, or a part of an encoder-decoder."""
    crossed = any(block.cross is not None for block in config.blocks[: config.num_layers])
    return [
        (not config.causal, "attention that looks ahead (causal=False), where the classes that are written are causal"),
        (crossed, "attention to a source (cross)"),
    ]


def _lost_in(family: Family, data: Keys, config: ModelConfig) -> list[str]:
    """What of the config does not come back from this config.json."""
    try:
        return list(_lost(_by_layer(config), _by_layer(family.parse(data))))[:5]
    except ValueError as error:
        return [str(error)]


def _common(config: ModelConfig, family: Family) -> dict[str, Any]:
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _by_layer(config: ModelConfig) -> dict[str, Any]:
    """A config with every layer's block spelled out, so that two ways of tiling the same layers are equal."""
    layers = [config.block(i) for i in range(config.num_layers)]
    blocks = tuple(replace(b, ffn=untrained(b.ffn)) if isinstance(b.ffn, MoEConfig) else b for b in layers)
    kept = {"norm_bias": config.norm_bias and any(block.norm == "layer" for block in blocks)}
    return to_dict(replace(config, blocks=blocks, **kept))


def _lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Where two configs differ. A float may differ by its last digits, as scales go through square roots."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key in ours:
            yield from _lost(ours[key], theirs[key], f"{path}.{key}" if path else key)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _lost(*pair, f"{path}.{i}")
    elif ours != theirs and not _is_close(ours, theirs):
        yield f"{path}={ours!r:.60} (its class has {theirs!r:.60})"


def _is_close(a: Any, b: Any) -> bool:
    return type(a) in (int, float) and type(b) in (int, float) and isclose(a, b, rel_tol=1e-9)


def from_hugging_face(data: Keys) -> ModelConfig:
    """The config that a config.json describes. ValueError names the key that is missing or not supported."""
    return _named(data).parse(data)


def weights_of(config: ModelConfig, data: Keys | None = None, names: Collection[str] = ()) -> FamilyWeights:
    """Where the weights are in a file: in the one with this config.json and these tensors, or in one that we write."""
    family = _expressed(config)[0] if data is None else _named(data)
    data = {} if data is None else data
    return FamilyWeights(family.places(config, data, names), family.prefix, family.unused(data))


def _named(data: Keys) -> Family:
    """The family that the file names by its class, or by its model_type alone."""
    kind, classes = data.get("model_type"), data.get("architectures")
    if not isinstance(kind, str | None):
        raise ValueError(f"model_type={kind!r:.80}; expected a word, such as 'llama'")
    classes = [ARCHITECTURES.get(kind or "")] if classes is None or classes == [] else classes
    if not isinstance(classes, list) or not all(isinstance(name, str | None) for name in classes):
        raise ValueError(f"architectures={classes!r:.80}; expected a list with the name of a class")
    family = next((f for f in FAMILIES if f.architecture in classes), None)
    if family is None:
        given = str(classes[0] or kind)[:80]
        raise ValueError(f"architecture {given!r} is not supported{nearest(given, ARCHITECTURES.values())}")
    if kind in ARCHITECTURES and kind != family.model_type:
        raise ValueError(f"model_type={kind!r} and architectures={classes!r:.80} are of two families; correct one")
    return family
