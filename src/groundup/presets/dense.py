"""Published models without experts: each a row of sizes, and a function that says what its family does with them."""

from dataclasses import replace
from functools import partial
from typing import Any

from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.feedforward import MLPConfig
from groundup.model.position import Rope
from groundup.model.rope_scaling import LinearScaling, Llama3Scaling
from groundup.model.transformer import ModelConfig
from groundup.presets.dials import gpt2, llama, qwen3, vaswani
from groundup.presets.published import Published


def sized(layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, d_head: int = 0) -> dict[str, Any]:
    """The numbers of a row, by their names."""
    numbers = {"num_layers": layers, "d_model": d_model, "num_heads": heads, "num_kv_heads": kv_heads, "d_ff": d_ff}
    return numbers | {"d_head": d_head or d_model // heads}


def llama2(**sizes: Any) -> ModelConfig:
    return llama(vocab_size=32_000, context_length=4096, **sizes)


def llama3(*, tied: bool = False, scaling: Llama3Scaling | None = None, **sizes: Any) -> ModelConfig:
    context = 8192 if scaling is None else 131_072
    config = llama(vocab_size=128_256, context_length=context, rope_theta=500_000.0, tie_embeddings=tied, **sizes)
    return with_mixer(config, rope=Rope(500_000.0, scaling=scaling))


def qwen2(*, vocab_size: int = 152_064, tied: bool = False, **sizes: Any) -> ModelConfig:
    """Llama's block with biases on queries, keys and values."""
    config = llama(
        vocab_size=vocab_size, context_length=32_768, rope_theta=1e6, norm_eps=1e-6, tie_embeddings=tied, **sizes
    )
    return with_mixer(config, bias=True)


def mistral(**sizes: Any) -> ModelConfig:
    return llama(vocab_size=32_000, context_length=32_768, window=4096, **sizes)


def smollm2(*, rope_theta: float = 100_000.0, **sizes: Any) -> ModelConfig:
    return llama(vocab_size=49_152, context_length=8192, rope_theta=rope_theta, tie_embeddings=True, **sizes)


def gemma3(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    num_kv_heads: int,
    d_ff: int,
    d_head: int,
    window: int,
    vocab_size: int = 262_208,
    scale: float | None = None,
    stretched: float | None = 8.0,
) -> ModelConfig:
    """Five layers with a window, then one without; norms before and after each branch; tanh-GELU gates; text only."""
    scaling = None if stretched is None else LinearScaling(stretched)
    whole = AttentionConfig(
        num_heads, num_kv_heads, d_head, rope=Rope(1e6, scaling=scaling), qk_norm=True, scale=scale
    )  # fmt: skip
    local = replace(whole, rope=Rope(10_000.0), window=window)
    ffn = MLPConfig(d_ff, activation="gelu_tanh")
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        blocks=tuple(BlockConfig(mixer, ffn, placement="sandwich") for mixer in [local] * 5 + [whole]),
        context_length=32_768 if stretched is None else 131_072,
        tie_embeddings=True,
        scale_embeddings=True,
        norm_eps=1e-6,
    )


def with_mixer(config: ModelConfig, **changes: Any) -> ModelConfig:
    """The config with these fields of every layer's mixer replaced."""
    return replace(config, blocks=tuple(replace(b, mixer=replace(b.mixer, **changes)) for b in config.blocks))


_LLAMA2 = "Touvron et al. 2023 (arXiv:2307.09288)"
_LLAMA3 = "Grattafiori et al. 2024 (arXiv:2407.21783)"
_QWEN25 = "Qwen2.5 Technical Report (arXiv:2412.15115)"
_QWEN3 = "Qwen3 Technical Report (arXiv:2505.09388)"
_GEMMA3 = "Gemma 3 Technical Report (arXiv:2503.19786)"
_SMOLLM2 = "Ben Allal et al. 2025 (arXiv:2502.02737)"
_GPT2 = "Radford et al. 2019"
_TABLE_1: Any = {"rounded": 1_000_000, "counted": "non_embedding"}
_qwen3 = partial(qwen3, vocab_size=151_936, context_length=40_960)
_untied = partial(_qwen3, tie_embeddings=False)
_FAR = Llama3Scaling(32.0)

