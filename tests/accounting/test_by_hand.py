"""The resource accounting of the lectures, every figure worked as arithmetic that a reader can follow with a pencil.

Stanford CS336 2025, lecture 2 ("PyTorch, resource accounting") and lecture 10 ("inference"). Where the room has a
function for a formula, it has to give what the pencil gives; where torch has an opinion, so does torch.

B rows (a batch), D width, L layers, N parameters, S queries, T keys. A multiply and an add are two FLOPs.
"""

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from groundup import presets
from groundup.accounting import (
    attention_intensity,
    beside_six_nd,
    count_parameters,
    decode_intensity,
    forward_flops,
    kv_cache_bytes_per_token,
    largest_model,
    step_work,
    training_days,
    training_flops_per_token,
    training_ledger,
)
from groundup.accounting.devices import DEVICES
from groundup.accounting.utilization import mfu as mfu_of
from groundup.optim import AdamW


def counted(work) -> int:
    """FLOPs of matrix products by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# One matrix product ----------------------------------------------------------------------------------------------


def test_a_product_is_two_b_d_k():
    """Y[i, k] = sum over j of X[i, j] W[j, k]: B K sums, each of D products and D additions."""
    b, d, k = 3, 4, 5
    x, w = torch.randn(b, d), torch.randn(d, k)
    y, operations = torch.zeros(b, k), 0
    for i in range(b):
        for column in range(k):
            for j in range(d):
                y[i, column] += x[i, j] * w[j, column]
                operations += 2
    assert torch.allclose(y, x @ w, atol=1e-6)
    assert operations == 2 * 3 * 4 * 5 == 120 == counted(lambda: x @ w)


def test_a_layer_is_two_forward_and_four_backward_per_parameter_and_row():
    """dW = X^T dY is D x B times B x K, dX = dY W^T is B x K times K x D: as many products as forward, each."""
    b, d, k = 3, 4, 5
    x, w = torch.randn(b, d, requires_grad=True), torch.randn(d, k, requires_grad=True)
    n = 4 * 5
    assert counted(lambda: x @ w) == 2 * n * 3 == 120
    y = x @ w
    assert counted(lambda: y.sum().backward()) == 4 * n * 3 == 240


# The "Cruncher": a deep linear model -----------------------------------------------------------------------------


class Cruncher(nn.Module):
    """L layers of D x D and a head of D x 1, without biases or anything between them; keeps what each layer makes."""

    def __init__(self, d: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(d, d) / d**0.5) for _ in range(layers)])
        self.head = nn.Parameter(torch.randn(d, 1) / d**0.5)
        self.made: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.made = []
        for weight in self.layers:
            x = x @ weight
            self.made.append(x)
        return x @ self.head


def squared_error(model: Cruncher, x: Tensor, target: Tensor) -> Tensor:
    return (model(x) - target).square().mean()


def chain_rule(model: Cruncher, x: Tensor, target: Tensor) -> tuple[list[Tensor], Tensor]:
    """Gradients of the layers and of the head, from the last to the first.

    The loss is mean (y - t)^2, so dy = 2 (y - t) / B. Through y = h W: W.grad = h^T dy, and dh = dy W^T goes on.
    """
    y = model(x)
    inputs = [x, *model.made[:-1]]
    d_out = 2 * (y - target) / len(x)
    head_grad = model.made[-1].T @ d_out
    d_hidden = d_out @ model.head.T
    grads = []
    for weight, h in zip(reversed(model.layers), reversed(inputs), strict=True):
        grads.insert(0, h.T @ d_hidden)
        d_hidden = d_hidden @ weight.T
    return grads, head_grad


@pytest.mark.parametrize("batch", [1, 6])
def test_the_chain_rule_by_hand_equals_autograd(batch):
    model, x, target = Cruncher(4, 3).double(), torch.randn(batch, 4).double(), torch.randn(batch, 1).double()
    squared_error(model, x, target).backward()
    with torch.no_grad():
        grads, head_grad = chain_rule(model, x, target)
    assert all(torch.allclose(p.grad, g) for p, g in zip(model.layers, grads, strict=True))
    assert torch.allclose(model.head.grad, head_grad)


def test_a_batch_of_one_is_classic_backpropagation():
    """w_ij changes by (what neuron i sends) x (the error of neuron j): an outer product."""
    model, x, target = Cruncher(3, 2).double(), torch.randn(1, 3).double(), torch.randn(1, 1).double()
    y = model(x)
    (y - target).square().mean().backward()
    error_out = 2 * (y - target).item()
    error_2 = [error_out * model.head[j].item() for j in range(3)]
    error_1 = [sum(error_2[k] * model.layers[1][j, k].item() for k in range(3)) for j in range(3)]
    for i in range(3):
        for j in range(3):
            assert model.layers[1].grad[i, j].item() == pytest.approx(model.made[0][0, i].item() * error_2[j])
            assert model.layers[0].grad[i, j].item() == pytest.approx(x[0, i].item() * error_1[j])


def test_the_crunchers_backward_pass_is_two_forward_ones_less_the_gradient_of_its_data():
    b, d, layers = 5, 4, 3
    model, x, target = Cruncher(d, layers), torch.randn(b, d), torch.randn(b, 1)
    parameters = 4 * 4 * 3 + 4  # D^2 L + D
    assert sum(p.numel() for p in model.parameters()) == parameters == 52
    forward = 2 * 5 * 52
    first_layers_input = 2 * 5 * 4 * 4  # dX = dY W^T of the first layer, which nobody asks for
    assert counted(lambda: squared_error(model, x, target)) == forward == 520
    loss = squared_error(model, x, target)
    assert counted(loss.backward) == 2 * forward - first_layers_input == 880
    asked = squared_error(model, x.requires_grad_(), target)
    assert counted(asked.backward) == 2 * forward


def test_what_the_crunchers_backward_pass_reads_is_what_autograd_saves():
    """For W.grad the input of each layer, for dX its weight; of the first layer no weight, as its data has no gradient.

    The inputs that the model made itself are B D L numbers: the lecture's count of activations.
    """
    b, d, layers = 5, 4, 3
    model, x, target = Cruncher(d, layers), torch.randn(b, d), torch.randn(b, 1)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        squared_error(model, x, target)
    named = {"x": x, "head": model.head}
    named |= {f"h{i}": h for i, h in enumerate(model.made, 1)} | {f"w{i}": w for i, w in enumerate(model.layers, 1)}
    by_place = {t.data_ptr(): name for name, t in named.items()}
    read = [by_place.get(t.data_ptr(), "error") for t in saved]
    assert sorted(read) == sorted(["x", "h1", "w2", "h2", "w3", "h3", "head", "error"])
    made = sum(t.numel() for t, name in zip(saved, read, strict=True) if name.startswith("h") and name != "head")
    assert made == b * d * layers == 60


@pytest.mark.parametrize(("make", "values"), [
    (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 1),
    (lambda p: torch.optim.Adagrad(p, 0.1), 1),
    (lambda p: AdamW(p, 0.1), 2),
], ids=["momentum", "adagrad", "adamw"])  # fmt: skip
def test_the_crunchers_bytes_are_four_times_parameters_activations_gradients_and_states(make, values):
    b, d, layers = 5, 4, 3
    model = Cruncher(d, layers)
    optimizer = make(model.parameters())
    squared_error(model, torch.randn(b, d), torch.randn(b, 1)).backward()
    optimizer.step()
    shapes = {p: p.shape for p in model.parameters()}
    states = sum(
        t.numel() for p, state in optimizer.state.items() for t in state.values()
        if isinstance(t, Tensor) and t.shape == shapes[p]
    )  # fmt: skip
    parameters = 4 * 4 * 3 + 4
    activations, gradients = 5 * 4 * 3, parameters
    assert sum(h.numel() for h in model.made) == activations
    assert sum(p.grad.numel() for p in model.parameters()) == gradients
    assert states == values * parameters
    total = 4 * (parameters + activations + gradients + states)
    assert total == {1: 4 * (52 + 60 + 52 + 52), 2: 4 * (52 + 60 + 52 + 104)}[values]


# 6ND, and what it leaves out -------------------------------------------------------------------------------------


def test_six_nd_of_a_tiny_transformer_and_each_of_its_exceptions():
    """Width 8, one layer, two heads of 4, d_ff 16, vocabulary 10; two rows of four tokens; the layer recomputed."""
    config = presets.llama(d_model=8, num_layers=1, num_heads=2, d_ff=16, vocab_size=10, context_length=4)
    tokens = 2 * 4
    attention_matrices, feed_forward_matrices, table, head = 4 * 8 * 8, 3 * 8 * 16, 10 * 8, 10 * 8
    gains = 3 * 8  # two norms in the block, one after it
    n = attention_matrices + feed_forward_matrices + table + head + gains
    assert count_parameters(config).total == n == 824

    terms = beside_six_nd(config, seq=4, batch=2, recomputed_layers=1)
    assert terms["6ND"] == 6 * 824 * 8 == 39_552
    # The table is looked up and gains are no matrices: 104 of N's parameters are in no matrix product.
    assert terms["parameters outside of matmuls"] == -6 * (table + gains) * tokens == -4_992
    # Scores and values: two products of 2 x 4 FLOPs per head and visible pair; 1 + 2 + 3 + 4 pairs a row; 3 passes.
    pairs = 2 * (1 + 2 + 3 + 4)
    scores = values = 2 * pairs * 2 * 4
    assert terms["attention"] == 3 * (scores + values) == 1_920

    norms = 3 * 4 * tokens * 8  # square, sum, times root, times gain
    residuals = 2 * tokens * 8
    rotations = 3 * tokens * (8 + 8)  # queries and keys
    softmax = 5 * pairs * 2  # largest, minus, exp, sum, divide
    gates = (4 + 1) * tokens * 16  # SiLU, and the product with up
    elementwise = norms + residuals + rotations + softmax + gates
    assert terms["elementwise"] == 3 * elementwise
    # The block once more, but not its last product, whose result nothing reads again; the last norm is outside.
    block = 2 * tokens * (attention_matrices + feed_forward_matrices) + scores + values + elementwise - 4 * tokens * 8
    assert terms["recomputation"] == block - 2 * tokens * 8 * 16
    assert terms["optimizer"] == 14 * 824
    assert terms.keys() == {"6ND", "parameters outside of matmuls", "attention", "elementwise", "recomputation",
                            "optimizer"}  # fmt: skip


def test_a_tied_head_puts_the_table_back_to_work():
    shape = dict(d_model=8, num_layers=1, num_heads=2, d_ff=16, vocab_size=10, context_length=4)
    tied = beside_six_nd(presets.llama(**shape, tie_embeddings=True), seq=4)
    assert tied["6ND"] == 6 * (824 - 80) * 4 and tied["parameters outside of matmuls"] == -6 * 24 * 4


def test_six_nd_is_off_by_the_context_over_twelve_widths():
    """Attention beside the matrices of a block of 12 D^2: full 4 T D against 24 D^2 a token, so T / (6 D); half as
    much when each token sees half of the others. At 12 D, a causal model of any depth pays as much for either."""
    d, context = 64, 12 * 64
    config = presets.gpt2(d_model=d, num_layers=2, num_heads=4, vocab_size=2, context_length=context)
    rows = training_ledger(config, context, causal=False, optimizer=None)
    attention = sum(row.flops for row in rows if row.kind == "attention")
    matrices = sum(row.flops for row in rows if row.kind == "matmul" and row.name != "head")
    assert Fraction(attention, matrices) == Fraction(context, 6 * d) == 2
    causal = sum(row.flops for row in training_ledger(config, context, optimizer=None) if row.kind == "attention")
    assert Fraction(causal, matrices) == Fraction(context + 1, 12 * d)


# GPT-2 XL --------------------------------------------------------------------------------------------------------


def test_gpt2_xls_shape_with_llamas_block():
    """48 layers of width 1600; SwiGLU of 6400 (three matrices), RMSNorm, a head of its own, no positions, no biases."""
    config = presets.llama(
        d_model=1600, num_layers=48, num_heads=25, num_kv_heads=25, d_ff=6400, vocab_size=50257, context_length=1024
    )
    table = head = 50257 * 1600
    block = 4 * 1600 * 1600 + 3 * 1600 * 6400 + 2 * 1600
    assert (table, block) == (80_411_200, 40_963_200)
    n = table + head + 48 * block + 1600
    assert count_parameters(config).total == n == 2_127_057_600

    projections = 2 * 1024 * 4 * 1600 * 1600
    feed_forward = 2 * 1024 * 3 * 1600 * 6400
    scores = values = 2 * 1024 * 1024 * 1600  # the whole square, as an implementation without skipping does
    head_product = 2 * 1024 * 1600 * 50257
    forward = 48 * (projections + feed_forward + scores + values) + head_product
    assert forward_flops(config, seq=1024, causal=False) == forward == 4_513_336_524_800
    assert round(48 * feed_forward / forward, 3) == 0.669
    assert round(48 * (scores + values) / forward, 3) == 0.071
    assert round(head_product / forward, 3) == 0.036


def test_gpt2_xl_as_it_was_published():
    """The same width and depth, but two matrices of 6400, biases, a table of 1024 positions, and the head tied."""
    block = (4 * 1600 * 1600 + 4 * 1600) + (2 * 1600 * 6400 + 6400 + 1600) + 2 * 2 * 1600
    n = 50257 * 1600 + 1024 * 1600 + 48 * block + 2 * 1600
    assert count_parameters(presets.gpt2("xl")).total == n == 1_557_611_200
    forward = 48 * (2 * 1024 * (4 * 1600 * 1600 + 2 * 1600 * 6400) + 4 * 1024 * 1024 * 1600) + 2 * 1024 * 1600 * 50257
    assert forward_flops(presets.gpt2("xl"), seq=1024, causal=False) == forward == 3_506_703_564_800


# Inference: why decoding waits for memory ------------------------------------------------------------------------


def test_scores_and_values_of_one_head_by_counting():
    """S = 3 queries on T = 5 keys of 4 numbers, 16 bits: read Q, K, V, write Y; the scores stay on the chip."""
    products = 2 * 3 * 5 * 4 + 2 * 3 * 5 * 4
    moved = 2 * (3 * 4 + 5 * 4 + 5 * 4 + 3 * 4)
    assert products == 240 and moved == 128
    assert Fraction(products, moved) == Fraction(3 * 5, 3 + 5)
    assert attention_intensity(3, 5) == 3 * 5 / (3 + 5) == 1.875
    assert attention_intensity(1, 5) == 5 / 6, "one query: below 1, however many keys"


@pytest.mark.parametrize(("kv_heads", "cache"), [(8, Fraction(1)), (2, Fraction(1, 4)), (1, Fraction(1, 8))],
                         ids=["multi-head", "grouped", "multi-query"])  # fmt: skip
def test_the_intensity_of_decoding_with_a_cache(kv_heads, cache):
    """Shazeer 2019: one token for each of b = 16 rows, n = 64 tokens held, d = 32, h = 8 heads, g with keys.

    Arithmetic, up to a constant: b d^2, each row through the projections. Memory: activations b d, matrices d^2, and
    the cache, n vectors of d g / h for each row. Memory over arithmetic is 1/d + n g / (d h) + 1/b, whose largest
    term for MHA is n / d: a context as long as the model is wide means one FLOP per number. g = 1 divides it by h.
    """
    b, n, d, h = 16, 64, 32, 8
    arithmetic = b * d * d
    memory = b * d + b * n * d * kv_heads // h + d * d
    terms = Fraction(1, d) + Fraction(n, d) * cache + Fraction(1, b)
    assert Fraction(memory, arithmetic) == terms
    assert decode_intensity(n, d, b, h, kv_heads) == pytest.approx(float(1 / terms))
    assert decode_intensity(n, d, b, h, kv_heads) == pytest.approx({8: 32 / 67, 2: 32 / 19, 1: 32 / 11}[kv_heads])


def test_what_a_cache_holds():
    """Keys and values, 32 layers, 8 heads of 128 numbers, 2 bytes: 128 KiB a token, 1 GiB at 8,192 tokens."""
    config = presets.published("llama-3-8b")
    assert kv_cache_bytes_per_token(config, torch.bfloat16) == 2 * 32 * 8 * 128 * 2 == 128 * 1024
    assert 8192 * 128 * 1024 == 2**30


# Utilisation -----------------------------------------------------------------------------------------------------


def test_mfu_hfu_and_mbu_of_a_named_speed():
    """A step of 512 tokens in 10 ms on a device of 100 GFLOP/s; decoding at 2 ms a token at 10 GB/s.

    MFU: useful FLOPs over what the device could have done. HFU: all FLOPs that were done, recomputation as well.
    MBU: bytes that one token needs (every weight, every cached key and value) over what the device could have moved.
    """
    config = presets.llama(d_model=64, num_layers=2, num_heads=4, d_ff=192, vocab_size=256, context_length=64)
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 192) + 64 * 256
    per_token = 6 * matrices + 3 * 2 * (4 * 64 * (64 + 1) // 2)  # a token sees (64 + 1) / 2 others on average
    assert per_token == training_flops_per_token(config, 64) == 787_200
    mfu = 512 * 787_200 / 0.010 / 100e9
    assert round(mfu, 3) == 0.403
    assert mfu_of(787_200, 512 / 0.010, 100e9) == pytest.approx(mfu)

    without_down = 2 * (2 * (4 * 64 * 64 + 2 * 64 * 192) + 4 * 64 * (64 + 1) // 2)
    assert training_flops_per_token(config, 64, recomputed_layers=2) == per_token + without_down
    hfu = 512 * (per_token + without_down) / 0.010 / 100e9
    assert hfu > mfu and round(hfu / mfu, 3) == round(1 + without_down / per_token, 3)

    work = step_work(config, "decode", batch=1, seq=64, dtype=torch.float32)
    weights = 4 * matrices
    cache = 4 * 64 * 2 * 2 * 64  # keys and values of 64 numbers, two layers, 64 tokens
    moved = sum(row.bytes_moved for row in work if row.kind == "matmul" or row.name == "attention")
    assert weights + cache < moved < 1.1 * (weights + cache), "the rest is one token's activations"
    mbu = (weights + cache) / 0.002 / 10e9
    assert round(mbu, 4) == 0.0279


# The back of an envelope -----------------------------------------------------------------------------------------


def test_seventy_billion_parameters_on_fifteen_trillion_tokens_take_144_days():
    flops = 6 * 70e9 * 15e12
    assert flops == 6.3e24
    h100 = 1979e12 / 2  # the data sheet's figure is with sparsity
    per_day = 1024 * h100 * 0.5 * 86_400
    assert round(flops / per_day) == 144 == round(training_days(70e9, 15e12, devices=1024))
    assert DEVICES["h100"].peak_flops == h100


def test_eight_cards_of_80_gb_hold_40_billion_parameters():
    parameter, gradient, first_moment, second_moment = 4, 4, 4, 4
    assert 8 * 80e9 / (parameter + gradient + first_moment + second_moment) == 40e9 == largest_model(8)
