"""Faults put into a run: each is seen at its step, named, and leaves nothing behind."""

import json
import math

import pytest
import torch
from torch import nn

from groundup.model.transformer import Transformer
from groundup.optim import AdamW, warmup_stable_decay
from groundup.train import Guard, Loss, next_token, train
from groundup.train.diagnosis import Case, examine
from groundup.train.ranks import texts_of_ranks
from groundup.train.step import StepValues
from tests.distributed import run_ranks
from tests.train.small import Batches, batch, same_weights, tiny_model, tiny_run
from tests.train.test_experts import sparse_model

BAD = 6
LATE = 50


class OnlyBackward(torch.autograd.Function):
    """The identity, whose gradient of row 2 is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[2 % len(grad)] = math.inf
        return grad


def infinite(x):
    x = x.clone()
    x[1, 3] = math.inf
    return x


def strike_on_batch(model, path, change, number=BAD):
    """The module's output is changed while this batch, or a part of it, is read."""
    rows = batch(number)["tokens"][:, :-1]
    seen = {"bad": False}

    def look(module, args):
        seen["bad"] = any(torch.equal(args[0], rows[i : i + len(args[0])]) for i in range(len(rows)))

    model.embed.register_forward_pre_hook(look)
    model.get_submodule(path).register_forward_hook(lambda m, a, out: change(out) if seen["bad"] else None)


def diagnoses(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "flight").iterdir())]


def struck_run(folder, path, change, *, model=None, steps=10, **options):
    model = tiny_model() if model is None else model
    strike_on_batch(model, path, change)
    _, _, run = tiny_run(steps, model=model, run_dir=folder, **options)
    (dump,) = diagnoses(folder)
    clean, _, _ = tiny_run(steps, source=Batches(left_out=[BAD]), model=clean_twin(model), **options)
    return model, clean, run, dump


def clean_twin(model):
    twin = Transformer(model.config)
    twin.init_weights(0)
    twin.recompute, twin.dropout = model.recompute, model.dropout
    return twin


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize(
    ("path", "change", "kind", "where", "row"),
    [
        ("blocks.1", infinite, "activation", "blocks.1", 1),
        ("blocks.0.mixer.wo", infinite, "activation", "blocks.0.mixer.wo", 1),
        ("final_norm", infinite, "activation", "final_norm", 1),
        ("blocks.1.ffn.down", OnlyBackward.apply, "gradient", "blocks.1.ffn.down", 2),
        ("blocks.0.ffn", OnlyBackward.apply, "gradient", "blocks.0.ffn", 2),
        ("embed", OnlyBackward.apply, "gradient", "embed", 2),
    ],
)
def test_the_module_is_named_and_the_run_goes_on_as_without_the_batch(
    tmp_path, lookahead, path, change, kind, where, row
):
    model, clean, run, dump = struck_run(tmp_path, path, change, lookahead=lookahead)
    found = dump["diagnosis"]
    assert dump["step"] == BAD + 1 and dump["event"] == "skip" and run.skipped == 1
    assert (found["kind"], found["where"]) == (kind, where)
    assert where in found["text"] and found["rows"] in ([[0, row]], [])
    assert same_weights(model, clean)
    assert [record["step"] for record in dump["records"]] == list(range(1, BAD + 1))


def test_size_type_and_rows_of_an_overflow(tmp_path):
    *_, dump = struck_run(tmp_path, "blocks.0.ffn.up", infinite)
    text = dump["diagnosis"]["text"]
    assert dump["diagnosis"]["rows"] == [[0, 1]]
    assert "32 infinite of 1,024 numbers in float32, from inputs of at most" in text and "row 1;" in text


