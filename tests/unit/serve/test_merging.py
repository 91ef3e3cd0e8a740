"""Whether sources that are read side by side keep their order, their errors and their ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from subsecond.serve.merging import merged


async def numbers(*values: int, closed: list[str] | None = None) -> AsyncGenerator[int, None]:
    try:
        for value in values:
            await asyncio.sleep(0)
            if value < 0:
                raise ValueError(f"{value} is below 0")
            yield value
    finally:
        if closed is not None:
            closed.append("closed")


async def read(*sources: AsyncGenerator[int, None]) -> list[tuple[int, int]]:
    async with aclosing(merged(sources)) as batches:
        return [item async for batch in batches for item in batch]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_source_keeps_its_order(count: int) -> None:
    found = asyncio.run(read(*(numbers(*range(number + 3)) for number in range(count))))
    for number in range(count):
        assert [value for source, value in found if source == number] == list(range(number + 3))


def test_what_is_ready_comes_at_once() -> None:
    async def sizes() -> list[int]:
        async with aclosing(merged([numbers(1, 2, 3) for _ in range(8)])) as batches:
            return [len(batch) async for batch in batches]

    assert asyncio.run(sizes()) == [8, 8, 8]


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_comes_after_the_items_before_it(count: int) -> None:
    closed: list[str] = []

    async def run() -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        sources = [numbers(1, 2, -1), *(numbers(*range(100), closed=closed) for _ in range(count - 1))]
        with pytest.raises(ValueError, match="-1 is below 0"):
            async with aclosing(merged(sources)) as batches:
                async for batch in batches:
                    found += batch
        return found

    found = asyncio.run(run())
    assert [value for source, value in found if source == 0] == [1, 2]
    assert closed == ["closed"] * (count - 1)


@pytest.mark.parametrize("count", [1, 3])
def test_leaving_early_closes_every_source(count: int) -> None:
    closed: list[str] = []

    async def run() -> int:
        async with aclosing(merged([numbers(1, 2, 3, closed=closed) for _ in range(count)])) as batches:
            async for _ in batches:
                break
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
    assert closed == ["closed"] * count


def test_no_source_is_no_item() -> None:
    assert asyncio.run(read(numbers(), numbers())) == []
