"""Which Hugging Face class a config is, and a `ModelConfig` as that class's config.json, both ways.

Llama, Mistral (a window in every layer), Qwen2 (biases on q, k, v) and Qwen3 (normalised heads, windows per
layer) differ in a few keys; GPT-2 has a vocabulary of its own.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from groundup.config import nearest
from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.feedforward import MLPConfig
from groundup.model.position import LearnedPositions, Rope
from groundup.model.transformer import ModelConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

# The first name of each is the one written; gelu_new is GPT-2's word for the tanh approximation.
ACTIVATION_NAMES = {
    "silu": ("silu", "swish"),
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
    "relu": ("relu",),
    "relu2": ("relu2",),
    "sigmoid": ("sigmoid",),
    "identity": ("linear",),
}


def family_of(config: ModelConfig) -> str:
    """The model_type that expresses `config`. ValueError says what in it no Hugging Face class has."""
    unknown = [part for block in _used_blocks(config) for part in (block.mixer, block.ffn) if not _is_plain(part)]
    if unknown:
        raise ValueError(f"no Hugging Face class expresses this model: {unknown[0]!r:.100} in a block")
    mixers = [_attention(block) for block in _used_blocks(config)]
    first = mixers[0]
    if isinstance(config.positions, LearnedPositions):
        family, reasons = "gpt2", _gpt2_reasons(config)
    else:
        windows = any(m.window is not None for m in mixers)
        biased = first.bias and not first.out_bias
        family = "qwen3" if first.qk_norm else "qwen2" if biased else "mistral" if windows else "llama"
        reasons = _llama_reasons(config, family)
    reasons = [reason for holds, reason in (*_common_reasons(config), *reasons) if holds]
    if reasons:
        raise ValueError(f"no Hugging Face class expresses this model: {'; '.join(reasons)}")
    return family


def _is_plain(part: object) -> bool:
    return isinstance(part, AttentionConfig | MLPConfig)


def _attention(block: BlockConfig) -> AttentionConfig:
    assert isinstance(block.mixer, AttentionConfig)
    return block.mixer


def _mlp(block: BlockConfig) -> MLPConfig:
    assert isinstance(block.ffn, MLPConfig)
    return block.ffn


def _used_blocks(config: ModelConfig) -> tuple[BlockConfig, ...]:
    return config.blocks[: config.num_layers]


def _common_reasons(config: ModelConfig) -> list[tuple[bool, str]]:
    blocks = _used_blocks(config)
    first = blocks[0]
    alike = [replace(b, mixer=replace(_attention(b), window=None)) for b in blocks]
    return [
        (first.placement != "pre", f"placement {first.placement!r} (only 'pre' is written)"),
        (not config.final_norm, "no final norm"),
        (config.logit_softcap is not None, "logit_softcap"),
        (config.scale_embeddings, "scale_embeddings"),
        (_attention(first).softcap is not None, "attention softcap"),
        (any(b != alike[0] for b in alike), "layers that differ in more than their window"),
    ]


def _llama_reasons(config: ModelConfig, family: str) -> list[tuple[bool, str]]:
    block = config.block(0)
    mixer = _attention(block)
    windows = {_attention(block).window for block in _used_blocks(config)}
    undivided = config.d_model % mixer.num_heads != 0
    return [
        (block.norm != "rms", "layer norm without learned positions"),
        (config.positions is not None, "sinusoidal positions"),
        (mixer.rope is None, "attention without a rotary embedding or learned positions"),
        (not _mlp(block).gated, "a feed-forward layer without a gate and rotary positions"),
        (_mlp(block).bias and family != "llama", f"feed-forward biases in {ARCHITECTURES[family]}"),
        (family == "qwen2" and mixer.num_heads * mixer.d_head != config.d_model,
         "biases on q, k, v alone, unless num_heads * d_head = d_model"),
        (family != "qwen2" and mixer.bias != mixer.out_bias, "biases on q, k, v or on the output alone"),
        (family == "mistral" and (mixer.bias or mixer.out_bias), "attention biases with a window"),
        (family == "mistral" and len(windows) > 1, "windows in some layers only, without qk_norm"),
        (len(windows - {None}) > 1, "windows of different sizes"),
        (family in ("llama", "mistral") and undivided, "a d_model that num_heads does not divide"),
    ]  # fmt: skip


def _gpt2_reasons(config: ModelConfig) -> list[tuple[bool, str]]:
    block = config.block(0)
    mixer = _attention(block)
    unbiased = not (mixer.bias and mixer.out_bias and _mlp(block).bias and config.norm_bias)
    windowed = any(_attention(block).window is not None for block in _used_blocks(config))
    return [
        (block.norm != "layer", "RMSNorm with learned positions"),
        (mixer.rope is not None, "rotary and learned positions together"),
        (unbiased, "learned positions without a bias on every linear layer and norm"),
        (_mlp(block).gated, "a gated feed-forward layer with learned positions"),
        (mixer.num_kv_heads != mixer.num_heads, "shared key/value heads with learned positions"),
        (mixer.num_heads * mixer.d_head != config.d_model, "learned positions, unless heads fill d_model"),
        (bool(mixer.qk_norm) or windowed, "qk_norm or a window with learned positions"),
    ]


def to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The architecture's part of a config.json. ValueError as `family_of`."""
    family = family_of(config)
    common = {"architectures": [ARCHITECTURES[family]], "model_type": family, "vocab_size": config.vocab_size}
    common["tie_word_embeddings"] = config.tie_embeddings
    block = config.block(0)
    mixer, act = _attention(block), ACTIVATION_NAMES[_mlp(block).activation][0]
    if family == "gpt2":
        assert isinstance(config.positions, LearnedPositions)
        return common | {
            "n_embd": config.d_model,
            "n_layer": config.num_layers,
            "n_head": mixer.num_heads,
            "n_inner": _mlp(block).d_ff,
            "n_positions": config.positions.max_length,
            "activation_function": "gelu_new" if act == "gelu_pytorch_tanh" else act,
            "layer_norm_epsilon": config.norm_eps,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        }
    assert mixer.rope is not None
    return common | _windows(config, family) | {
        "hidden_size": config.d_model,
        "intermediate_size": _mlp(block).d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.d_head,
        "hidden_act": act,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": mixer.rope.theta,  # transformers 4 reads this one, 5 the next
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope.theta},
        "attention_bias": mixer.bias,
        "attention_dropout": 0.0,
        "mlp_bias": _mlp(block).bias,
    }  # fmt: skip