@pytest.mark.parametrize("change", [infinite, OnlyBackward.apply])
@pytest.mark.parametrize("way", ["compiled", "micro", "recomputed", "dropout"])
def test_however_a_step_is_run_its_fault_is_named(tmp_path, way, change):
    model = tiny_model()
    if way == "compiled":
        for block in model.blocks:
            block.compile(backend="eager")
        model.compiled = False  # the loss is not at issue, and would ask for a C++ compiler
    model.recompute = way == "recomputed"
    model.dropout = 0.1 if way == "dropout" else 0.0
    torch.manual_seed(0)
    strike_on_batch(model, "blocks.1.ffn" if way != "compiled" else "final_norm", change)
    options = {"micro_batches": 2} if way == "micro" else {}
    tiny_run(10, model=model, run_dir=tmp_path, **options)
    dumps = diagnoses(tmp_path)
    assert dumps[0]["step"] == BAD + 1
    assert dumps[0]["diagnosis"]["where"] == ("final_norm" if way == "compiled" else "blocks.1.ffn")
    if way == "micro" and change is infinite:
        assert dumps[0]["diagnosis"]["rows"] == [[0, 1]]  # both parts are struck; the first comes first


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_rows_are_those_of_the_whole_batch(parts):
    model, bad, seen = tiny_model(), batch(2)["tokens"][3, :-1], {}
    model.embed.register_forward_pre_hook(lambda m, a: seen.update(rows=(a[0] == bad).all(1)))
    model.blocks[0].register_forward_hook(lambda m, a, out: out.masked_fill(seen["rows"][:, None, None], math.inf))
    found = examine(Case(model, next_token, [batch(0), batch(2)], parts, values(math.nan)))
    assert found.where == "blocks.0" and found.rows == [(1, 3)] and "row 3 of batch 1" in found.text


def test_a_module_inside_of_a_compiled_block_is_named(tmp_path):
    """Hooks are called in there only while it runs as it is written."""
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].ffn.down.weight.mul_(1e30)
        model.blocks[1].ffn.up.weight.mul_(1e30)
    for block in model.blocks:
        block.compile(backend="eager")
    next_token(model, batch(0))  # compiled before there are hooks, as in a run
    found = examine(Case(model, next_token, [batch(0)], 1, values(math.nan)))
    assert (found.kind, found.where) == ("activation", "blocks.1.ffn.down")
    assert all(block._compiled_call_impl is not None for block in model.blocks)


def values(loss, norm=1.0, weight=32.0):
    return StepValues(loss, norm, weight, 0.0, 0.0, {})


def test_an_overflow_in_half_precision_is_named_with_its_type():
    model = tiny_model()
    with torch.no_grad():
        model.blocks[0].ffn.up.weight.mul_(1e4)
        model.blocks[0].ffn.gate.weight.mul_(1e4)
    model.compute_dtype = torch.float16
    found = examine(Case(model, next_token, [batch(0)], 1, values(math.nan)))
    assert found.kind == "activation" and found.where.startswith("blocks.0.ffn") and "float16" in found.text


@pytest.mark.parametrize("parts", [1, 2])
def test_a_mixtures_experts_are_named(parts):
    model = sparse_model()
    with torch.no_grad():
        for p in model.blocks[1].ffn.experts.parameters():
            p[2].mul_(1e20)
    found = examine(Case(model, next_token, [batch(0)], parts, values(math.nan)))
    assert found.kind == "activation" and found.where.startswith("blocks.1.ffn.experts")
    with torch.no_grad():
        next(model.blocks[1].ffn.experts.parameters())[2, 0, 0] = math.inf
    found = examine(Case(model, next_token, [batch(0)], parts, values(math.nan)))
    assert found.kind == "weight" and "first at (2, 0, 0)" in found.text


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_weight_written_over_is_named_and_restored(tmp_path, lookahead):
    struck = []

    def strike(step, model, run):
        if step == 8 and not struck:
            struck.append(step)
            with torch.no_grad():
                model.blocks[0].mixer.wq.weight[3, 5] = math.nan

    model, _, run = tiny_run(12, every={1: strike}, run_dir=tmp_path, checkpoint_every=5, lookahead=lookahead)
    clean, _, _ = tiny_run(12)
    (dump,) = diagnoses(tmp_path)
    found = dump["diagnosis"]
    assert (found["kind"], found["where"]) == ("weight", "blocks.0.mixer.wq.weight")
    assert "1 of 256 numbers, first at (3, 5)" in found["text"]
    assert dump["step"] == 9 and dump["event"] == "rewind" and run.skipped == 1 and same_weights(model, clean)


