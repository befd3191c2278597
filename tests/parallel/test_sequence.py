from typing import Any

import pytest
import torch
from torch import nn

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.model.balance import Balance
from groundup.model.cross_attention import CrossAttentionConfig
from groundup.model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from groundup.model.latent import LatentAttentionConfig
from groundup.model.linear_attention import GatedLinearConfig
from groundup.model.moe import MoEConfig
from groundup.model.position import LearnedPositions
from groundup.parallel.sequence import join_sequence, sequence_parallel, split_sequence
from groundup.parallel.tensor import full_parameters, tensor_parallel
from groundup.train.objectives import next_token
from tests.distributed import run_ranks
from tests.parallel.counting import counting
from tests.thorough import times

STEPS = times(50)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
GROUPED = AttentionConfig(4, 4, 4, qk_norm=True)
PLAIN = MLPConfig(16, gated=False, activation="gelu", bias=True)

BLOCKS: dict[str, tuple[BlockConfig, ...]] = {
    "grouped heads, GLU": (BlockConfig(AttentionConfig(8, 4, 2, window=5), MLPConfig(16)),),
    "one kv head": (BlockConfig(AttentionConfig(4, 1, 4, qk_norm=True), MLPConfig(16)),),
    "post-norm, biases": (BlockConfig(AttentionConfig(4, 4, 4, bias=True, out_bias=True), PLAIN, "layer", "post"),),
    "sandwich": (BlockConfig(GROUPED, MLPConfig(16), placement="sandwich"),),
    "parallel": (BlockConfig(GROUPED, PLAIN, "layer", "parallel"),),
    "latent": (BlockConfig(LatentAttentionConfig(4, 6, 4, 2, 4, q_rank=6), MLPConfig(16)),),
    "sinks, slopes": (BlockConfig(AttentionConfig(4, 4, 4, rope=None, sinks=True, alibi=True), MLPConfig(16)),),
    # Branches that are given whole sequences.
    "norm over all heads": (BlockConfig(AttentionConfig(4, 2, 4, qk_norm="whole"), MLPConfig(16), placement="inner"),),
    "recurrence": (BlockConfig(GatedLinearConfig(2, 4, 4), MLPConfig(16)), BlockConfig(GROUPED, MLPConfig(16))),
    "experts": (BlockConfig(GROUPED, MoEConfig(4, 2, 8, num_shared=1, balance=Balance(0.02, 0.01, 0.001))),),
}


def filled(model: Any, dtype: torch.dtype) -> Any:
    """Norms and biases too, so that their gradients matter."""
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator) * 0.1
    model.compute_dtype = dtype
    return model.to(dtype)


def model_of(name: str, dtype: torch.dtype) -> Any:
    learned = {"positions": LearnedPositions(16), "tie_embeddings": True, "norm_bias": True}
    options: dict[str, Any] = learned if name == "post-norm, biases" else {}
    return filled(Transformer(ModelConfig(19, 8, 2, BLOCKS[name], **options)), dtype)


def batch() -> dict[str, torch.Tensor]:
    """Packed documents, and padding at the end."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 19, (2, 13), generator=generator)
    positions, mask = torch.arange(13).repeat(2, 1), torch.ones(2, 13)
    positions[1, 10:], mask[1, 10:] = -1, 0.0
    return {"tokens": tokens, "positions": positions, "mask": mask, "segments": (torch.arange(13) // 5).repeat(2, 1)}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp(min=1e-3)).item()


def run(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, loss); parameters get their gradients."""
    given = batch()
    loss = next_token(model, given)
    loss.total.backward()
    with torch.no_grad():
        return model(given["tokens"][:, :-1], given["positions"][:, :-1], None, given["segments"][:, :-1]), loss.total


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


