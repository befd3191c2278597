"""Entry 024: does the planner put data, shard, tensor and pipeline parallelism into the order that is measured?

    python experiments/024_order.py [--ranks 2 4] [--rows 16]

On each number of gloo ranks of this machine (one thread each) all that a prediction needs is measured first: links
(alpha and beta of each operation as strategies call it), the seconds of a pass of the model, whole and cut, with all
ranks busy, and those of AdamW. Then a step of every strategy is predicted and timed, strategies taking turns. Prints a
table, ends with a JSON line, and writes it to 024_order.jsonl, where it keeps what is there of other numbers of ranks.
Takes about a minute for each number of ranks; use the machine for nothing else.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from groundup import presets
from groundup.accounting import communication
from groundup.accounting.communication import hops, wire_share
from groundup.accounting.params import count_parameters
from groundup.accounting.placement import UPDATE_BYTES, cut
from groundup.device import environment, physical_cores
from groundup.files import write_atomic
from groundup.model import Transformer
from groundup.parallel import (
    DDP,
    Pipeline,
    fully_shard,
    split_blocks,
    sum_in_rank_order,
    sum_over_ranks,
    tensor_parallel,
)
from groundup.parallel.plan import ParallelPlan
from groundup.planning.hardware import Hardware, Speed
from groundup.planning.job import Job, parts
from groundup.planning.links import Link, Network
from groundup.planning.predict import predict
from groundup.planning.simulate import simulate_step

OUT = Path(__file__).with_suffix(".jsonl")
MODEL = presets.llama(vocab_size=512, d_model=256, num_layers=4, num_heads=4, num_kv_heads=4, d_head=64,
                      context_length=128)  # fmt: skip
SIZES = [1 << 12, 1 << 16, 1 << 19, 1 << 21, 1 << 23]
CORES = physical_cores()
MICROBATCHES, ROUNDS, TURNS = 4, 5, 3

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rows", type=int, nargs="+", default=[16])
    options = parser.parse_args()
    before = [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []
    lines = [line for ranks in options.ranks for line in on_ranks(ranks, options.rows)]
    print("| ranks | rows | plan | ms predicted | ms simulated | ms measured, all rounds | predicted / measured |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        for row in sorted(line["plans"], key=lambda row: row["measured"]):
            spread = f"{1e3 * row['measured']:.0f} ({1e3 * min(row['all']):.0f} to {1e3 * max(row['all']):.0f})"
            print(f"| {line['ranks']} | {line['rows']} | {row['plan']} | {1e3 * row['predicted']:.0f} | "
                  f"{1e3 * row['simulated']:.0f} | {spread} | {row['predicted'] / row['measured']:.2f} |")  # fmt: skip
        print(f"order {'as predicted' if line['same_order'] else 'NOT as predicted'}; picked within "
              f"{line['pick_over_best'] - 1:.1%} of the best")  # fmt: skip
    kept = [line for line in before if line.get("ranks") not in (None, *options.ranks)]
    write_atomic(
        OUT, "".join(json.dumps(line) + "\n" for line in [{"environment": environment()}, *kept, *lines]).encode()
    )
    print(json.dumps({"same_order": [line["same_order"] for line in lines], "lines": lines}))


def on_ranks(ranks: int, rows: list[int]) -> list[dict[str, Any]]:
    """What rank 0 found, for each number of rows."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=rank_main, args=(rank, ranks, rows, folder)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"ranks ended with {[process.exitcode for process in processes]}")
        return json.loads((Path(folder) / "found.json").read_text())


