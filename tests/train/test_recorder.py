"""The flight recorder: its figures by hand, on the device, and that it changes nothing."""

import json
import math

import pytest
import torch
from torch import nn

from groundup.model import Transformer
from groundup.train import Recorder, next_token, read_flight, read_metrics
from groundup.train.diagnosis import Case, examine
from groundup.train.recorder import SAMPLE, Sheet, _spread, layer_of
from groundup.train.step import StepValues
from tests.train.small import batch, same_weights, tiny_model, tiny_run
from tests.train.test_experts import sparse_model


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)])
        with torch.no_grad():
            self.blocks[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
            self.blocks[1].weight.copy_(torch.tensor([[1.0, -1.0]]))

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


def test_a_sheet_by_hand():
    model = TwoLayers()
    with Sheet(model, 7) as sheet:
        model(torch.tensor([[1.0, 1.0]])).sum().backward()
    norm = torch.tensor(10.0)
    for p in model.parameters():
        p.grad.mul_(0.5 / 10)  # as clipping to 0.5 leaves them
    sheet.take_gradients(norm, 0.5)
    with torch.no_grad():
        model.blocks[1].weight.add_(torch.tensor([[0.0, 0.02]]))
    sheet.take_update()
    record = sheet.read()
    # d/dW0 = W1^T x^T, of norm 2; d/dW1 = (3, 4)
    assert record["step"] == 7 and record["grad_norm"] == pytest.approx({"blocks.0": 2.0, "blocks.1": 5.0}, rel=1e-3)
    assert record["weight_norm"] == {"blocks.0": 5.0, "blocks.1": 1.414}
    assert record["activation_rms"] == {"blocks.0": pytest.approx(math.sqrt(12.5), rel=1e-3), "blocks.1": 1.0}
    assert record["activation_max"] == {"blocks.0": 4.0, "blocks.1": 1.0}
    assert record["update_ratio"] == {"blocks.0": 0.0, "blocks.1": pytest.approx(0.02 / math.hypot(1, 0.98), rel=1e-3)}
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_have_the_norms_of_their_parameters():
    model = tiny_model()
    with Sheet(model, 1) as sheet:
        hidden = model.hidden(batch(0)["tokens"][:, :-1])
        logits = model.logits(hidden)
        logits.sum().backward()
    sheet.take_gradients()
    record = sheet.read()
    assert list(record["grad_norm"]) == ["embed", "blocks.0", "blocks.1", "final_norm", "head"]
    inside = [p.grad for p in model.blocks[1].parameters()]
    assert record["grad_norm"]["blocks.1"] == pytest.approx(
        float(torch.cat([g.flatten() for g in inside]).norm()), rel=1e-3
    )
    # 32 positions are fewer than the sample, so these are exact
    assert record["lse"] == pytest.approx(logits.logsumexp(-1).mean().item(), rel=1e-3)
    assert record["logit_max"] == pytest.approx(logits.abs().max().item(), rel=1e-3)
    assert "update_ratio" not in record  # nothing was updated


@pytest.mark.parametrize("shape", [(7,), (64, 64), (1000, 1024), (33, 777)])
def test_a_sample_is_spread_over_rows_and_columns(shape):
    size = math.prod(shape)
    places = _spread(size, SAMPLE, torch.device("cpu"))
    assert len(places) == min(size, SAMPLE) == len(places.unique()) and int(places.max()) < size
    if size > SAMPLE:
        rows, columns = (places // shape[1]).unique(), (places % shape[1]).unique()
        assert len(rows) > 0.5 * min(shape[0], SAMPLE) and len(columns) > 0.5 * min(shape[1], SAMPLE)


def test_the_ratio_from_a_sample_is_near_that_of_all():
    torch.manual_seed(0)
    layer = nn.Linear(400, 300, bias=False)
    model, weight = nn.Sequential(layer), layer.weight
    sheet = Sheet(model, 1)
    weight.grad = torch.zeros_like(weight)
    sheet.take_gradients()
    with torch.no_grad():
        before = weight.clone()
        weight.add_(1e-3 * torch.randn_like(weight))
    sheet.take_update()
    exact = float((weight - before).norm() / weight.norm())
    assert sheet.read()["update_ratio"]["0"] == pytest.approx(exact, rel=0.08)


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("make", [tiny_model, sparse_model])
def test_recording_changes_no_bit(tmp_path, make, lookahead):
    watched, _, first = tiny_run(6, model=make(), run_dir=tmp_path, lookahead=lookahead)
    plain, _, second = tiny_run(6, model=make(), recorder=False, lookahead=lookahead)
    assert same_weights(watched, plain) and first.losses == second.losses
    records = read_flight(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    for record, metrics in zip(records, read_metrics(tmp_path), strict=True):
        assert math.hypot(*record["grad_norm"].values()) == pytest.approx(metrics["grad_norm"], rel=2e-3)
        assert (metrics["lse"], metrics["logit_max"]) == (record["lse"], record["logit_max"])
        assert all(0 < ratio < 1 for ratio in record["update_ratio"].values())


def test_both_ways_through_the_queue_record_the_same(tmp_path):
    for lookahead in (0, 1):
        tiny_run(6, run_dir=tmp_path / str(lookahead), lookahead=lookahead)
    assert read_flight(tmp_path / "0") == read_flight(tmp_path / "1")


@pytest.mark.parametrize("way", ["compiled", "recomputed", "micro"])
def test_blocks_are_seen_however_they_run(tmp_path, way):
    tiny_run(4, run_dir=tmp_path / "plain")
    model = tiny_model()
    if way == "compiled":
        for block in model.blocks:
            block.compile(backend="eager")
        before = [block._compiled_call_impl for block in model.blocks]
    model.recompute = way == "recomputed"
    tiny_run(4, model=model, run_dir=tmp_path / way, micro_batches=2 if way == "micro" else 1)
    for plain, other in zip(read_flight(tmp_path / "plain"), read_flight(tmp_path / way), strict=True):
        for measure in ("activation_rms", "activation_max", "grad_norm"):
            assert other[measure] == pytest.approx(plain[measure], rel=1e-2)
    if way == "compiled":
        assert [block._compiled_call_impl for block in model.blocks] == before


def test_it_comes_as_often_as_asked_and_goes_on_after_a_resume(tmp_path):
    recorder = Recorder(every=2, keep=3)
    tiny_run(8, run_dir=tmp_path, log_every=4, recorder=recorder, checkpoint_every=5)
    assert [record["step"] for record in read_flight(tmp_path)] == [2, 4, 6, 8]
    assert [record["step"] for record in recorder.ring] == [4, 6, 8]
    with open(tmp_path / "flight.jsonl", "a") as file:
        file.write('{"step": 10, "grad')
    again = Recorder(every=2, keep=3)
    tiny_run(12, run_dir=tmp_path, log_every=4, recorder=again, resume=True)
    assert [record["step"] for record in read_flight(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert [record["step"] for record in again.ring] == [8, 10, 12]
    again.rewind(9)
    assert [record["step"] for record in again.ring] == [8]
    with pytest.raises(ValueError, match="every=0"):
        Recorder(every=0)


def test_a_run_without_a_folder_records_only_if_asked():
    recorder = Recorder()
    tiny_run(3, recorder=recorder)
    assert [record["step"] for record in recorder.ring] == [1, 2, 3]
    tiny_run(1, recorder=True)


def test_what_is_usual_is_the_median():
    recorder = Recorder()
    for step, norm in enumerate([1.0, 9.0, 2.0, None]):
        recorder.ring.append({"step": step, "grad_norm": {"embed": norm}})
    assert recorder.usual()["grad_norm"] == {"embed": 2.0} and recorder.usual()["weight_norm"] == {}


def test_dumps_do_not_overwrite_each_other(tmp_path):
    recorder = Recorder()
    recorder.open(tmp_path, 1)
    recorder.ring.append({"step": 3})
    first, second = recorder.dump(4, {"event": "skip"}), recorder.dump(4, {"event": "stop"})
    assert [first.name, second.name] == ["step-4.json", "step-4-2.json"]
    assert json.loads(second.read_text()) == {"step": 4, "event": "stop", "records": [{"step": 3}]}
    (tmp_path / "other").write_text("a file where a folder should be")
    recorder.run_dir = tmp_path / "other"
    assert recorder.dump(5, {}) is None


def test_names_of_layers():
    names = ["embed.weight", "blocks.10.mixer.wq.weight", "encoder.blocks.0.ffn.up.weight", "w", "encoder.embed.weight"]
    assert [layer_of(name) for name in names] == ["embed", "blocks.10", "encoder.blocks.0", "w", "encoder.embed"]


def test_frozen_weights_and_half_precision():
    model = tiny_model()
    model.embed.weight.requires_grad_(False)
    model.compute_dtype = torch.bfloat16
    tiny_run(2, model=model, recorder=(recorder := Recorder()))
    assert recorder.ring[-1]["grad_norm"]["embed"] == 0 and recorder.ring[-1]["update_ratio"]["embed"] == 0
    assert recorder.ring[-1]["activation_max"]["blocks.1"] > 0
    assert isinstance(model, Transformer)


@pytest.mark.gpu
def test_on_a_gpu_a_sheet_waits_for_nothing():
    model = tiny_model().cuda()
    tokens = batch(0)["tokens"].cuda()
    for mode in ("default", "error"):  # the first time warms up libraries, which wait
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with Sheet(model, 1) as sheet:
                model.logits(model.hidden(tokens[:, :-1])).sum().backward()
            sheet.take_gradients(torch.ones((), device="cuda"), 1.0)
            sheet.take_update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert sheet.read()["grad_norm"]["head"] > 0


@pytest.mark.gpu
def test_on_a_gpu_recording_changes_no_bit_and_a_broken_module_is_named(tmp_path):
    model = tiny_model().cuda()
    watched, _, first = tiny_run(6, model=model, run_dir=tmp_path, compile=True)
    plain, _, second = tiny_run(6, model=tiny_model().cuda(), recorder=False, compile=True)
    assert same_weights(watched, plain) and first.losses == second.losses
    assert [record["step"] for record in read_flight(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with torch.no_grad():
        model.blocks[1].ffn.down.weight.mul_(1e30)
        model.blocks[1].ffn.up.weight.mul_(1e30)
    moved = {name: tensor.cuda() for name, tensor in batch(0).items()}
    values = StepValues(math.nan, math.nan, 32.0, 0.0, 0.0, {})
    assert examine(Case(model, next_token, [moved], 1, values)).where == "blocks.1.ffn.down"
