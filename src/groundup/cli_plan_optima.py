"""The parts of `groundup plan` for a model that is served (--served-tokens) and for mixtures (--experts, --active)."""

from typing import TYPE_CHECKING, Any

from groundup.cli_parts import Arguments, print_json, print_table

if TYPE_CHECKING:
    from groundup.accounting.cluster_plan import Budget
    from groundup.accounting.devices import Cluster
    from groundup.accounting.lifetime_plan import LifetimePlan
    from groundup.accounting.moe_optimal import MoEOptimum

DAY = 86_400.0


def lifetime_lines(plan: "LifetimePlan") -> list[str]:
    """Why the plan is what it is, and what it saves."""
    served = f"{plan.served_tokens:.3g} served tokens"
    if plan.chosen is plan.usual:
        return [f"{served} are too few to pay for a smaller model that trains longer"]
    chosen, usual = plan.chosen, plan.usual
    return [
        f"chosen for {served}: {chosen.parameters / usual.parameters:.2g} x the size trained on "
        f"{chosen.tokens / usual.tokens:.2g} x the tokens has the same loss, because size and text replace each other",
        f"its training takes {chosen.seconds / usual.seconds:.2g} x the budget, and every served token "
        f"{(plan.chosen_flops - chosen.flops) / (plan.usual_flops - usual.flops):.2g} x the work",
        f"over its life that saves {plan.saved:.1%}: {_days(plan.chosen_device_seconds)} of one device instead of "
        f"{_days(plan.usual_device_seconds)}",
    ]


def lifetime_json(plan: "LifetimePlan") -> dict[str, Any]:
    """What --json adds."""
    names = ("served_tokens", "serving_mfu", "chosen_flops", "usual_flops", "chosen_device_seconds",
             "usual_device_seconds", "saved")  # fmt: skip
    return {name: getattr(plan, name) for name in names} | {"why": lifetime_lines(plan)}


def plan_experts(options: Arguments, budget: "Budget", target: "Cluster") -> int:
    """Print the best mixture of so many experts for a budget, beside the dense model; returns the exit code."""
    from groundup.accounting.cluster_plan import flops_of
    from groundup.accounting.compute_optimal import optimum
    from groundup.accounting.moe_optimal import KRAJEWSKI_DENSE, moe_optimum
    from groundup.accounting.napkin import ADAMW_BYTES

    _check(options, budget)
    flops = flops_of(budget, target)
    asked, best = moe_optimum(flops, [options.active]), moe_optimum(flops)
    dense = optimum(flops, KRAJEWSKI_DENSE)
    seconds = flops / (target.peak_flops * budget.mfu)
    models = [asked, best]
    rows = [
        ["active parameters", *(f"{m.active:.3g}" for m in models), f"{dense.parameters:.3g}"],
        ["all parameters", *(f"{m.parameters:.3g}" for m in models), f"{dense.parameters:.3g}"],
        ["tokens", *(f"{m.tokens:.3g}" for m in models), f"{dense.tokens:.3g}"],
        ["tokens per active parameter", *(f"{m.tokens_per_parameter:.1f}" for m in (*models, dense))],
        ["training state, AdamW", *(f"{ADAMW_BYTES * n / 1e9:,.0f} GB"
                                    for n in (asked.parameters, best.parameters, dense.parameters))],
        ["loss, nats per token", *(f"{m.loss:.3f}" for m in (*models, dense))],
    ]  # fmt: skip
    headings = ["", f"{options.experts:,} experts, {options.active} active", _experts(best), "dense"]
    print_table(f"{flops:.3g} FLOPs on {target.name}, {seconds / DAY:,.3g} days", headings, rows)
    notes = _notes(asked, ADAMW_BYTES, target)
    print("assumed, not measured:")
    for line in notes:
        print(f"  {line}")
    if options.json:
        from dataclasses import asdict

        shown = [asdict(m) | {"tokens_per_parameter": m.tokens_per_parameter} for m in (*models, dense)]
        print_json({**shown[0], "experts": options.experts, "active_experts": options.active, "flops": flops,
                    "seconds": seconds, "loss_unit": "nats per token", "device": target.name,
                    "best_granularity": shown[1], "dense": shown[2], "assumptions": notes})  # fmt: skip
    return 0


def _check(options: Arguments, budget: "Budget") -> None:
    from groundup.accounting.moe_optimal import KRAJEWSKI

    if options.experts is None or options.active is None:
        raise ValueError("--experts says how many there are and --active how many a token meets; give both")
    if options.active < 1 or options.experts != KRAJEWSKI.expansion * options.active:
        fit = int(KRAJEWSKI.expansion * max(1, options.active))
        raise ValueError(
            f"--experts {options.experts} --active {options.active}: the published law was fitted where the experts "
            f"together are {KRAJEWSKI.expansion:g} times as large as the active ones, e.g. --experts {fit} --active "
            f"{max(1, options.active)}; for others give your own constants to groundup.accounting.moe_optimal"
        )
    for name in ("unique_tokens", "parameters", "vocab_size", "context_length", "price_per_hour"):
        if getattr(budget, name) is not None:
            raise ValueError(
                f"--experts plans from --budget or --flops alone: its law knows no {name.replace('_', ' ')}"
            )


def _experts(best: "MoEOptimum") -> str:
    from groundup.accounting.moe_optimal import KRAJEWSKI

    return f"best: {int(KRAJEWSKI.expansion * best.granularity):,}, {best.granularity} active"


def _notes(asked: "MoEOptimum", state_bytes: int, target: "Cluster") -> list[str]:
    from groundup.accounting.moe_optimal import KRAJEWSKI

    needed = state_bytes * asked.parameters
    held = f"{needed / target.memory_bytes:.2g} times the memory that {target.name} has"
    return [
        f"the law of {KRAJEWSKI.fitted_on}; losses on C4, which compare with the dense column only",
        "parameters of blocks, without embeddings; work goes by the active ones, memory by all",
        f"the training state alone, sharded over all, is {held}; communication between experts is not counted",
    ]


def _days(seconds: float) -> str:
    return f"{seconds / DAY:,.3g} days"