def spike(folder, changed, **options):
    """Late enough for losses to be even; a run with the batch and one without."""
    hurt, _, run = tiny_run(
        54, source=Batches(changed={LATE: changed}), run_dir=folder, guard=Guard(window=20), **options
    )  # fmt: skip
    clean, _, _ = tiny_run(54, source=Batches(left_out=[LATE]), guard=Guard(window=20))
    assert run.skipped == 1 and same_weights(hurt, clean)
    (dump,) = diagnoses(folder)
    assert dump["step"] == LATE + 1
    return dump["diagnosis"]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_one_row_of_one_token_is_found(tmp_path, lookahead):
    tokens = batch(LATE)["tokens"].clone()
    tokens[3] = 17
    found = spike(tmp_path, {"tokens": tokens}, lookahead=lookahead)
    assert found["kind"] == "data" and found["rows"] == [[0, 3]]
    assert "row 3: loss" in found["text"] and "100 % one token (id 17)" in found["text"]


def test_a_batch_of_garbage_is_found(tmp_path):
    tokens = torch.randint(0, 31, (4, 9), generator=torch.Generator().manual_seed(5))
    found = spike(tmp_path, {"tokens": tokens})
    assert found["kind"] == "data" and sorted(row for _, row in found["rows"]) == [0, 1, 2, 3]
    assert "all 4 rows are above the" in found["text"] and "different tokens among 9" in found["text"]


def test_a_poisoned_row_of_the_data_is_found_before_the_model_is_asked(tmp_path):
    mask = torch.ones(4, 9)
    mask[2, 5] = math.nan
    hurt, _, run = tiny_run(8, source=Batches(changed={4: {"mask": mask}}), run_dir=tmp_path)
    clean, _, _ = tiny_run(8, source=Batches(left_out=[4]))
    (dump,) = diagnoses(tmp_path)
    assert dump["step"] == 5 and run.skipped == 1 and same_weights(hurt, clean)
    assert dump["diagnosis"]["kind"] == "data" and dump["diagnosis"]["where"] == "mask"
    assert dump["diagnosis"]["rows"] == [[0, 2]]


def test_a_masked_batch_is_named(tmp_path):
    tiny_run(6, source=Batches(changed={2: {"mask": torch.zeros(4, 9)}}), run_dir=tmp_path)
    (dump,) = diagnoses(tmp_path)
    assert dump["step"] == 3 and dump["diagnosis"]["kind"] == "masked"
    assert "everything is masked" in dump["diagnosis"]["text"]


def test_weights_that_got_worse_are_told_from_bad_data(tmp_path):
    def strike(step, model, run):
        if step == LATE:
            with torch.no_grad():
                model.blocks[1].ffn.down.weight.mul_(40)

    tiny_run(52, every={1: strike}, run_dir=tmp_path, guard=Guard(window=20))
    dump = diagnoses(tmp_path)[0]
    assert dump["step"] == LATE + 1
    assert (dump["diagnosis"]["kind"], dump["diagnosis"]["where"]) == ("dynamics", "blocks.1")
    assert "the weights are at fault, not this batch; weight norm of blocks.1 is" in dump["diagnosis"]["text"]


def test_what_does_not_happen_again_is_said_not_to():
    found = examine(Case(tiny_model(), next_token, [batch(0)], 1, values(math.nan, math.nan)))
    assert found.kind == "unknown" and "finite numbers when it is run again" in found.text


def test_a_norm_beyond_the_largest_number_is_no_riddle():
    model = tiny_model()

    def steep(model, b):
        loss = next_token(model, b)
        return Loss(loss.total + 1e30 * model.blocks[0].ffn.up.weight.sum(), loss.weight)

    found = examine(Case(model, steep, [batch(0)], 1, values(1.0, math.inf)))
    assert found.kind == "gradient" and found.where == "blocks.0.ffn.up.weight"
    assert "all gradients are finite, and their norm is not" in found.text