def _windows(config: ModelConfig, family: str) -> dict[str, Any]:
    windows = [_attention(config.block(i)).window for i in range(config.num_layers)]
    if family == "mistral":
        return {"sliding_window": windows[0]}
    if family == "llama":
        return {}
    window = next((w for w in windows if w is not None), None)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": config.num_layers if window is None else 0,
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
    }


def from_hugging_face(data: Mapping[str, Any]) -> ModelConfig:
    """The config that a config.json describes. ValueError names the key that is missing or not supported."""
    names = data.get("architectures") or [ARCHITECTURES.get(str(data.get("model_type")))]
    family = next((f for f, a in ARCHITECTURES.items() if a in names), None)
    if family is None:
        given = str(names[0] or data.get("model_type"))
        raise ValueError(f"architecture {given!r} is not supported{nearest(given, ARCHITECTURES.values())}")
    return _from_gpt2(data) if family == "gpt2" else _from_llama(data, family)


def _from_gpt2(data: Mapping[str, Any]) -> ModelConfig:
    for key, plain in {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                       "add_cross_attention": False}.items():  # fmt: skip
        if data.get(key, plain) != plain:
            raise ValueError(f"{key}={data[key]!r} is not supported; expected {plain}")
    d_model, heads, length = _size(data, "n_embd"), _size(data, "n_head"), _size(data, "n_positions", 1024)
    if d_model % heads:
        raise ValueError(f"n_embd={d_model} is not divisible by n_head={heads}")
    mixer = AttentionConfig(heads, heads, d_model // heads, rope=None, bias=True, out_bias=True)
    activation = _activation(data, "activation_function", "gelu_new")
    ffn = MLPConfig(_size(data, "n_inner", 4 * d_model), gated=False, activation=activation, bias=True)
    return ModelConfig(
        vocab_size=_size(data, "vocab_size"),
        d_model=d_model,
        num_layers=_size(data, "n_layer"),
        blocks=(BlockConfig(mixer, ffn, norm="layer"),),
        context_length=length,
        positions=LearnedPositions(length),
        tie_embeddings=bool(data.get("tie_word_embeddings", True)),
        norm_eps=float(data.get("layer_norm_epsilon", 1e-5)),
        norm_bias=True,
    )


def _from_llama(data: Mapping[str, Any], family: str) -> ModelConfig:
    d_model, heads = _size(data, "hidden_size"), _size(data, "num_attention_heads")
    biased = family == "qwen2" or bool(data.get("attention_bias", False))
    mixer = AttentionConfig(
        num_heads=heads,
        num_kv_heads=_size(data, "num_key_value_heads", heads),
        d_head=_size(data, "head_dim", 128 if family == "qwen3" else d_model // heads),
        rope=_rope(data),
        qk_norm=family == "qwen3",
        bias=biased,
        out_bias=biased and family != "qwen2",
    )
    bias = family == "llama" and bool(data.get("mlp_bias", False))
    ffn = MLPConfig(_size(data, "intermediate_size"), activation=_activation(data, "hidden_act", "silu"), bias=bias)
    windows = _windows_of(data, family, _size(data, "num_hidden_layers"))
    return ModelConfig(
        vocab_size=_size(data, "vocab_size"),
        d_model=d_model,
        num_layers=_size(data, "num_hidden_layers"),
        blocks=tuple(BlockConfig(replace(mixer, window=w), ffn) for w in windows),
        context_length=_size(data, "max_position_embeddings", 2048),
        tie_embeddings=bool(data.get("tie_word_embeddings", False)),
        norm_eps=float(data.get("rms_norm_eps", 1e-6)),
    )


def _windows_of(data: Mapping[str, Any], family: str, layers: int) -> list[int | None]:
    """Each layer's window, as the shortest list that repeats to them."""
    if family == "llama":
        return [None]
    window = data.get("sliding_window", 4096)
    if family == "mistral" or window is None or not data.get("use_sliding_window", False):
        return [window if family == "mistral" else None]
    types = data.get("layer_types")
    if types is None:
        types = ["full_attention"] * min(layers, _size(data, "max_window_layers", 28))
        types += ["sliding_attention"] * (layers - len(types))
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != layers or not all(t in known for t in types):
        raise ValueError(f"layer_types: expected {layers} of 'full_attention' and 'sliding_attention'")
    period = next(p for p in range(1, layers + 1) if all(types[i] == types[i % p] for i in range(layers)))
    return [known[t] for t in types[:period]]


def _size(data: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = data.get(key)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{key} is missing")
    if type(value) is not int or value < 1:
        raise ValueError(f"{key}={value!r}; expected an integer of at least 1")
    return value


def _activation(data: Mapping[str, Any], key: str, default: str) -> Any:
    given = str(data.get(key) or default)
    for ours, theirs in ACTIVATION_NAMES.items():
        if given in theirs:
            return ours
    known = [name for names in ACTIVATION_NAMES.values() for name in names]
    raise ValueError(f"{key}={given!r} is not supported{nearest(given, known)}")


def _rope(data: Mapping[str, Any]) -> Rope:
    parameters = data.get("rope_parameters") or data.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0))
    if kind != "default" or partial != 1.0:
        raise ValueError(f"rope_parameters={parameters!r:.100} is not supported; expected rope_type 'default'")
    return Rope(float(parameters.get("rope_theta", data.get("rope_theta", 10_000.0))))
