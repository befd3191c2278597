"""`groundup doctor`: what this machine is, what it can do, and what is wrong with it."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import Arguments, Parser, add_device, number, print_json, print_table, whole_number
from groundup.config import plural

if TYPE_CHECKING:
    import torch

    from groundup.accounting import Machine
    from groundup.accounting.doctor import Card, Check, Link

PROBE_SHARE = 0.25  # of the time, for choosing precision and threads as a build does


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("--seconds", type=number, default=4.0, metavar="X", help="how long to measure (default: %(default)s)")
    add("--links", action="store_true", help="also measure links: between processes or GPUs, and host to GPU")
    add("--ranks", type=whole_number, default=2, metavar="N",
        help="processes that --links joins on a CPU (default: %(default)s)")  # fmt: skip
    add("--full", action="store_true",
        help="also try torch.compile and the tokenizer's kernels; all types on one core")  # fmt: skip
    add("--save", nargs="?", const="", metavar="FILE",
        help="keep the card for groundup plan, which then takes these figures (default: in the cache)")  # fmt: skip
    add("--folder", metavar="DIR", default="runs",
        help="where runs are written: its disk is tried (default: %(default)s)")  # fmt: skip
    add_device(parser)
    add("--json", action="store_true", help="print one JSON object instead of the tables")


def run(options: Arguments) -> int:
    """Look, measure, print; returns 1 when something is broken."""
    from groundup.accounting.doctor import examine, exit_code, measure_links, software_checks, system_checks
    from groundup.accounting.hardware import probe
    from groundup.device import default_device, require_device

    if not 0 < options.seconds <= 600:
        raise ValueError(f"--seconds {options.seconds:g}: expected more than 0, and at most 600")
    if options.ranks < 2:
        raise ValueError(f"--ranks {options.ranks}: a link has two ends; expected at least 2")
    device = require_device(options.device) if options.device else default_device()
    checks = system_checks(Path(options.folder))  # first: measuring is a load itself
    _say(f"measuring for about {options.seconds:g} s")
    machine = probe(device, PROBE_SHARE * options.seconds)
    card = examine(device, (1 - PROBE_SHARE) * options.seconds, full=options.full, seen=machine.gemm_flops,
                   copied=machine.bandwidth)  # fmt: skip
    checks += software_checks(device, card.rates, full=options.full)
    links = measure_links(device, options.ranks) if options.links else []
    if options.save is not None:
        _save(card, links, device, options.save)
    if options.json:
        print_json(_content(machine, card, checks, links, measured=options.links))
    else:
        _print(machine, card, checks, links, full=options.full)
    return exit_code(checks)


def _save(card: "Card", links: "list[Link]", device: "torch.device", file: str) -> None:
    from groundup.accounting.doctor.saved import device_count, save_card, saved

    path = save_card(saved(card, links, device_count(device)), Path(file) if file else None)
    _say(f"the card is kept in {path}" + ("" if links else "; it knows nothing of links (--links)"))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _content(
    machine: "Machine", card: "Card", checks: "list[Check]", links: "list[Link]", *, measured: bool
) -> dict[str, Any]:
    from groundup.device import environment

    found = [asdict(p) | {"assumed": p.assumed, "share": p.share, "raised": p.raised} for p in card.peaks]
    probed = {name: value for name, value in asdict(machine).items() if name != "bandwidth"}  # the card's memory.copy
    return {
        **probed,
        "card": {**asdict(card), "peaks": found},
        "checks": [asdict(check) for check in checks],
        "links": [asdict(link) for link in links] if measured else None,
        "environment": environment(),
    }


def _print(machine: "Machine", card: "Card", checks: "list[Check]", links: "list[Link]", *, full: bool) -> None:
    _print_card(card)
    _print_rates(card)
    _print_steps(card)
    if links:
        _print_links(links)
    print(f"a build would choose: {machine.precision} on {plural(machine.threads, 'thread')}")
    _print_checks(checks)
    if not full:
        print("not tried: torch.compile and the tokenizer's compiler (--full)" + ("" if links else ", links (--links)"))


def _print_card(card: "Card") -> None:
    from groundup.accounting.doctor.check import mebibytes

    what = "multiprocessor" if card.device.startswith("cuda") else "usable core"
    of = f" of {card.logical_processors} processors" if card.logical_processors else ""
    held = [f"L{c.level} {c.kind.lower()} {mebibytes(c.bytes)}{f' x {c.instances}' if c.instances > 1 else ''}"
            for c in card.caches]  # fmt: skip
    print(f"device      {card.name} ({card.device}), {plural(card.cores, what)}{of}")
    print(f"caches      {', '.join(held) or 'the system does not say'}")
    print(f"memory      {mebibytes(card.memory_bytes)}, {mebibytes(card.free_bytes)} of them free")
    memory = card.memory
    print(f"            read {_giga(memory.read)}, written {_giga(memory.write)}, copied {_giga(memory.copy)} GB/s "
          "(copied: both ways counted)")  # fmt: skip


def _print_rates(card: "Card") -> None:
    rows = [
        [rate.dtype, str(rate.threads), f"{rate.flops / 1e9:,.0f}", " x ".join(map(str, rate.shape))]
        for rate in card.rates if rate.flops and rate.shape
    ]  # fmt: skip
    print_table("\nMatrix products, the best of several shapes", ("type", "threads", "GFLOP/s", "shape"), rows)
    if card.specified is None:
        print("no data sheet of this device is known here: the measured rates are the peaks")
        return
    rows = [
        [peak.what, _tera(peak.measured), _tera(peak.specified) if peak.specified else "", f"{peak.share:.0%}",
         "more than promised: the measured rate is the peak" if peak.raised else ""] for peak in card.peaks
    ]  # fmt: skip
    headings = ("", "measured T/s", "promised T/s", "reached", "")
    print_table(f"Beside the data sheet ({card.specified.source})", headings, rows, words=(0, 4))


def _print_steps(card: "Card") -> None:
    from groundup.accounting.doctor.check import mebibytes

    level = {place.name: _giga(place.bandwidth) if place.bandwidth else "not seen" for place in card.levels}
    most = max((reading.bandwidth for reading in card.readings), default=1.0)
    bars = ["#" * max(1, round(40 * reading.bandwidth / most)) for reading in card.readings]
    rows = [[mebibytes(r.bytes), _giga(r.bandwidth), bar] for r, bar in zip(card.readings, bars, strict=True)]
    who = "the GPU" if card.device.startswith("cuda") else "one core"
    print_table(f"\nWorking sets, read again and again by {who}", ("size", "GB/s", ""), rows, words=(2,))
    print("by level    " + ", ".join(f"{name} {rate}" for name, rate in level.items()) + " (GB/s)")


def _print_links(links: "list[Link]") -> None:
    rows = []
    for link in links:
        if link.latency_seconds is None or link.bandwidth is None:
            rows.append([link.kind, link.between, "", "", link.error])
        else:
            latency, rate = f"{1e6 * link.latency_seconds:,.0f}", f"{link.bandwidth / 1e9:,.2f}"
            rows.append([link.kind, link.between, latency, rate, ""])
    print_table("\nLinks", ("", "between", "latency, us", "GB/s", "not measured"), rows, words=(0, 1, 4))


def _print_checks(checks: "list[Check]") -> None:
    rows = [[check.name, check.state, check.why, check.fix] for check in checks]
    print_table("\nWhat works", ("", "", "why", "what to do"), rows, words=(0, 1, 2, 3))
    counted = {state: sum(check.state == state for check in checks) for state in ("broken", "warning")}
    print(f"{counted['broken']} broken, {plural(counted['warning'], 'warning')}")


def _giga(rate: float) -> str:
    return f"{rate / 1e9:,.1f}"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:,.4g}"