def one_process(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = model_of(name, dtype)
    logits, loss = run(model)
    gradients = {path: p.grad for path, p in model.named_parameters()}
    return {"logits": logits, "loss": loss, "gradient": flat(gradients)} | gradients


def compare_models(rank, size):
    """By name, the relative difference from one process in float64, and how much is allowed.

    In float32 that is 1e-6, or twice what rounding does to one process, and only the gradient as a whole is judged.
    """
    found = {}
    for name in BLOCKS:
        exact = one_process(name, torch.float64)
        for dtype, least in TOLERANCE.items():
            cut = sequence_parallel(model_of(name, dtype))
            cut.recompute = name == "sandwich"
            logits, loss = run(cut)
            gradients = dict(full_parameters(cut, value=lambda p: p.grad))
            own = {"logits": logits, "loss": loss, "gradient": flat(gradients)} | gradients
            assert own.keys() == exact.keys()
            rounded = one_process(name, dtype)
            judged = exact if dtype == torch.float64 else ("logits", "loss", "gradient")
            found[name, dtype] = {
                what: (difference(own[what], exact[what]), max(least, 2 * difference(rounded[what], exact[what])))
                for what in judged
            }
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_logits_and_gradients_equal_one_process(size):
    for rank in run_ranks(compare_models, size):
        for key, errors in rank.items():
            assert all(error < allowed for error, allowed in errors.values()), (key, errors)


def compare_encoder_decoder(rank, size):
    def build() -> Any:
        sides = [
            ModelConfig(19, 8, 2, (BlockConfig(attention, MLPConfig(16), cross=cross),))
            for attention, cross in (
                (AttentionConfig(4, 4, 4, causal=False), None),
                (AttentionConfig(4, 4, 4), CrossAttentionConfig(4, 4, 4)),
            )
        ]
        return filled(EncoderDecoder(EncoderDecoderConfig(*sides)), torch.float64)

    tokens = batch()["tokens"]
    models = [build(), sequence_parallel(build())]
    expected, found = (model(tokens[:, :8], tokens[:, 4:12]) for model in models)
    expected.sin().sum().backward()
    found.sin().sum().backward()
    errors = [difference(found, expected)]
    for path, gradient in full_parameters(models[1], value=lambda p: p.grad):
        errors.append(difference(gradient, models[0].get_parameter(path).grad))
    return max(errors)


def test_an_encoder_and_its_decoder_are_two_streams():
    assert max(run_ranks(compare_encoder_decoder, 2)) < 1e-12


def count_bytes(rank, size):
    """(bytes sent forward, bytes sent backward) of a step, by sequence and by tensor."""
    results = []
    for apply in (sequence_parallel, tensor_parallel):
        model = apply(model_of("grouped heads, GLU", torch.float32))
        with counting() as forward:
            hidden = model.hidden(torch.zeros(3, 12, dtype=torch.long))
        with counting() as backward:
            hidden.sum().backward()
        results.append((forward, backward))
    return results


@pytest.mark.parametrize("size", [2, 4])
def test_volume_is_what_the_formula_says_and_no_more_than_tensor_parallelism(size):
    share = (size - 1) * (3 * 12 * 8 * 4) // size
    branches = 2 * 2
    norms = branches * (2 * (size - 1) * 8 * 4 // size)
    for sequence, tensor in run_ranks(count_bytes, size):
        # A gather and a scatter in each branch, and once at the ends of the stream.
        assert sequence[0] == {"all_gather": (branches + 1) * share, "reduce_scatter": branches * share}
        assert sequence[1] == {
            "all_gather": (branches + 1) * share, "reduce_scatter": branches * share, "all_reduce": norms,
        }  # fmt: skip
        assert tensor == ({"all_reduce": 2 * branches * share}, {"all_reduce": 2 * branches * share})


def kept_and_refused(rank, size):
    model = model_of("grouped heads, GLU", torch.float32)
    names = {name: p.detach().clone() for name, p in model.named_parameters()}
    shapes = []
    model.blocks[1].mixer_norm.register_forward_hook(lambda _, inputs, y: shapes.append(tuple(y.shape)))
    model.blocks[1].mixer.wq.register_forward_hook(lambda _, inputs, y: shapes.append(tuple(y.shape)))
    sequence_parallel(model)
    assert list(dict(model.named_parameters())) == list(names)
    assert all(torch.equal(p, names[name]) for name, p in full_parameters(model))
    whole = torch.arange(12.0).view(1, 6, 2)
    assert torch.equal(split_sequence(whole), whole[:, 3 * rank : 3 * rank + 3])
    assert torch.equal(join_sequence(split_sequence(whole)), whole)
    model(torch.zeros(3, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"7 tokens cannot be divided over 2 ranks; pad to 8"):
        model(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="this Linear declares no `stream`"):
        sequence_parallel(nn.Linear(2, 2))
    return shapes


def test_norms_see_part_of_the_tokens_and_heads_all_of_them():
    assert run_ranks(kept_and_refused, 2) == [[(3, 3, 8), (3, 6, 8)]] * 2


def train_both(rank, size, dtype):
    def losses(model) -> list[float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        values = []
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            starts = torch.randint(0, 19, (3, 1), generator=generator)
            optimizer.zero_grad()
            loss = next_token(model, {"tokens": (starts + torch.arange(9)) % 19})
            (loss.total / loss.weight).backward()
            optimizer.step()
            values.append((loss.total / loss.weight).item())
        return values

    def build() -> Transformer:
        model = Transformer(ModelConfig(19, 8, 2, BLOCKS["grouped heads, GLU"])).to(dtype)
        model.compute_dtype = dtype
        return model

    return losses(sequence_parallel(build())), None if rank else losses(build())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [2])
def test_many_steps_equal_one_process(size, dtype):
    (found, expected), *others = run_ranks(train_both, size, dtype, timeout=600)
    assert all(other == found for other, _ in others)
    assert expected[-1] < (0.8 if STEPS >= 200 else 1.0) * expected[0]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < TOLERANCE[dtype]
