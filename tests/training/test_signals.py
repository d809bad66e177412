from __future__ import annotations

import signal
import threading

import pytest

from pykinml_func.training.signals import heard_signals

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_heard_and_does_nothing_else(number: int) -> None:
    with heard_signals() as signals:
        assert signals.received == 0
        signal.raise_signal(number)
        assert signals.received == number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_may_repeat_itself(number: int) -> None:
    with heard_signals() as signals:
        for _ in range(3):
            signal.raise_signal(number)
        assert signals.received == number


def test_a_second_ctrl_c_interrupts() -> None:
    with heard_signals() as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT


def test_afterwards_signals_do_what_they_did() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(KeyError), heard_signals():
        assert all(signal.getsignal(number) not in before for number in NUMBERS)
        signal.raise_signal(signal.SIGINT)
        raise KeyError
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_another_thread_hears_nothing_and_changes_nothing() -> None:
    """Python lets the main thread alone handle signals."""
    before, seen = [signal.getsignal(number) for number in NUMBERS], []

    def listen() -> None:
        with heard_signals() as signals:
            seen.append((signals.received, [signal.getsignal(number) for number in NUMBERS]))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
