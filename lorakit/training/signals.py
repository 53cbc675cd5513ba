"""Signals that stop a trainer after its step: SIGINT, SIGTERM, SIGHUP (a closed terminal)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP (unless nohup has it ignored) set.

    The first signal restores the previous handlers, so a second one ends the process at once.
    """
    stop = threading.Event()
    # Python allows signal handlers in the main thread only
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in STOPS}
    if previous[signal.SIGHUP] == signal.SIG_IGN:
        del previous[signal.SIGHUP]

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: object) -> None:
        stop.set()
        restore()

    for number in previous:
        signal.signal(number, on_signal)
    # `jobs.start` blocks SIGINT until here: one that came earlier is delivered now
    signal.pthread_sigmask(signal.SIG_UNBLOCK, previous)
    try:
        yield stop
    finally:
        restore()
