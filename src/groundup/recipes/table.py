"""The recipes themselves: numbers, and where the public result is that each is to reproduce."""

from groundup.config import nearest
from groundup.presets import llama, qwen3
from groundup.recipes.recipe import Recipe

_SHAKESPEARE = "tinyshakespeare, input.txt of 1,115,394 characters (github.com/karpathy/char-rnn)"
_STORIES = "TinyStories, V2-GPT4 train and valid .txt (Eldan & Li 2023, arXiv:2305.07759)"
_WEB = "OpenWebText, a sample for training and one for validation (Gokaslan & Cohen 2019)"

_STORIES_17M = llama(
    vocab_size=10_000, num_layers=4, d_model=512, num_heads=16, d_ff=1344, context_length=256, qk_norm=True
)

RECIPES = {
    "tinyshakespeare-cpu": Recipe(
        summary="three minutes on two CPU cores, character by character",
        text=_SHAKESPEARE,
        goal="nanoGPT's README: 1.88 after about three minutes on a laptop's CPU",
        target=1.60,
        measured="1.450, the median of three seeds (1.448 to 1.461), on two cores of an AMD EPYC (Zen 5)",
        model=qwen3(
            vocab_size=257, num_layers=4, d_model=192, num_heads=3, context_length=256, tie_embeddings=False,
            rope_theta=10_000.0,
        ),
        batch_size=16, tail=0.1, minutes=3.0, clock="everything",
        muon_rate=0.02, adam_rate=0.006, curve_points=0,
    ),
    "tinyshakespeare-gpu": Recipe(
        summary="a model of 10 M parameters, character by character, on one GPU",
        text=_SHAKESPEARE,
        goal="nanoGPT's README: 1.4697 after about three minutes on one A100",
        target=1.4697,
        model=qwen3(
            vocab_size=257, num_layers=6, d_model=384, num_heads=6, context_length=256, tie_embeddings=False,
            rope_theta=10_000.0,
        ),
        batch_size=64, tail=0.1, tokens=2500 * 64 * 256,
        muon_rate=0.02, adam_rate=0.004, weight_decay=0.1, warmup=100, dropout=0.25, curve_points=10,
    ),
    "tinystories-gpu": Recipe(
        summary="17 M parameters beside the embedding, 328 M tokens, on one GPU",
        text=_STORIES,
        goal="CS336 (Stanford), assignment 1: a validation loss of at most 1.45 on one H100",
        target=1.45,
        model=_STORIES_17M,
        batch_size=128, tokens=327_680_000,
        muon_rate=0.02, adam_rate=0.004, warmup=200,
    ),
    "tinystories-cpu": Recipe(
        summary="the same model, 40 M tokens, on a CPU or an Apple GPU",
        text=_STORIES,
        goal="CS336 (Stanford), assignment 1: a validation loss of at most 2.00 with 40 M tokens",
        target=2.00,
        model=_STORIES_17M,
        batch_size=32, tokens=40_960_000,
        muon_rate=0.02, adam_rate=0.006, warmup=50,
    ),
    "openwebtext-90m": Recipe(
        summary="the lowest loss in 90 minutes on one H100",
        text=_WEB,
        goal="CS336 (Stanford), leaderboard of assignment 1: the lowest validation loss in 90 minutes",
        target=3.0,
        model=qwen3(
            vocab_size=32_000, num_layers=12, d_model=768, num_heads=6, d_head=128, context_length=512,
            rope_theta=10_000.0, tie_embeddings=False,
        ),
        batch_size=256, minutes=90.0,
        muon_rate=0.02, adam_rate=0.004, warmup=200,
    ),
}  # fmt: skip


def find(name: str) -> Recipe:
    """The recipe of this name. ValueError with the nearest name for any other.

    >>> find("tinystories-cpu").steps
    5000
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown{nearest(name, RECIPES)}; `groundup recipe` lists them all")
    return RECIPES[name]