def test_a_loss_that_breaks_behind_the_model_is_called_that():
    model = tiny_model()
    with torch.no_grad():
        model.head.weight[7] = 3e38
    found = examine(Case(model, next_token, [batch(0)], 1, values(math.nan)))
    assert (found.kind, found.where) == ("loss", "the loss")


def test_a_gradient_that_breaks_in_the_loss_is_called_that():
    def hurt(model, b):
        hidden = OnlyBackward.apply(model.hidden(b["tokens"][:, :-1]))
        logits = model.logits(hidden)
        total = nn.functional.cross_entropy(logits.flatten(0, 1), b["tokens"][:, 1:].flatten(), reduction="sum")
        return Loss(total, torch.tensor(32.0))

    found = examine(Case(tiny_model(), hurt, [batch(0)], 1, values(1.0, math.nan)))
    assert (found.kind, found.where, found.rows) == ("gradient", "the loss", [(0, 2)])


def test_a_diagnosis_that_fails_says_so_and_training_goes_on(tmp_path):
    calls = []

    def fickle(model, b):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("not twice")
        loss = next_token(model, b)
        return Loss(loss.total * (math.nan if len(calls) == 4 else 1.0), loss.weight)

    model = tiny_model()
    run = train(model, Batches(), fickle, AdamW(model, lr=1e-2), 6, run_dir=tmp_path, progress=False)
    assert run.skipped == 1 and run.step == 6
    (dump,) = diagnoses(tmp_path)
    assert "could not be told (RuntimeError: not twice)" in dump["diagnosis"]["text"]


# ---- ranks ----


def only_rank_one(rank, size, kind, folder):
    model = tiny_model()
    mine = [{k: v.tensor_split(size)[rank] for k, v in batch(i).items()} for i in range(60)]
    struck, every = [], {}
    if kind == "data" and rank == 1:
        mine[LATE] = {"tokens": torch.full_like(mine[LATE]["tokens"], 17)}
    if kind == "activation" and rank == 1:
        rows = mine[LATE]["tokens"][:, :-1]
        seen = {"bad": False}
        model.embed.register_forward_pre_hook(lambda m, a: seen.update(bad=torch.equal(a[0], rows)))
        model.blocks[1].register_forward_hook(lambda m, a, out: torch.full_like(out, math.inf) if seen["bad"] else None)
    if kind == "weight" and rank == 1:

        def strike(step, model, run):
            if not struck:
                struck.append(step)
                model.blocks[0].ffn.up.weight.data[0, 0] = math.nan

        every = {LATE: strike}
    run = train(
        model, mine, next_token, AdamW(model, lr=1e-2), 54, guard=Guard(window=20), every=every,
        schedule=warmup_stable_decay(3, 40), run_dir=folder, checkpoint_every=45, progress=False, log_every=1,
    )  # fmt: skip
    return run.skipped, run.step, list(model.state_dict().values())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("data", "rank 1: all weights are finite; all 2 rows are above"),
        ("activation", "rank 1: the first output that is not finite is of blocks.1:"),
        ("weight", "rank 1: the first weight that is not finite is blocks.0.ffn.up.weight"),
    ],
)
def test_ranks_agree_and_the_one_at_fault_is_named(kind, words, tmp_path):
    one, two = run_ranks(only_rank_one, 2, kind, str(tmp_path))
    assert one[:2] == two[:2] == (1, 54)
    assert all(torch.equal(a, b) for a, b in zip(one[2], two[2], strict=True))
    events = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    event = next(event for event in events if event["event"] != "slow rank")  # as a busy machine may have one
    assert event["step"] == LATE + 1 and words in event["text"] and "rank 0" not in event["text"]
    assert event["event"] == ("rewind" if kind == "weight" else "skip")


def texts(rank, size):
    return texts_of_ranks("é" * rank, torch.device("cpu"))


def test_texts_of_ranks():
    assert run_ranks(texts, 3) == [["", "é", "éé"]] * 3
    assert texts_of_ranks("alone", torch.device("cpu")) == ["alone"]
