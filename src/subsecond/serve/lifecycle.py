"""Where the server is between its start and its end; knows no signals and no sockets."""

from __future__ import annotations

import asyncio
from typing import Literal

Phase = Literal["starting", "serving", "draining"]


class Lifecycle:
    """Starting until the first model is loaded, then serving, then draining until nothing runs. Event loop alone."""

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        self.num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin_serving(self) -> None:
        """The first model is loaded."""
        assert self.phase == "starting"
        self.phase = "serving"

    def begin_draining(self) -> None:
        """Take no new work."""
        self.phase = "draining"

    def enter(self) -> None:
        """A request begins."""
        self.num_running += 1
        self._idle.clear()

    def leave(self) -> None:
        """It has ended."""
        self.num_running -= 1
        if not self.num_running:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no request runs."""
        await self._idle.wait()
