"""Architectures: slots filled from a config. Pure single-device code that runs anywhere, meta included."""

from groundup.model.attention import Attention, AttentionConfig
from groundup.model.balance import Balance
from groundup.model.block import PLACEMENTS, Block, BlockConfig
from groundup.model.cache import Cache, CountingCache, DenseCache, NoCache, PagedCache, PagePool
from groundup.model.cross_attention import CrossAttention, CrossAttentionConfig, Memory
from groundup.model.delta import GatedDelta, GatedDeltaConfig
from groundup.model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from groundup.model.feedforward import MLP, MLPConfig
from groundup.model.grouping import group_kv_heads
from groundup.model.hard_choice import ReinforceRouter, StraightThroughRouter
from groundup.model.latent import LatentAttention, LatentAttentionConfig
from groundup.model.linear import Embedding, Linear
from groundup.model.linear_attention import GatedLinear, GatedLinearConfig
from groundup.model.lora import LoRAConfig, LoRALinear, add_lora
from groundup.model.lstm import LSTM, LSTMConfig
from groundup.model.mamba import Mamba2, Mamba2Config
from groundup.model.moe import MoE, MoEConfig
from groundup.model.multi_token import MultiTokenConfig, acceptance_rate, draft
from groundup.model.neural_ngram import NeuralNgram, NeuralNgramConfig
from groundup.model.norm import LayerNorm, RMSNorm
from groundup.model.position import Layout, LearnedPositions, Rope, SinusoidalPositions
from groundup.model.router import ExpertChoiceRouter, HashRouter, TopKRouter
from groundup.model.transformer import ModelConfig, Transformer
from groundup.model.upcycle import upcycle
from groundup.model.window_cache import WindowCache

__all__ = [
    "Attention", "AttentionConfig", "Balance", "Block", "BlockConfig", "Cache", "CountingCache", "CrossAttention",
    "CrossAttentionConfig", "DenseCache", "Embedding", "EncoderDecoder", "EncoderDecoderConfig", "ExpertChoiceRouter",
    "GatedDelta", "GatedDeltaConfig", "GatedLinear", "GatedLinearConfig", "HashRouter", "LSTM", "LSTMConfig",
    "LatentAttention", "LatentAttentionConfig", "LayerNorm", "Layout", "LearnedPositions", "Linear", "LoRAConfig",
    "LoRALinear", "MLP", "MLPConfig", "Mamba2", "Mamba2Config", "Memory", "MoE", "MoEConfig", "ModelConfig",
    "MultiTokenConfig", "NeuralNgram", "NeuralNgramConfig", "NoCache", "PLACEMENTS", "PagePool", "PagedCache",
    "RMSNorm", "ReinforceRouter", "Rope", "SinusoidalPositions", "StraightThroughRouter", "TopKRouter", "Transformer",
    "WindowCache", "acceptance_rate", "add_lora", "draft", "group_kv_heads", "upcycle",
]  # fmt: skip
