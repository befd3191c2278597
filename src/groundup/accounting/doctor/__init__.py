"""What this machine is, what it can do, and what is wrong with it: `groundup doctor`."""

from groundup.accounting.doctor.card import Card, Peak, examine, peaks
from groundup.accounting.doctor.check import Check, exit_code
from groundup.accounting.doctor.check_software import software_checks
from groundup.accounting.doctor.check_system import system_checks
from groundup.accounting.doctor.links import Link, Transfer, measure_links, seconds_for
from groundup.accounting.doctor.saved import SavedCard, card_path, load_card, save_card, with_card

__all__ = [
    "Card",
    "Check",
    "Link",
    "Peak",
    "SavedCard",
    "Transfer",
    "card_path",
    "examine",
    "exit_code",
    "load_card",
    "measure_links",
    "peaks",
    "save_card",
    "seconds_for",
    "software_checks",
    "system_checks",
    "with_card",
]
