"""Named changes of an architecture, and the ladder of them that leads from the decoder of 2017 to Llama."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from groundup import presets
from groundup.config import nearest, override, to_dict
from groundup.model import LearnedPositions, ModelConfig, Rope, SinusoidalPositions
from groundup.scaling.settings import AblationSettings

D_FF_MULTIPLE = 8
BASE = "base"


@dataclass(frozen=True)
class Variant:
    """An architecture under a name; `against` is the variant that it is compared with (None: with nothing)."""

    name: str
    config: ModelConfig
    against: str | None
    change: str


Change = Callable[[ModelConfig], tuple[str, ...]]


def _placement(name: str, final_norm: bool = True) -> Change:
    return lambda _: (f"blocks.0.placement={name}", f"final_norm={json.dumps(final_norm)}")


def _mlp(activation: str) -> Change:
    return lambda c: (
        "blocks.0.ffn.gated=false", f"blocks.0.ffn.activation={activation}", f"blocks.0.ffn.d_ff={4 * c.d_model}",
    )  # fmt: skip


def _glu(activation: str) -> Change:
    return lambda c: (
        "blocks.0.ffn.gated=true", f"blocks.0.ffn.activation={activation}",
        f"blocks.0.ffn.d_ff={presets.gated_d_ff(c.d_model, D_FF_MULTIPLE)}",
    )  # fmt: skip


def _positions(kind: type | None, rope: Rope | None = None, alibi: bool = False) -> Change:
    return lambda c: (
        f"positions={json.dumps(to_dict(kind(c.context_length) if kind else None))}",
        f"blocks.0.mixer.rope={json.dumps(to_dict(rope))}",
        f"blocks.0.mixer.alibi={json.dumps(alibi)}",
    )


def _kv_heads(divisor: int | None) -> Change:
    def change(config: ModelConfig) -> tuple[str, ...]:
        heads = config.blocks[0].mixer.num_heads  # type: ignore[union-attr]
        return (f"blocks.0.mixer.num_kv_heads={1 if divisor is None or heads % divisor else heads // divisor}",)

    return change


CHANGES: dict[str, tuple[str, Change]] = {
    "layernorm": ("LayerNorm", lambda _: ("blocks.0.norm=layer", "norm_bias=true")),
    "rmsnorm": ("RMSNorm", lambda _: ("blocks.0.norm=rms", "norm_bias=false")),
    "post": ("norm after the residual sum", _placement("post", final_norm=False)),
    "pre": ("norm before each layer", _placement("pre")),
    "sandwich": ("norm before and after each layer", _placement("sandwich")),
    "inner": ("norm after each layer", _placement("inner")),
    "parallel": ("attention and feed-forward side by side", _placement("parallel")),
    "no_norm": ("no norm but the last", _placement("none")),
    "relu_mlp": ("ReLU MLP, d_ff = 4 d_model", _mlp("relu")),
    "gelu_mlp": ("GELU MLP, d_ff = 4 d_model", _mlp("gelu")),
    "relu2_mlp": ("squared ReLU MLP, d_ff = 4 d_model", _mlp("relu2")),
    "glu": ("GLU (sigmoid), d_ff = 8/3 d_model", _glu("sigmoid")),
    "bilinear": ("bilinear, d_ff = 8/3 d_model", _glu("identity")),
    "reglu": ("ReGLU, d_ff = 8/3 d_model", _glu("relu")),
    "geglu": ("GEGLU, d_ff = 8/3 d_model", _glu("gelu")),
    "swiglu": ("SwiGLU, d_ff = 8/3 d_model", _glu("silu")),
    "sinusoidal": ("sinusoidal positions", _positions(SinusoidalPositions)),
    "learned": ("learned positions", _positions(LearnedPositions)),
    "nope": ("no positions", _positions(None)),
    "alibi": ("ALiBi", _positions(None, alibi=True)),
    "rope": ("RoPE", _positions(None, Rope())),
    "bias": ("biases in the feed-forward layer", lambda _: ("blocks.0.ffn.bias=true",)),
    "no_bias": ("no biases", lambda _: ("blocks.0.ffn.bias=false",)),
    "qk_norm": ("RMSNorm on queries and keys", lambda _: ("blocks.0.mixer.qk_norm=true",)),
    "mha": ("a key/value head for each head", _kv_heads(1)),
    "gqa": ("a key/value head for two heads", _kv_heads(2)),
    "mqa": ("one key/value head", _kv_heads(None)),
    "untied": ("token table and head apart", lambda _: ("tie_embeddings=false",)),
    "tied": ("token table and head tied", lambda _: ("tie_embeddings=true",)),
}
"""What can be named: (words, the dotted overrides that make it)."""

LADDER = (
    ("layernorm", "rmsnorm"),
    ("post", "pre"),
    ("relu_mlp", "swiglu"),
    ("sinusoidal", "rope"),
    ("bias", "no_bias"),
)
"""(2017, Llama) of each switch, in the order in which they are turned."""

MORE_STEPS = {"gqa": ("mha", "gqa"), "tied": ("untied", "tied")}


def modern(settings: AblationSettings) -> ModelConfig:
    """Llama's block (pre-RMSNorm, SwiGLU, RoPE, no biases), untied, each head with its own keys and values."""
    return presets.llama(
        vocab_size=settings.vocab_size,
        d_model=settings.d_model,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads or max(1, settings.d_model // 32),
        d_ff=presets.gated_d_ff(settings.d_model, D_FF_MULTIPLE),
        context_length=settings.context_length,
    )


def changed(config: ModelConfig, name: str) -> ModelConfig:
    """`config` with a named change. ValueError with the nearest name for one that is not known."""
    if name not in CHANGES:
        raise ValueError(f"variant {name!r} is unknown{nearest(name, CHANGES)}")
    return override(config, *CHANGES[name][1](config))


def ladder(base: ModelConfig, more: Sequence[str] = ()) -> list[Variant]:
    """From 2017 to Llama: every rung is one switch on top of the rung before, and compared with it.

    The first rung is the decoder of Vaswani et al. 2017 (arXiv:1706.03762) with untied embeddings: tying is no part
    of the ladder unless `more` names it ("gqa", "tied").
    """
    if unknown := [name for name in more if name not in MORE_STEPS]:
        raise ValueError(f"ladder: step {unknown[0]!r} is unknown{nearest(unknown[0], MORE_STEPS)}")
    steps = [*LADDER, *(MORE_STEPS[name] for name in more)]
    config = base
    for old, _ in steps:
        config = changed(config, old)
    rungs = [Variant("2017", config, None, ", ".join(CHANGES[old][0] for old, _ in steps))]
    for old, new in steps:
        config = changed(config, new)
        rungs.append(Variant(f"+{new}", config, rungs[-1].name, f"{CHANGES[old][0]} -> {CHANGES[new][0]}"))
    return rungs


def leave_one_out(base: ModelConfig) -> list[Variant]:
    """The modern base, and the base with each switch alone turned back to 2017."""
    return named(base, [old for old, _ in LADDER])


def named(
    base: ModelConfig, names: Sequence[str], own: Sequence[tuple[str, Sequence[str]]] = (), against: str = BASE
) -> list[Variant]:
    """`base` under the name "base", and each named change of it; `own` are (name, dotted overrides) of a user."""
    variants = [Variant(BASE, base, None, "the base")]
    variants += [Variant(name, changed(base, name), against, CHANGES[name][0]) for name in names]
    variants += [Variant(name, override(base, *keys), against, ", ".join(keys)) for name, keys in own]
    seen: set[str] = set()
    for variant in variants:
        if variant.name in seen:
            raise ValueError(f"variant {variant.name!r} is named twice; give each its own name")
        seen.add(variant.name)
    return variants
