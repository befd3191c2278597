"""`groundup profile`: where the time of a step goes, against where its FLOPs are."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import Arguments, Parser, add_device, count, print_json, print_table, say, settings_lines
from groundup.config import declared, override, plural, separate_overrides

if TYPE_CHECKING:
    import torch

    from groundup.accounting import Machine
    from groundup.profiling import Profile, ProfileSettings

PHASES = ("train", "prefill", "decode")


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("files", nargs="*", metavar="MODEL|key=value", help="a run or model folder, or a published model's name "
        "(default: a small Llama), and settings, e.g. num_layers=2 batch_size=4")  # fmt: skip
    add("--phase", choices=PHASES, default="train", help="which step (default: %(default)s)")
    add("--out", metavar="DIR", help="folder for profile.json and memory.json (default: a new one in runs/)")
    add("--roofline", metavar="FILE", help="also write a page with the step's operations under the machine's roofs")
    add("--memory", metavar="FILE", help="also write a page with the memory of each phase of training, predicted "
        "beside measured")  # fmt: skip
    add("--trace", action="store_true", help="also write trace.json.gz, for ui.perfetto.dev")
    add("--top", type=count, default=10, metavar="N", help="operations to list (default: %(default)s)")
    add("--compare", choices=("norm",), help="norm: LayerNorm and RMSNorm, plain and fused, in this model's step")
    add("--predict", action="store_true", help="only predict the training step's time and memory, from the model's "
        "first blocks: the whole model is not made, unless it has one or two rounds of them")  # fmt: skip
    add("--json", action="store_true", help="end with one JSON line of results")
    add_device(parser)
    parser.more = _settings_help


def _settings_help() -> str:
    lines = settings_lines("groundup.profiling.settings", "ProfileSettings", 22, left_out=["phase"])
    more = "any other key is the model's: vocab_size, d_model, num_layers, ..., or dotted, as blocks.0.ffn.d_ff=512"
    return "\n".join(["settings, here with their defaults:", *lines, more])


def run(options: Arguments) -> int:
    """Measure the machine and the step, print the tables, write the folder; returns the exit code."""
    from groundup.environ import set_default

    # The profiler's library reports its own beginning and end on standard error, unless told not to before torch loads.
    set_default("KINETO_LOG_LEVEL", "6")
    set_default("TORCH_CPP_LOG_LEVEL", "ERROR")
    from groundup.accounting.hardware import probe
    from groundup.device import default_device, require_device
    from groundup.profiling.measure import PROBE_SECONDS, with_threads
    from groundup.profiling.subject import subject

    name, changes, settings = _words(options)
    _check_out(options)
    device = require_device(options.device) if options.device else default_device()
    if options.predict:
        return _predict(options, name, changes, settings, device)
    model = subject(name, changes, settings, device)
    say("measuring the machine")
    machine = probe(device, PROBE_SECONDS)
    if settings.threads:
        machine = with_threads(machine, settings.threads)
    if options.compare:
        return _compare(options, model.config, settings, machine, device)
    return _profile(options, model, settings, machine)


def _check_out(options: Arguments) -> None:
    """Before anything is measured. ValueError for a folder that is in use, or one that nothing would be written to."""
    printing = "compare" if options.compare else "predict" if options.predict else None
    if printing and (files := [name for name in ("out", "trace", "roofline", "memory") if getattr(options, name)]):
        raise ValueError(f"--{printing} prints a table and writes no files: leave out --{files[0]}")
    if options.predict and (options.compare or options.phase != "train"):
        other = "--compare" if options.compare else f"--phase {options.phase}"
        raise ValueError(f"--predict predicts a step of training: leave out {other}")
    for name in ("roofline", "memory"):
        if (file := getattr(options, name)) and not Path(file).parent.is_dir():
            raise ValueError(f"--{name} {file}: there is no folder {Path(file).parent}")
    if options.memory and options.phase != "train":
        raise ValueError(f"--memory is of a step of training: leave out --phase {options.phase}")
    out = Path(options.out) if options.out else None
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: it already holds something; choose another")
    if out:
        out.mkdir(parents=True, exist_ok=True)


def _words(options: Arguments) -> tuple[str | None, list[str], "ProfileSettings"]:
    """(model's name, changes of its config, settings of the profile) from the words of the command line."""
    from groundup.profiling import ProfileSettings

    names, words = separate_overrides(options.files)
    if len(names) > 1:
        raise ValueError(f"one model at a time, not {len(names)}: {' '.join(names)}")
    known, _ = declared("groundup.profiling.settings", "ProfileSettings")
    if any(word.startswith("phase=") for word in words):
        raise ValueError("phase= and --phase are the same setting; give --phase")
    ours = [word for word in words if word.partition("=")[0] in known]
    settings = override(ProfileSettings(), *ours, f"phase={options.phase}")
    return (names or [None])[0], [word for word in words if word not in ours], settings


def _profile(options: Arguments, model: Any, settings: "ProfileSettings", machine: "Machine") -> int:
    from groundup.files import fresh_path
    from groundup.profiling import bottleneck, profile_model, write_profile

    say(f"measuring steps of {settings.phase}")
    profile, recorder = profile_model(model, settings, machine=machine)
    print(_device_line(profile, machine.threads))
    print_groups(profile)
    print_operations(profile, options.top)
    found = bottleneck(profile)
    if profile.disturbed:
        print("\nThe steps differ much: something else uses this machine, so a share of time may be off. Run it again.")
    print(f"\nbottleneck  {found.sentence}\nwhat to do  {found.advice}")
    for path in write_profile(options.out or fresh_path("profile"), profile, recorder, trace=options.trace):
        print(f"wrote       {path}")
    if options.roofline:
        print(f"wrote       {_write_roofline(options.roofline, model, profile, machine)}")
    phases = _write_memory(options.memory, model, profile, recorder) if options.memory else {}
    if options.json:
        short = {
            **profile.to_dict(),
            **phases,
            "operations": [asdict(row) for row in profile.operations[: options.top]],
        }
        print_json({**short, "bottleneck": asdict(found)})
    return 0


def _write_roofline(path: str, model: Any, profile: "Profile", machine: "Machine") -> Path:
    from groundup.profiling import roofline_points
    from groundup.report.roofline import write_roofline

    return write_roofline(path, profile, roofline_points(model.config, profile, machine), machine)


def _write_memory(path: str, model: Any, profile: "Profile", recorder: Any) -> dict[str, Any]:
    """The page, the table for the terminal, and what --json says of it."""
    from groundup.profiling.phases import phase_memory
    from groundup.report.memory import phases_table, write_memory
    from groundup.report.tables import to_text

    rows, step = phase_memory(model, profile, recorder)
    print(f"\n{to_text(phases_table(rows))}")
    print(f"wrote       {write_memory(path, profile, rows, step)}")
    return {"phases": [asdict(row) | {"error": row.error} for row in rows]}


def _device_line(profile: "Profile", threads: int) -> str:
    device, memory = profile.device, profile.memory
    _, _, group = memory.peak
    rates = f"{device.peak_flops / 1e9:,.0f} GFLOP/s in matrix products, {device.bandwidth / 1e9:.0f} GB/s"
    return "\n".join([
        f"device      {device.name}, {plural(threads, 'thread')}: {rates} (measured); "
        f"ridge at {device.ridge:.1f} FLOPs per byte",
        f"step        {_ms(profile.step_seconds)} ms, {profile.tokens_per_second:,.0f} tokens/s; with the profiler "
        f"{_ms(profile.traced_seconds)} ms ({profile.overhead:+.0%}); slowest step / fastest {profile.spread:.2f}",
        f"            {profile.interpreter_share:.0%} of the host's time is in no operation; "
        f"{profile.unattributed_share:.1%} of the time belongs to no group",
        f"memory      {memory.peak_bytes / 2**20:,.1f} MiB at the peak, reached in {group}; "
        f"{memory.resident_bytes / 2**20:,.1f} of it are weights and states",
    ])  # fmt: skip


def print_groups(profile: "Profile") -> None:
    """FLOPs beside time, group by group."""
    rows = [
        [row.group, f"{row.flops_share:.2%}", f"{row.time_share:.1%}", _ms(row.seconds),
         f"{row.flops_per_second / 1e9:,.1f}", _ms(row.least_seconds),
         "" if row.over_least is None else f"{row.over_least:.1f}", _bound(row)]
        for row in profile.groups if row.seconds or row.flops
    ]  # fmt: skip
    headings = ("group", "FLOPs", "time", "ms", "GFLOP/s", "least ms", "times least", "bound")
    print_table("\nA step by group", headings, rows, words=(0, 7))


def _bound(row: Any) -> str:
    return "" if row.over_least is None else "compute" if row.arithmetic_share > 0.5 else "memory"


def print_operations(profile: "Profile", top: int) -> None:
    """torch's operations with most time of their own."""
    rows = [[row.name, row.group, f"{row.calls:,.0f}", _ms(row.seconds), f"{row.time_share:.1%}"]
            for row in profile.operations[:top]]  # fmt: skip
    print_table("\nTop operations", ("operation", "group", "calls", "ms", "time"), rows, words=(0, 1))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _compare(
    options: Arguments, config: Any, settings: "ProfileSettings", machine: "Machine", device: "torch.device"
) -> int:
    from groundup.profiling.compare import compare_norms

    found = compare_norms(config, settings, machine, device, say)
    rows = [[row.variant, f"{row.flops_share:.2%}", f"{row.time_share:.1%}", f"{row.gap:,.0f}", _ms(row.seconds),
             f"{row.over_least:.1f}", _ms(row.step_seconds)] for row in found]  # fmt: skip
    headings = ("norms", "FLOPs", "time", "time / FLOPs", "ms", "times least", "step ms")
    print(f"device  {machine.name}, {plural(machine.threads, 'thread')}")
    print_table(f"The norms' share of a step ({settings.phase})", headings, rows)
    if options.json:
        print_json({"machine": asdict(machine), "settings": asdict(settings),
                    "norms": [asdict(row) | {"gap": row.gap} for row in found]})  # fmt: skip
    return 0


def _predict(
    options: Arguments, name: str | None, changes: list[str], settings: "ProfileSettings", device: "torch.device"
) -> int:
    from groundup.accounting import count_parameters, training_flops_per_token
    from groundup.accounting.hardware import probe
    from groundup.accounting.utilization import mfu
    from groundup.profiling.measure import PROBE_SECONDS, with_threads
    from groundup.profiling.prediction import StepSettings, predict_step
    from groundup.profiling.settings import LONGEST_BY_DEFAULT
    from groundup.profiling.subject import subject_config

    for setting in ("steps", "warmup"):
        if getattr(settings, setting) != getattr(type(settings)(), setting):
            raise ValueError(f"--predict takes turns of its own: leave out {setting}=")
    config = subject_config(name, changes)
    say("measuring the machine")
    machine = probe(device, PROBE_SECONDS)
    if settings.threads:
        machine = with_threads(machine, settings.threads)
    length = settings.context_length or min(config.context_length, LONGEST_BY_DEFAULT)
    chosen: Any = machine.precision if settings.precision == "auto" else settings.precision
    step = StepSettings(settings.batch_size, length, chosen, settings.optimizer)
    say("measuring steps of shallow models")
    found = predict_step(config, step, device)
    cost = found.cost
    speed = settings.batch_size * length / cost.seconds
    rate = machine.gemm_flops[f"{chosen} x{machine.threads}"]
    share = mfu(training_flops_per_token(config, length), speed, rate)
    measured = " and ".join(f"{n} in {_ms(seconds)} ms" for n, seconds in found.seconds.items())
    print(f"model       {count_parameters(config).total:,} parameters, {plural(found.rounds, 'round')} of "
          f"{plural(len(config.blocks), 'block')}")  # fmt: skip
    print(f"measured    rounds: {measured}; {chosen}, {plural(machine.threads, 'thread')}, {machine.name}")
    print(f"step        {_ms(cost.seconds)} ms, {speed:,.0f} tokens/s, MFU {share:.2f} (predicted)")
    print(f"memory      {cost.peak_bytes / 2**20:,.1f} MiB at the peak (predicted)")
    if options.json:
        print_json({
            "settings": asdict(step), "rounds": found.rounds, "seconds_by_rounds": found.seconds,
            "seconds": cost.seconds, "peak_bytes": cost.peak_bytes, "tokens_per_second": speed, "mfu": share,
        })  # fmt: skip
    return 0
