"""Wakes the async readers of a step's streams from a thread of its own, so that the engine does not wait for them.

An event loop that is woken wants the interpreter at once, and waking one lets go of it for a system call: the engine's
thread would stand still until all readers have had their turn. This thread gets the interpreter when the engine is in
native code again.
"""

from __future__ import annotations

from queue import SimpleQueue
from threading import Thread

from subsecond.engine.stream import TokenStream, wake_readers


class ReaderWaker:
    """Wakes readers until it is closed; its thread starts with the first async one."""

    def __init__(self) -> None:
        self._streams: SimpleQueue[list[TokenStream]] = SimpleQueue()
        self._thread: Thread | None = None

    def wake(self, streams: list[TokenStream]) -> None:
        """Have the async readers of these streams woken soon; threaded ones are awake already."""
        if not any(stream.has_async_reader for stream in streams):
            return
        if self._thread is None:
            self._thread = Thread(target=self._run, name="subsecond-waker", daemon=True)
            self._thread.start()
        self._streams.put(streams)

    def close(self) -> None:
        """End the thread once it has woken all that it was told to."""
        self._streams.put([])

    def _run(self) -> None:
        while streams := self._streams.get():
            wake_readers(streams)
