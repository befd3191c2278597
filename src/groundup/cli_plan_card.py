"""Of `groundup plan`: the card of a measured machine, and which figures of a plan are its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import Arguments, print_table

if TYPE_CHECKING:
    from groundup.accounting.devices import Cluster


def as_measured(target: "Cluster", options: Arguments) -> "Cluster":
    """With the figures of the card that is named; else of the one kept here, where it is of such devices."""
    from groundup.accounting.devices import recognise
    from groundup.accounting.doctor.saved import card_path, load_card, with_card

    if options.fit and options.card not in (None, "none"):
        raise ValueError("--card is for a plan of a training run; leave it out beside --fit")
    if options.fit or options.card == "none":
        return target
    if options.card is not None:
        return with_card(target, load_card(Path(options.card)))
    try:
        card = load_card()
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:
        print(f"the card kept in {card_path()} is passed over: {error}")
        return target
    if recognise(card.name) is not target.device:
        return target  # it is of this machine, and the plan is for another
    try:
        return with_card(target, card)
    except ValueError as error:
        print(f"data sheets only: {error}")
        return target


def print_figures(target: "Cluster") -> None:
    """As `figures`, in thousands of millions."""
    rows = [
        [row["figure"], f"{row['used'] / 1e9:,.4g}" if row["used"] else "not used", row["from"],
         f"{row['promised'] / 1e9:,.4g}" if row["promised"] else "none"] for row in figures(target)
    ]  # fmt: skip
    headings = ("of each device, G/s", "used here", "from", "data sheet")
    print_table("figures", headings, rows, words=(0, 2))


def figures(target: "Cluster") -> list[dict[str, Any]]:
    """What the plan rests on: each rate per second as it was used, where that is from, and what is promised.

    None under `used` where the plan's MFU holds it already. Links: bytes that a device sends, half of what data sheets
    print for both directions.
    """
    device, measured, sheet = target.device, target.measured, f"data sheet: {target.device.source}"
    link = measured.link_bandwidth if measured else None
    seen = f"measured: {measured.source}" if measured else sheet
    return [
        {"figure": "FLOPs of matrix products", "used": target.device_flops, "from": seen,
         "promised": device.peak_flops},
        {"figure": "bytes of memory", "used": measured.bandwidth if measured and (link or target.count == 1) else None,
         "from": seen, "promised": device.bandwidth},
        {"figure": "bytes over the link", "used": link, "from": seen if link else sheet,
         "promised": device.link and device.link / 2},
    ]  # fmt: skip
