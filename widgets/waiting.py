"""Whether a kernel is asked for something else while a cell runs, so that one that only watches can give way."""

from __future__ import annotations

from typing import Any


class Queue:
    """What waits until the cell that runs now has ended: further cells, a slider that was moved, a page loaded again.

    What waits from the beginning (Run All sends all cells at once) is not counted; of a kernel that is not ipykernel's
    nothing is seen to wait.
    """

    def __init__(self, kernel: Any):
        self._stream = _stream(kernel)
        self._begins_empty = not self._has_messages()

    def has_grown(self) -> bool:
        """True once something waits that did not when the cell began."""
        return self._begins_empty and self._has_messages()

    def close(self) -> None:
        """Let the kernel look for what waits: having looked here, its own loop may not be told of it again."""
        if self._stream is not None:
            self._stream.io_loop.add_callback(self._stream.flush)

    def _has_messages(self) -> bool:
        return self._stream is not None and bool(self._stream.socket.poll(0))


def _stream(kernel: Any) -> Any:
    """The stream on which requests reach the main thread; since ipykernel 7 another thread passes them on."""
    thread = getattr(kernel, "shell_channel_thread", None)
    if thread is None:
        return getattr(kernel, "shell_stream", None)
    pair = getattr(thread.manager, "_shell_channel_to_main", None)  # there is no public way to it
    return getattr(pair, "to_stream", None)
