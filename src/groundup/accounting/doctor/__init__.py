"""What this machine is, what it can do, and what is wrong with it: `groundup doctor`."""

from groundup.accounting.doctor.card import Card, Peak, examine, peaks
from groundup.accounting.doctor.check import Check, exit_code
from groundup.accounting.doctor.check_software import software_checks
from groundup.accounting.doctor.check_system import system_checks
from groundup.accounting.doctor.links import Link, Transfer, measure_links, seconds_for

__all__ = [
    "Card",
    "Check",
    "Link",
    "Peak",
    "Transfer",
    "examine",
    "exit_code",
    "measure_links",
    "peaks",
    "seconds_for",
    "software_checks",
    "system_checks",
]
