"""Several async sources read side by side: whatever is ready of any of them comes at once, tagged by its source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merged(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[list[tuple[int, Item]], None]:
    """Yield (number of the source, item) of all that is ready, as often as something is; closes the sources.

    The items of one source stay in their order. What a source raises is raised after the items before it.
    """
    if len(sources) == 1:  # by far the most frequent case, which needs no tasks
        async with aclosing(sources[0]) as source:
            async for item in source:
                yield [(0, item)]
        return
    ready: list[tuple[int, Item]] = []
    news = asyncio.Event()

    async def pump(number: int, source: AsyncGenerator[Item, None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    ready.append((number, item))
                    news.set()
        finally:
            news.set()

    pumps = [asyncio.create_task(pump(number, source)) for number, source in enumerate(sources)]
    try:
        while True:
            await news.wait()
            news.clear()
            is_done = all(task.done() for task in pumps)
            if ready:
                batch, ready[:] = list(ready), []
                yield batch
            for task in pumps:
                if task.done() and (error := task.exception()) is not None:
                    raise error
            if is_done and not ready:
                return
            if is_done:
                news.set()
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
