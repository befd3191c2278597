"""`groundup plan`: what a budget buys before anything is trained, on this machine or on accelerators elsewhere."""

import argparse
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from groundup import cli_plan_ranks
from groundup.cli_parts import Arguments, Parser, number, print_json, print_table, whole_number
from groundup.cli_plan_card import as_measured, figures, print_figures
from groundup.cli_plan_optima import lifetime_json, lifetime_lines, plan_experts
from groundup.config import parse_seconds, plural, separate_overrides

if TYPE_CHECKING:
    from groundup.accounting.cluster_plan import Budget, ClusterPlan
    from groundup.accounting.devices import Cluster

POWERS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
BYTES_PER_TOKEN = 4.0
"""Of English text with a vocabulary of 32,000 or more, to turn bytes into tokens."""

LEAST_LOSS = 5e-4
"""Smaller differences are not said: they show as 0.000."""


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILES|key=value", help="without --device: text to train on here, and settings, as "
        "for build; the machine is measured and the text is read")  # fmt: skip
    add(
        "--device", metavar="NAME", help="plan for these instead, from data sheets, e.g. h100x8 (default: this machine)"
    )
    add("--card", metavar="FILE", help="what groundup doctor --save measured of them; without it the card kept here, "
        "where it is of such devices; none: data sheets only")  # fmt: skip
    add("--budget", metavar="TIME", help="wall-clock time, e.g. 90m (default here: 10m)")
    add("--flops", type=amount, metavar="N", help="floating-point operations in place of a time, e.g. 1e18")
    add("--params", type=amount, metavar="N", help="a size of model, e.g. 1.4e9 or 1.4B, with --tokens")
    add("--tokens", type=amount, metavar="N", help="tokens to train on, with --params")
    add("--text", metavar="SIZE", help="different text that there is, e.g. 11GB or 3B tokens (default: enough)")
    add("--fit", metavar="MODEL", help="the memory that a published model takes, e.g. llama-2-7b")
    add(
        "--context", type=whole_number, metavar="N", help="tokens in a row (default: 2048, or 4096 from 3 B parameters)"
    )
    add("--vocab", type=whole_number, metavar="N", help="tokens in the vocabulary (default: 32000, 128000 from 3 B)")
    add("--mfu", type=number, metavar="X", help="share of the peak that training reaches (default: 0.4)")
    add("--served-tokens", type=amount, metavar="N", help="tokens that the model will read and write in its life: plan "
        "the cheapest for training and serving together, at the same loss")  # fmt: skip
    add("--serving-mfu", type=number, metavar="X", help="share of the peak that serving reaches (default: as --mfu)")
    add("--experts", type=whole_number, metavar="N", help="plan a mixture of so many experts, e.g. 512, with --active")
    add("--active", type=whole_number, metavar="K", help="experts that a token meets, e.g. 8")
    add("--price", type=number, metavar="X", help="of a device and hour, in any currency (default: none, so no price)")
    cli_plan_ranks.options(parser)
    add("--devices", action="store_true", help="list the devices with their figures and sources, and stop")
    add("--json", action="store_true", help="end with one JSON line of the plan")


def run(options: Arguments) -> int:
    """Plan and print; returns the exit code."""
    if options.devices:
        return _list_devices(options)
    if options.gpus is None and (left := next((n for n in cli_plan_ranks.ONLY if getattr(options, n)), None)):
        raise ValueError(f"--{left.replace('_', '-')} is for a plan of ranks: add --gpus N")
    if (
        options.device is None
        and options.gpus is None
        and not (options.flops or options.params or options.fit or options.text)
    ):
        return _plan_here(options)
    if options.files:
        raise ValueError(f"{' '.join(options.files)!r}: files are read for a plan of this machine only; "
                         "say how much text there is with --text")  # fmt: skip
    from groundup.accounting.devices import cluster

    for name in ("served_tokens", "serving_mfu", "experts", "active"):
        if options.fit and getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} plans a training run; leave it out beside --fit")
    target = cluster(options.device or "h100")
    if options.device is None:
        print("no --device is given: planned for one H100")
    if options.gpus is not None:
        if target.count > 1:
            raise ValueError(f"--device {options.device} and --gpus {options.gpus}: give the number once, with --gpus")
        return cli_plan_ranks.run(options, target)
    target = as_measured(target, options)
    return _fit(options, target) if options.fit else _plan_there(options, target)