def rank_main(rank: int, ranks: int, rows: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks,
                            timeout=timedelta(seconds=120))  # fmt: skip
    links = measured_links(ranks)
    found = [compared(ranks, each, links) for each in rows]
    dist.barrier()
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def orders(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether prediction and measurement put the plans into one order, and what the prediction's choice costs."""
    by_prediction = sorted(found, key=lambda row: row["predicted"])
    by_measurement = sorted(found, key=lambda row: row["measured"])
    return {
        "same_order": [row["plan"] for row in by_prediction] == [row["plan"] for row in by_measurement],
        "pick_over_best": by_prediction[0]["measured"] / by_measurement[0]["measured"],
    }


def machine(ranks: int, speed: Speed, update: float, links: dict[tuple[str, int], Link]) -> Hardware:
    """This one, whose cores compute and send, and are shared where there are more ranks."""
    network = Network(links["all-reduce", ranks], ranks, measured=links)
    return Hardware("this machine", speed, float("inf"), update, network, overlaps=False, cores=CORES)


def compared(ranks: int, rows: int, links: dict[tuple[str, int], Link]) -> dict[str, Any]:
    """Predictions and measurements for this number of rows."""
    job = Job(MODEL, rows, torch.float32)
    hardware = machine(ranks, measured_speed(ranks, rows), update_bandwidth(), links)
    plans = {
        f"data={ranks}": (rows // ranks, data_step),
        f"shard={ranks}": (rows // ranks, shard_step),
        f"tensor={ranks}": (rows, tensor_step),
        f"pipeline={ranks} microbatches={MICROBATCHES}": (rows // MICROBATCHES, pipeline_step),
    }
    steps = [make(rows) for _, make in plans.values()]
    seconds = taken_in_turns(steps)
    found = []
    for (text, (micro, _)), each in zip(plans.items(), seconds, strict=True):
        plan = ParallelPlan.parse(text)
        prediction = predict(plan, micro, job, hardware)
        found.append({
            "plan": text, "predicted": prediction.seconds,
            "simulated": simulate_step(plan, micro, job, hardware).seconds,
            "measured": statistics.median(each), "all": each, "compute": prediction.compute,
            "exposed": dict(prediction.exposed), "bubble": prediction.bubble, "update": prediction.update,
        })  # fmt: skip
    return {
        "ranks": ranks, "rows": rows, "plans": found,
        **orders(found),
        "gflops": hardware.speed.flops / 1e9, "layer_ms": 1e3 * hardware.speed.layer_seconds,
        "shrunk": hardware.speed.shrunk[ranks], "update_gb_per_s": hardware.memory_bandwidth / 1e9,
        "links": {f"{name} on {n}": [link.latency, link.bandwidth] for (name, n), link in links.items()},
    }  # fmt: skip


def measured_links(ranks: int) -> dict[tuple[str, int], Link]:
    """Alpha and beta of each operation as the strategies call it: gradients are summed in rank order."""

    def shifted(x: Tensor) -> None:
        rank, into = dist.get_rank(), torch.empty_like(x)
        works = [dist.irecv(into, (rank - 1) % ranks), dist.isend(x, (rank + 1) % ranks)]
        for work in works:
            assert work is not None
            work.wait()

    def exchanged_and_added(x: Tensor) -> None:
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x)
        received.view(ranks, -1).sum(0)

    ways: dict[str, Callable[[Tensor], object]] = {
        "send": shifted,
        "all-reduce": dist.all_reduce,
        "data all-reduce": sum_in_rank_order,
        "all-gather": lambda x: dist.all_gather_into_tensor(torch.empty_like(x), x[: len(x) // ranks]),
        "reduce-scatter": exchanged_and_added,
    }
    found = {("tensor all-reduce", ranks): after_work(ranks)}
    for name, way in ways.items():
        operation = name.removeprefix("data ")
        points = []
        for size in SIZES:
            x = torch.zeros(size // 4)
            took = slowest([timed(lambda way=way, x=x: way(x)) for _ in range(9)][2:])
            points.append((hops(operation, ranks), wire_share(operation, ranks) * size, statistics.median(took)))
        alpha, beta = communication.fit(points)
        found[name, ranks] = Link(alpha, 1 / beta if beta else float("inf"))
    return found


def after_work(ranks: int) -> Link:
    """Of an all-reduce for which ranks come from computing, as in tensor parallelism, and not from a barrier."""
    a, b, often, points = torch.randn(512, 256), torch.randn(256, 2048), 8, []

    def repeat(x: Tensor | None) -> None:
        for _ in range(often):
            torch.mm(a, b)
            if x is not None:
                sum_over_ranks(x)

    alone = statistics.median(slowest([timed(lambda: repeat(None)) for _ in range(9)][2:]))
    for size in SIZES[1:]:
        x = torch.zeros(size // 4)
        seconds = statistics.median(slowest([timed(lambda x=x: repeat(x)) for _ in range(5)][1:])) - alone
        points.append((hops("all-reduce", ranks), wire_share("all-reduce", ranks) * size, seconds / often))
    alpha, beta = communication.fit(points)
    return Link(alpha, 1 / beta if beta else float("inf"))


def measured_speed(ranks: int, rows: int) -> Speed:
    """Of passes of the whole model and of one cut for tensor parallelism, with all ranks busy: a fixed time for each
    layer, and a rate."""
    points = []
    units = MODEL.num_layers + 1
    for micro in sorted({rows // MICROBATCHES, rows // ranks, rows}):
        whole = parts(MODEL, 1)
        flops = 3 * micro * (MODEL.num_layers * whole.layer.flops + whole.head.flops)
        points.append((3 * units, flops, pass_seconds(1, micro)))
    alpha, beta = communication.fit(points)
    part = parts(MODEL, ranks)
    blocks, head = 3 * rows * MODEL.num_layers * part.layer.flops, 3 * rows * part.head.flops
    seconds = pass_seconds(ranks, rows) - 3 * units * alpha - head * beta
    return Speed(1 / beta, alpha, {ranks: min(1.0, blocks * beta / seconds)})


def pass_seconds(tensor: int, micro: int) -> float:
    """Forward and backward pass of so many rows, of a model as one of `tensor` ranks has it, without messages."""
    model = Transformer(cut(MODEL, tensor))
    batch = tokens(micro)

    def once() -> None:
        loss(model(batch[:, :-1]), batch[:, 1:]).backward()

    return statistics.median(slowest([timed(once) for _ in range(2 + TURNS)][2:]))


def update_bandwidth() -> float:
    model = Transformer(MODEL)
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    seconds = statistics.median(slowest([timed(optimizer.step) for _ in range(2 + TURNS)][2:]))
    return UPDATE_BYTES * count_parameters(MODEL).total / seconds


def data_step(rows: int) -> Step:
    model = seeded()
    ddp, batch, optimizer = DDP(model), own_rows(rows), torch.optim.AdamW(model.parameters())

    def step() -> None:
        loss(model(batch[:, :-1]), batch[:, 1:]).backward()
        ddp.finish()
        optimizer.step()
        optimizer.zero_grad()

    return step


def shard_step(rows: int) -> Step:
    model = fully_shard(seeded())
    batch, optimizer = own_rows(rows), torch.optim.AdamW(model.parameters())

    def step() -> None:
        loss(model(batch[:, :-1]), batch[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def tensor_step(rows: int) -> Step:
    model = tensor_parallel(seeded())
    batch, optimizer = tokens(rows), torch.optim.AdamW(model.parameters())

    def step() -> None:
        loss(model(batch[:, :-1]), batch[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def pipeline_step(rows: int) -> Step:
    stage = split_blocks(seeded(), dist.get_world_size())[dist.get_rank()]
    pipeline, optimizer = Pipeline(stage, "1f1b", MICROBATCHES), torch.optim.AdamW(stage.parameters())
    batches = tokens(rows).chunk(MICROBATCHES)

    def step() -> None:
        inputs, targets = [each[:, :-1] for each in batches], [each[:, 1:] for each in batches]
        pipeline.step(inputs, lambda logits, i: loss(logits, targets[i]))
        optimizer.step()
        optimizer.zero_grad()

    return step


def taken_in_turns(steps: list[Step]) -> list[list[float]]:
    """Seconds of the slowest rank, of each step in each round; the first two rounds are left out."""
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(2 + ROUNDS):
        for number, step in enumerate(steps):
            seconds[number].append(timed(step))
    return [slowest(each[2:]) for each in seconds]


def timed(action: Callable[[], object]) -> float:
    """Seconds, all ranks beginning together."""
    dist.barrier()
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def slowest(seconds: list[float]) -> list[float]:
    """Of all ranks, for each of them."""
    table = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(table, op=dist.ReduceOp.MAX)
    return table.tolist()


def seeded() -> Transformer:
    torch.manual_seed(0)
    return Transformer(MODEL)


def tokens(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, MODEL.vocab_size, (rows, MODEL.context_length + 1), generator=generator)


def own_rows(rows: int) -> Tensor:
    return tokens(rows).chunk(dist.get_world_size())[dist.get_rank()]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


if __name__ == "__main__":
    main()
