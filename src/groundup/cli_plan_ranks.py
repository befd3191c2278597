"""Of `groundup plan --gpus N`: which plan of ranks is fastest, why the others lose, and what one step looks like."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import Arguments, Parser, number, print_json, print_table, whole_number
from groundup.config import plural

if TYPE_CHECKING:
    from groundup.accounting.devices import Cluster
    from groundup.accounting.doctor.saved import SavedCard
    from groundup.model import ModelConfig
    from groundup.planning.hardware import Hardware
    from groundup.planning.job import Job
    from groundup.planning.search import Candidate

SHOWN = 12
BATCH_TOKENS = 4_000_000
"""Of a step where --rows is not given: what models of billions of parameters are trained with."""


def options(parser: Parser) -> None:
    """What `plan` takes besides."""
    add = parser.add_argument
    add("--gpus", type=whole_number, metavar="N", help="rank all ways to divide a model over N of the devices, by "
        "predicted step time and memory (with --model or --params)")  # fmt: skip
    add("--model", metavar="NAME", help="a published model, e.g. llama-3-8b, with --gpus")
    add("--rows", type=whole_number, metavar="N", help="rows of a step, with --gpus (default: about 4 million tokens)")
    add("--between", type=number, metavar="X", help="GB/s of each device to other machines (default: 50, assumed)")
    add("--plan", metavar="TEXT", help='with --gpus: this plan, e.g. "shard=4 tensor=2", instead of the fastest')
    add("--timeline", metavar="FILE", help="with --gpus: draw one simulated step as a page")
    add("--build-check", action="store_true", help="with --gpus: build the plan's first rank with torch's fake process "
        "group, and compare what it holds with the prediction")  # fmt: skip


ONLY = ("model", "rows", "between", "plan", "timeline", "build_check")


def run(options: Arguments, target: "Cluster") -> int:
    """Rank, print, and do what else was asked for; returns the exit code."""
    from groundup.planning.job import Job
    from groundup.planning.search import ranked

    for name in ("budget", "flops", "fit", "text", "served_tokens", "experts", "active"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} plans a budget; leave it out beside --gpus")
    if options.gpus < 1:
        raise ValueError(f"--gpus {options.gpus}: expected at least 1")
    model = _model(options)
    rows = options.rows or options.gpus * max(1, round(BATCH_TOKENS / model.context_length / options.gpus))
    job, hardware = Job(model, rows), _hardware(options, target)
    found = ranked(job, hardware, options.gpus)
    chosen = _given(options.plan, found, job, hardware) if options.plan else found[0]
    _print(found, chosen, job, hardware)
    built = _build(chosen, job) if options.build_check else None
    if options.timeline:
        _draw(Path(options.timeline), chosen, job, hardware)
    if options.json:
        print_json({"plan": chosen.plan.text, **_json(chosen), "device": hardware.name, "rows": rows,
                    "figures": hardware.said, "built": built, "ranked": [_json(each) for each in found]})  # fmt: skip
    return 0 if chosen.fits else 1


def _model(options: Arguments) -> "ModelConfig":
    from groundup import presets
    from groundup.accounting.cluster_plan import Budget, shape

    if (options.model is None) == (options.params is None):
        raise ValueError("--gpus: say what is to be trained, with --model NAME or --params N")
    if options.model is None:
        budget = Budget(parameters=options.params, tokens=1.0, vocab_size=options.vocab, context_length=options.context)
        return shape(options.params, budget)
    model = presets.published(options.model)
    return model if options.context is None else replace(model, context_length=options.context)


def _hardware(options: Arguments, target: "Cluster") -> "Hardware":
    from groundup.accounting.cluster_plan import MFU
    from groundup.accounting.devices import Cluster
    from groundup.planning.hardware import BETWEEN, hardware_of
    from groundup.planning.links import Link

    card = _card(options, target)
    measured = card.measured(target.device) if card else None
    between = None if options.between is None else Link(BETWEEN.latency, 1e9 * options.between)
    cluster = Cluster(target.device, options.gpus, measured)
    return hardware_of(cluster, MFU if options.mfu is None else options.mfu, card, between)


def _card(options: Arguments, target: "Cluster") -> "SavedCard | None":
    """Of such devices: that which is named, else the one kept here."""
    from groundup.accounting.devices import recognise
    from groundup.accounting.doctor.saved import load_card

    if options.card == "none":
        return None
    try:
        card = load_card(Path(options.card) if options.card else None)
    except FileNotFoundError:
        if options.card:
            raise
        return None
    if recognise(card.name) is target.device:
        return card
    if options.card:
        raise ValueError(f"the card is of {card.name}, and the plan is for {target.device.name}")
    return None


def _given(text: str, found: Sequence["Candidate"], job: "Job", hardware: "Hardware") -> "Candidate":
    """The plan that was asked for, with micro-batches as large as fit."""
    from groundup.parallel.plan import ParallelPlan
    from groundup.planning.search import given

    plan = ParallelPlan.parse(text)
    if plan.size != (size := found[0].plan.size):
        raise ValueError(f"--plan {text!r} is for {plural(plan.size, 'rank')}, --gpus says {size}")
    return given(plan, job, hardware)


def _print(found: Sequence["Candidate"], chosen: "Candidate", job: "Job", hardware: "Hardware") -> None:
    from groundup.parallel.compose import apart
    from groundup.planning.search import why

    fitting = sum(each.fits for each in found)
    shown = found[:SHOWN] if fitting >= SHOWN else [*found[:fitting], *found[fitting : fitting + 3]]
    rows = [
        [str(place), each.plan.text or "one rank", f"{each.rows} x {each.passes}", _seconds(each.seconds),
         f"{each.memory.peak / 1e9:,.1f}", f"{each.seconds / found[0].seconds:.2f}", why(each, found[0], hardware)]
        for place, each in enumerate(shown, 1)
    ]  # fmt: skip
    headings = ("", "plan", "rows x passes", "step", "GB", "of the best", "why not")
    title = f"{plural(job.rows, 'row')} of {job.seq:,} tokens in a step, on {hardware.name}"
    print_table(title, headings, rows, words=(1, 6))
    print(f"{len(found)} ways to divide them, of which {fitting} fit")
    if not fitting:
        print("none fits: more devices, or rows that more of them can share")
    prediction = chosen.prediction
    spent = {"arithmetic": prediction.compute, "recomputing": prediction.recompute, **{
             f"messages of {axis}": seconds for axis, seconds in prediction.exposed.items()},
             "bubble": prediction.bubble, "update": prediction.update}  # fmt: skip
    parts = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in spent.items() if seconds > 0)
    print(f"a step of it: {parts}")
    for line in hardware.said:
        print(f"  {line}")
    if fault := apart(chosen.plan):
        print(f"for torch's engine; in our own {fault}")
    print(f"plan: {chosen.plan.text or 'one rank'}")


def _build(chosen: "Candidate", job: "Job") -> dict[str, Any]:
    from groundup.planning.build_check import build

    built = build(chosen.plan, job.model)
    held, predicted = built.parameters * 4, chosen.memory.parameters
    print(f"built as rank 0 of {chosen.plan.size}: {built.parameters:,} parameters in {built.tensors} tensors, "
          f"{held / 1e9:,.2f} GB in fp32; predicted {predicted / 1e9:,.2f} GB for the largest rank")  # fmt: skip
    return asdict(built)


def _draw(path: Path, chosen: "Candidate", job: "Job", hardware: "Hardware") -> None:
    from groundup.planning.simulate import simulate_step
    from groundup.report.timeline import write_timeline

    step = simulate_step(chosen.plan, chosen.rows, job, hardware)
    print(f"simulated: {_seconds(step.seconds)}, of which {step.bubble:.1%} bubble and {step.exposed:.1%} messages "
          f"that nothing hides; drawn in {write_timeline(path, chosen, step, hardware)}")  # fmt: skip


def _json(each: "Candidate") -> dict[str, Any]:
    return {
        "plan": each.plan.text, "rows": each.rows, "passes": each.passes, "seconds": each.seconds, "fits": each.fits,
        "memory": asdict(each.memory), "peak_bytes": each.memory.peak, **asdict(each.prediction),
    }  # fmt: skip


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 10 else f"{1e3 * seconds:,.4g} ms"
