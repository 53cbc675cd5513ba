"""Notices requests that wait in the kernel while a cell runs, so that a cell that only shows something can end."""

from __future__ import annotations

from typing import Any


class Queue:
    """Requests that wait for the end of the current cell: further cells, a moved slider, a reloaded page.

    Requests that waited from the beginning do not count: Run All sends all cells at once. A kernel other than
    ipykernel's always seems to have none.
    """

    def __init__(self, kernel: Any):
        self._stream = _stream(kernel)
        # Run All: the next cells wait from the start, so that requests would be no news. Then the cell runs to its end.
        self._begins_empty = not self._has_messages()

    def has_grown(self) -> bool:
        """True once a request waits, if none did when the cell began."""
        return self._begins_empty and self._has_messages()

    def close(self) -> None:
        """Make the kernel look for requests: polling the socket here used up the signal that its loop waits for."""
        if self._stream is not None:
            # ZeroMQ signals a request once; a poll takes the signal, and the kernel's own loop would sleep until the
            # next one.
            self._stream.io_loop.add_callback(self._stream.flush)

    def _has_messages(self) -> bool:
        # 0: poll without waiting
        return self._stream is not None and bool(self._stream.socket.poll(0))


def _stream(kernel: Any) -> Any:
    """The stream on which requests reach the main thread; since ipykernel 7 another thread passes them on."""
    # ipykernel 7 and newer read requests in a thread of their own; before, the main thread reads them itself.
    thread = getattr(kernel, "shell_channel_thread", None)
    if thread is None:
        return getattr(kernel, "shell_stream", None)
    # ipykernel has no public way to this socket.
    pair = getattr(thread.manager, "_shell_channel_to_main", None)
    return getattr(pair, "to_stream", None)