def _plan_here(options: Arguments) -> int:
    """What `groundup build` would do."""
    for name in (
        "card",
        "tokens",
        "context",
        "vocab",
        "mfu",
        "price",
        "served_tokens",
        "serving_mfu",
        "experts",
        "active",
    ):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for a plan with --device; here it is measured, or a setting (key=value)"
            )
    from groundup.build import build
    from groundup.build.settings import settings_from

    files, overrides = separate_overrides(options.files)
    decided = build(files, settings_from(options.budget, None, overrides), dry_run=True)["plan"]
    if options.json:
        plan, predicted = decided["plan"], decided["predicted"]
        batch = plan["batch_size"] * plan["model"]["context_length"]
        print_json({"batch_tokens": batch, "seconds": plan["train_seconds"], "loss": plan["bits_per_byte"],
                    "loss_unit": "bits per byte", **plan, "predicted": predicted})  # fmt: skip
    return 0


def _plan_there(options: Arguments, target: "Cluster") -> int:
    from groundup.accounting.cluster_plan import advice, plan_cluster

    budget = _budget(options)
    if options.serving_mfu is not None and options.served_tokens is None:
        raise ValueError("--serving-mfu is for a plan with --served-tokens")
    if options.experts is not None or options.active is not None:
        if options.served_tokens is not None:
            raise ValueError("--served-tokens and --experts together are not planned yet; give one of them")
        return plan_experts(options, budget, target)
    best, *others = plan_cluster(budget, target)
    lines, more = [], {}
    if options.served_tokens is not None:
        from groundup.accounting.lifetime_plan import plan_lifetime

        life = plan_lifetime(budget, target, options.served_tokens, options.serving_mfu)
        lines, more = lifetime_lines(life), {"lifetime": lifetime_json(life)}
        best, others = life.chosen, others if life.chosen is life.usual else [life.usual]
        best.assumptions.extend(life.assumptions)
    regime, free, said = advice(budget, target)
    _print_plan(best, others, target, [*said, *lines])
    if options.json:
        fit = {"regime": regime, "optimum": {"parameters": free.parameters, "tokens": free.tokens,
               "tokens_per_parameter": free.tokens_per_parameter}, "advice": said}  # fmt: skip
        runners_up = [_json(other) for other in others]
        print_json({**_json(best), **fit, **more, "device": target.name, "figures": figures(target),
                    "runners_up": runners_up})  # fmt: skip
    return 0


def _budget(options: Arguments) -> "Budget":
    from groundup.accounting.cluster_plan import MFU, Budget

    return Budget(
        seconds=None if options.budget is None else parse_seconds(options.budget),
        flops=options.flops,
        parameters=options.params,
        tokens=options.tokens,
        unique_tokens=None if options.text is None else tokens_of(options.text),
        mfu=MFU if options.mfu is None else options.mfu,
        price_per_hour=options.price,
        vocab_size=options.vocab,
        context_length=options.context,
    )


def _json(plan: "ClusterPlan") -> dict[str, Any]:
    shape = {name: getattr(plan.model, name) for name in ("d_model", "num_layers", "vocab_size", "context_length")}
    return {
        "steps": plan.steps,
        "tokens_per_parameter": plan.tokens_per_parameter,
        "loss_unit": "nats per token",
        **asdict(plan),
        "model": shape,
    }


def _print_plan(best: "ClusterPlan", others: list["ClusterPlan"], target: "Cluster", why: list[str]) -> None:
    headings = ["", "chosen", *(f"{other.parameters / best.parameters:.2g} x the size" for other in others)]
    plans = [best, *others]
    rows = [
        ["parameters", *(f"{p.parameters:,}" for p in plans)],
        ["layers x width", *(f"{p.model.num_layers} x {p.model.d_model}" for p in plans)],
        ["vocabulary, context", *(f"{p.model.vocab_size:,}, {p.model.context_length:,}" for p in plans)],
        ["tokens", *(f"{p.tokens:.3g}" for p in plans)],
        ["tokens per parameter", *(f"{p.tokens_per_parameter:.1f}" for p in plans)],
        ["passes over the text", *("1" if p.epochs is None else f"{p.epochs:.2f}" for p in plans)],
        ["steps of tokens", *(f"{p.steps:,} of {p.batch_tokens:,}" for p in plans)],
        ["learning rate (AdamW)", *(f"{p.learning_rate:.2g}" for p in plans)],
        ["precision, shards, devices a layer", *(f"{p.precision}, {p.sharding}, {p.tensor}" for p in plans)],
        ["rows x passes", *(f"{p.micro_batch} x {p.accumulation}{', recomputed' * p.recompute}" for p in plans)],
        ["memory of a device", *(f"{p.peak_bytes / 1e9:,.1f} GB" for p in plans)],
        ["FLOPs", *(f"{p.flops:.3g}" for p in plans)],
        ["time", *(_hours(p.seconds) for p in plans)],
        ["energy", *(f"{p.kilowatt_hours:,.3g} kWh" for p in plans)],
        ["loss, nats per token", *(f"{p.loss:.3f}" for p in plans)],
        ["by two fits", *(f"{p.loss_interval[0]:.3f} to {p.loss_interval[1]:.3f}" for p in plans)],
    ]
    if best.communication_seconds is not None:
        rows.insert(-3, ["messages of a step", *(_milliseconds(p.communication_seconds) for p in plans)])
        rows.insert(-3, ["update of a step", *(_milliseconds(p.update_seconds) for p in plans)])
    if best.price is not None:
        rows.insert(-2, ["price", *(f"{p.price:,.2f}" for p in plans)])
    print_table(f"a plan for {target.name}", headings, rows)
    for other in others:
        if other.loss - best.loss >= LEAST_LOSS:
            lost = f"loses {other.loss - best.loss:.3f} nats per token"
            print(f"{other.parameters / best.parameters:.2g} x the size {lost}")
    for line in why:
        print(line)
    print_figures(target)
    print("assumed, not measured:")
    for line in best.assumptions:
        print(f"  {line}")


