"""Signals during a block: the first is a request, the second is Ctrl-C, and afterwards all is as it was."""

import os
import signal
import threading

import pytest

from groundup.train.interrupt import SIGNALS, catch_signals


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks(number, caplog):
    with catch_signals() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
    assert f"{signal.Signals(number).name}: finishing this step" in caplog.text


def test_the_second_stops_at_once_whichever_it_is():
    with pytest.raises(KeyboardInterrupt, match="second SIGTERM"), catch_signals() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_error_puts_the_handlers_back_too():
    with pytest.raises(RuntimeError), catch_signals():
        raise RuntimeError


def test_in_another_thread_nothing_is_diverted():
    seen = []

    def work():
        with catch_signals() as interrupt:
            seen.append((interrupt.requested, [signal.getsignal(number) for number in SIGNALS]))

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
