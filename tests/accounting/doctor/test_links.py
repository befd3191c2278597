"""Links: the figures by hand, two real processes, and what is not there."""

import pytest
import torch

from groundup.accounting.communication import wire_share
from groundup.accounting.doctor import child, links
from groundup.accounting.doctor.links import (
    COLLECTIVES,
    Link,
    Transfer,
    collectives,
    link,
    measure_links,
    seconds_for,
)


def test_a_ring_all_reduce_sends_nearly_twice_the_message():
    """n ranks: n-1 turns of a sum and n-1 of handing on, each with 1/n of the message."""
    for ranks in (2, 3, 8):
        assert wire_share("all-reduce", ranks) == pytest.approx(2 * wire_share("all-gather", ranks))
        assert wire_share("all-gather", ranks) == pytest.approx((ranks - 1) / ranks)
    assert wire_share("peer copy", 8) == 1


def test_latency_is_the_smallests_and_bandwidth_the_largests():
    found = link("all-reduce", "4 GPUs", [Transfer(1000, 2.0), Transfer(10, 0.5)], ranks=4)
    assert found.latency_seconds == 0.5
    assert found.bandwidth == 1.5 * 1000 / 2.0
    assert [transfer.bytes for transfer in found.transfers] == [10, 1000]
    assert seconds_for(found, 750) == pytest.approx(0.5 + 1.0)
    assert seconds_for(found, 0) == 0.5


def test_no_transfers_no_figures():
    nothing = link("peer copy", "GPUs", [])
    assert nothing.bandwidth is None and nothing.error == "nothing was measured"
    with pytest.raises(ValueError, match=r"peer copy GPUs: not measured \(nothing was measured\)"):
        seconds_for(nothing, 1)


@pytest.mark.slow
def test_two_processes_of_this_machine():
    found = collectives("gloo", 2, sizes=(4096, 65536))
    assert [way.kind for way in found] == list(COLLECTIVES) and not any(way.error for way in found)
    for way in found:
        assert [transfer.bytes for transfer in way.transfers] == [4096, 65536]
        assert way.latency_seconds is not None and way.latency_seconds > 0 and way.bandwidth is not None
        assert way.bandwidth == wire_share(way.kind, 2) * 65536 / way.transfers[-1].seconds
        assert way.between == "2 processes (gloo)"


@pytest.mark.slow
def test_what_fails_says_why_and_leaves_no_process():
    for way in collectives("no such backend", 2, sizes=(4096,)):
        assert way.bandwidth is None and "no such backend" in way.error.lower()


def test_a_child_that_hangs_is_ended():
    process = child.start("timeit", "import time; time.sleep(60)")
    assert child.finish(process, 0.05) == ("", "no answer within 0.05 s")
    assert process.poll() is not None


def test_only_a_file_can_be_run():
    with pytest.raises(ValueError, match="module sys: it has no file"):
        child.start("sys")


def test_the_last_words_are_short():
    assert child.last_words("Traceback\n  line\nValueError: no\n\n") == "ValueError: no"
    assert child.last_words("") == "no message"
    assert len(child.last_words("x" * 10_000)) < 300


def test_what_is_not_there_is_said(monkeypatch):
    made = Link("all-reduce", "2 processes (gloo)", 1e-4, 1e9)
    monkeypatch.setattr(links, "collectives", lambda backend, ranks: [made])
    assert measure_links(torch.device("cpu")) == [made, Link("peer copy", "GPUs", error="no GPU is used here (cpu)")]
    assert {way.error for way in links._between_gpus(1)} == {"one GPU alone"}


def test_one_rank_has_no_link():
    with pytest.raises(ValueError, match="1 ranks: a link has two ends"):
        measure_links(torch.device("cpu"), ranks=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies between host and device need a CUDA GPU")
def test_host_copies():
    found = links.host_copies(torch.device("cuda"), seconds=0.001)
    assert [way.kind for way in found] == 2 * ["host to device", "device to host"]
    assert all(way.bandwidth and len(way.transfers) == len(links.SIZES) for way in found)