def _fit(options: Arguments, target: "Cluster") -> int:
    """Bytes of a model for inference and training, against the devices' memory."""
    from groundup import presets
    from groundup.accounting import cache_bytes, count_parameters
    from groundup.accounting.napkin import ADAMW_BYTES, largest_model

    config = presets.published(options.fit)
    context, count = options.context or config.context_length, count_parameters(config)
    cache = cache_bytes(config)
    bytes_of = {
        "weights in bf16": 2 * count.total,
        f"cache of one row of {plural(context, 'token')} in bf16": cache.per_token * context + cache.fixed,
        f"training state with AdamW, {ADAMW_BYTES} bytes per parameter": ADAMW_BYTES * count.total,
    }
    there = target.memory_bytes
    rows = [[name, f"{size / 1e9:,.1f} GB", f"{size / there:.2f}"] for name, size in bytes_of.items()]
    print_table(f"{options.fit}, {count.total:,} parameters ({count.active:,} met by a token), on {target.name}",
                ["", "bytes", f"of {there / 1e9:,.0f} GB"], rows)  # fmt: skip
    most = largest_model(target.count, device_bytes=target.device.memory_bytes)
    print(
        f"the largest model whose training state fits, sharded and without activations: {most / 1e9:,.1f} B parameters"
    )
    if options.json:
        print_json({"model": options.fit, "parameters": count.total, "active": count.active, "bytes": bytes_of,
                    "memory_bytes": there, "largest_parameters": most, "device": target.name})  # fmt: skip
    return 0


def _list_devices(options: Arguments) -> int:
    from groundup.accounting.devices import DEVICES

    if options.json:
        print_json({name: asdict(device) for name, device in DEVICES.items()})
        return 0
    headings = ["name", "", "TFLOP/s, dense", "with sparsity", "fp8", "GB", "GB/s", "FLOPs per byte", "W", "source"]
    rows = [
        [name, d.name, _tera(d.peak_flops), _tera(d.sparse), _tera(d.fp8), f"{d.memory_bytes / 1e9:g}",
         f"{d.bandwidth / 1e9:,.0f}", f"{d.ridge:.0f}", f"{d.watts:g}",
         d.source + (f" ({d.doubt})" if d.doubt else "")]
        for name, d in DEVICES.items()
    ]  # fmt: skip
    print_table("bf16 (fp16 where there is none), by data sheets", headings, rows, words=(0, 1, 9))
    return 0


def amount(text: str) -> float:
    """A number as people write large ones.

    >>> amount("1.4B"), amount("1e18"), amount("200M")
    (1400000000.0, 1e+18, 200000000.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([KMBGTkmbgt]?)\s*", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount, such as 1e18, 1.4B or 200M")
    return float(match[1]) * POWERS[match[2].upper()]


def tokens_of(text: str) -> float:
    """Tokens in so much text: "11GB" at 4 bytes a token, or "3B tokens" as it stands.

    >>> tokens_of("11GB"), tokens_of("3B tokens")
    (2750000000.0, 3000000000.0)
    """
    words = text.strip().lower()
    try:
        if words.endswith("tokens"):
            return amount(words.removesuffix("tokens"))
        if words.endswith(("bytes", "gb", "mb", "tb", "kb")):
            return amount(words.removesuffix("bytes").removesuffix("b")) / BYTES_PER_TOKEN
    except argparse.ArgumentTypeError:
        pass
    raise ValueError(f"--text {text!r}: expected a size such as 11GB, or a number such as 3B tokens")


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:.2f} h" if hours >= 1 else f"{seconds / 60:.1f} min"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def _tera(flops: float | None) -> str:
    return "" if flops is None else f"{flops / 1e12:,.0f}"
