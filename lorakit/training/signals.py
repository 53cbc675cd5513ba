"""What asks a trainer to stop: SIGINT, SIGTERM, a terminal that is closed; the second acts as if we were not here."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP (unless nohup has it ignored) set; a second signal acts as if we were
    not here."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, previous)  # a detached trainer could not be told to stop before
    try:
        yield stop
    finally:
        restore()
