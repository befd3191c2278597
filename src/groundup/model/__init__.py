"""Architectures: slots filled from a config. Pure single-device code that runs anywhere, meta included."""

from groundup.model.attention import Attention, AttentionConfig
from groundup.model.block import PLACEMENTS, Block, BlockConfig
from groundup.model.cache import Cache, CountingCache, DenseCache, NoCache, PagedCache, PagePool
from groundup.model.feedforward import MLP, MLPConfig
from groundup.model.grouping import group_kv_heads
from groundup.model.latent import LatentAttention, LatentAttentionConfig
from groundup.model.linear import Embedding, Linear
from groundup.model.lora import LoRAConfig, LoRALinear, add_lora
from groundup.model.norm import LayerNorm, RMSNorm
from groundup.model.position import Layout, LearnedPositions, Rope, SinusoidalPositions
from groundup.model.transformer import ModelConfig, Transformer

__all__ = [
    "MLP", "PLACEMENTS", "Attention", "AttentionConfig", "Block", "BlockConfig", "Cache", "CountingCache",
    "DenseCache", "Embedding", "LatentAttention", "LatentAttentionConfig", "LayerNorm", "Layout", "LearnedPositions",
    "Linear", "LoRAConfig", "LoRALinear", "MLPConfig",
    "ModelConfig", "NoCache", "PagePool", "PagedCache", "RMSNorm", "Rope", "SinusoidalPositions",
    "Transformer", "add_lora", "group_kv_heads",
]  # fmt: skip