MODELS: dict[str, Published] = {
    # The decoder without its attention to an encoder; the paper's 65 M are of both.
    "vaswani-2017": Published(vaswani, 37_846_016, "Vaswani et al. 2017 (arXiv:1706.03762), by its formulas"),
    "gpt2": Published(partial(gpt2, "small"), 124_439_808, _GPT2),
    "gpt2-medium": Published(partial(gpt2, "medium"), 354_823_168, _GPT2),
    "gpt2-large": Published(partial(gpt2, "large"), 774_030_080, _GPT2),
    "gpt2-xl": Published(partial(gpt2, "xl"), 1_557_611_200, _GPT2),
    "llama-2-7b": Published(partial(llama2, **sized(32, 4096, 32, 32, 11_008)), 6_738_415_616, _LLAMA2),
    "llama-2-13b": Published(partial(llama2, **sized(40, 5120, 40, 40, 13_824)), 13_015_864_320, _LLAMA2),
    "llama-2-70b": Published(partial(llama2, **sized(80, 8192, 64, 8, 28_672)), 68_976_648_192, _LLAMA2),
    "llama-3-8b": Published(partial(llama3, **sized(32, 4096, 32, 8, 14_336)), 8_030_261_248, _LLAMA3),
    "llama-3-70b": Published(partial(llama3, **sized(80, 8192, 64, 8, 28_672)), 70_553_706_496, _LLAMA3),
    "llama-3.1-405b": Published(
        partial(llama3, scaling=Llama3Scaling(8.0), **sized(126, 16_384, 128, 8, 53_248)), 405_853_388_800, _LLAMA3,
    ),
    "llama-3.2-1b": Published(
        partial(llama3, tied=True, scaling=_FAR, **sized(16, 2048, 32, 8, 8192)), 1_235_814_400, _LLAMA3,
    ),
    "llama-3.2-3b": Published(
        partial(llama3, tied=True, scaling=_FAR, **sized(28, 3072, 24, 8, 8192)), 3_212_749_824, _LLAMA3,
    ),
    "qwen-2.5-0.5b": Published(
        partial(qwen2, vocab_size=151_936, tied=True, **sized(24, 896, 14, 2, 4864)), 494_032_768, _QWEN25,
    ),
    "qwen-2.5-1.5b": Published(
        partial(qwen2, vocab_size=151_936, tied=True, **sized(28, 1536, 12, 2, 8960)), 1_543_714_304, _QWEN25,
    ),
    "qwen-2.5-3b": Published(
        partial(qwen2, vocab_size=151_936, tied=True, **sized(36, 2048, 16, 2, 11_008)), 3_085_938_688, _QWEN25,
    ),
    "qwen-2.5-7b": Published(partial(qwen2, **sized(28, 3584, 28, 4, 18_944)), 7_615_616_512, _QWEN25),
    "qwen-2.5-14b": Published(partial(qwen2, **sized(48, 5120, 40, 8, 13_824)), 14_770_033_664, _QWEN25),
    "qwen-2.5-32b": Published(partial(qwen2, **sized(64, 5120, 40, 8, 27_648)), 32_763_876_352, _QWEN25),
    "qwen-2.5-72b": Published(partial(qwen2, **sized(80, 8192, 64, 8, 29_568)), 72_706_203_648, _QWEN25),
    "qwen-3-0.6b": Published(partial(_qwen3, **sized(28, 1024, 16, 8, 3072, 128)), 596_049_920, _QWEN3),
    "qwen-3-1.7b": Published(partial(_qwen3, **sized(28, 2048, 16, 8, 6144)), 1_720_574_976, _QWEN3),
    "qwen-3-4b": Published(partial(_qwen3, **sized(36, 2560, 32, 8, 9728, 128)), 4_022_468_096, _QWEN3),
    "qwen-3-8b": Published(partial(_untied, **sized(36, 4096, 32, 8, 12_288)), 8_190_735_360, _QWEN3),
    "qwen-3-14b": Published(partial(_untied, **sized(40, 5120, 40, 8, 17_408)), 14_768_307_200, _QWEN3),
    "qwen-3-32b": Published(
        partial(_untied, **sized(64, 5120, 64, 8, 25_600, 128)), 32_762_123_264, _QWEN3,
    ),
    "gemma-3-270m": Published(
        partial(gemma3, window=512, vocab_size=262_144, stretched=None, **sized(18, 640, 4, 1, 2048, 256)),
        268_098_176, _GEMMA3,
    ),
    "gemma-3-1b": Published(
        partial(gemma3, window=512, vocab_size=262_144, stretched=None, **sized(26, 1152, 4, 1, 6912, 256)),
        999_885_952, _GEMMA3,
    ),
    "gemma-3-4b": Published(
        partial(gemma3, window=1024, **sized(34, 2560, 8, 4, 10_240, 256)), 3_209_000_000, _GEMMA3, **_TABLE_1
    ),
    "gemma-3-12b": Published(
        partial(gemma3, window=1024, **sized(48, 3840, 16, 8, 15_360, 256)), 10_759_000_000, _GEMMA3, **_TABLE_1
    ),
    "gemma-3-27b": Published(
        partial(gemma3, window=1024, scale=168**-0.5, **sized(62, 5376, 32, 16, 21_504, 128)),
        25_600_000_000, _GEMMA3, **_TABLE_1,
    ),
    "mistral-7b": Published(
        partial(mistral, **sized(32, 4096, 32, 8, 14_336)), 7_241_732_096, "Jiang et al. 2023 (arXiv:2310.06825)",
    ),
    "smollm2-135m": Published(partial(smollm2, **sized(30, 576, 9, 3, 1536)), 134_515_008, _SMOLLM2),
    "smollm2-360m": Published(partial(smollm2, **sized(32, 960, 15, 5, 2560)), 361_821_120, _SMOLLM2),
    "smollm2-1.7b": Published(
        partial(smollm2, rope_theta=130_000.0, **sized(24, 2048, 32, 32, 8192)), 1_711_376_384, _SMOLLM2,
    ),
}  # fmt: skip
