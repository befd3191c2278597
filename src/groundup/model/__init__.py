"""Architectures: slots filled from a config. Pure single-device code that runs anywhere, meta included."""

from groundup.model.attention import Attention, AttentionConfig
from groundup.model.balance import Balance
from groundup.model.block import PLACEMENTS, Block, BlockConfig
from groundup.model.cache import Cache, CountingCache, DenseCache, NoCache, PagedCache, PagePool
from groundup.model.feedforward import MLP, MLPConfig
from groundup.model.grouping import group_kv_heads
from groundup.model.linear import Embedding, Linear
from groundup.model.moe import MoE, MoEConfig
from groundup.model.multi_token import MultiTokenConfig, acceptance_rate, draft
from groundup.model.norm import LayerNorm, RMSNorm
from groundup.model.position import Layout, LearnedPositions, Rope, SinusoidalPositions
from groundup.model.router import ExpertChoiceRouter, HashRouter, TopKRouter
from groundup.model.transformer import ModelConfig, Transformer
from groundup.model.upcycle import upcycle

__all__ = [
    "MLP", "PLACEMENTS", "Attention", "AttentionConfig", "Balance", "Block", "BlockConfig", "Cache",
    "CountingCache", "DenseCache", "Embedding", "ExpertChoiceRouter", "HashRouter", "LayerNorm", "Layout",
    "LearnedPositions", "Linear", "MLPConfig", "MoE", "MoEConfig", "ModelConfig", "MultiTokenConfig",
    "NoCache", "PagePool", "PagedCache", "RMSNorm", "Rope", "SinusoidalPositions", "TopKRouter", "Transformer",
    "acceptance_rate", "draft", "group_kv_heads", "upcycle",
]  # fmt: skip
