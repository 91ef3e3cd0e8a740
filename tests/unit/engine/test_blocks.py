"""Block allocator: blocks add up, are shared exactly when their whole past is equal, and are reused oldest first."""

from __future__ import annotations

import random

import pytest

from subsecond.engine.blocks import BlockAllocator, BlockTable


def allocator(num_blocks: int = 8) -> BlockAllocator:
    return BlockAllocator(num_blocks, 4, variant="v")


def opened(pool: BlockAllocator, token_ids: list[int], salt: str = "") -> BlockTable:
    table = pool.open(token_ids, salt)
    assert table is not None
    return table


def computed(pool: BlockAllocator, token_ids: list[int], salt: str = "") -> BlockTable:
    """Open a table and publish all its full blocks."""
    table = opened(pool, token_ids, salt)
    pool.publish(table, token_ids, len(token_ids))
    return table


def test_full_blocks_are_shared() -> None:
    pool = allocator()
    first = computed(pool, list(range(10)))
    second = opened(pool, [*range(8), 99])
    assert second.blocks[:2] == first.blocks[:2]
    assert second.num_cached_blocks == 2
    assert second.blocks[2] != first.blocks[2]
    pool.check([first, second])


def test_the_last_prompt_token_is_always_computed() -> None:
    pool = allocator()
    computed(pool, list(range(8)))
    assert opened(pool, list(range(8))).num_cached_blocks == 1


def test_a_block_is_not_shared_after_a_different_past() -> None:
    pool = allocator()
    computed(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert opened(pool, [9, 2, 3, 4, 5, 6, 7, 8, 9]).num_cached_blocks == 0
    assert opened(pool, [5, 6, 7, 8, 9]).num_cached_blocks == 0


def test_a_block_is_not_shared_in_another_chain() -> None:
    pool = allocator()
    computed(pool, [1, 2, 3, 4, 5, 6, 7, 8, 0])
    computed(pool, [9, 9, 9, 9, 0])
    assert opened(pool, [9, 9, 9, 9, 5, 6, 7, 8, 0]).num_cached_blocks == 1


def test_only_computed_blocks_are_shared() -> None:
    pool = allocator(16)
    tokens = list(range(16))
    first = opened(pool, tokens)
    pool.publish(first, tokens, 7)
    assert opened(pool, tokens).num_cached_blocks == 1
    pool.publish(first, tokens, 8)
    assert opened(pool, tokens).num_cached_blocks == 2


def test_salts_never_share() -> None:
    pool = allocator()
    computed(pool, list(range(9)), "one tenant")
    assert opened(pool, list(range(9)), "another").num_cached_blocks == 0
    assert opened(pool, list(range(9)), "one tenant").num_cached_blocks == 2


def test_equal_hashes_do_not_share() -> None:
    pool = allocator()
    assert hash(-1) == hash(-2)  # two prompts whose keys have the same hash in every table built on hash()
    computed(pool, [-1, -1, -1, -1, 5])
    assert opened(pool, [-2, -2, -2, -2, 5]).num_cached_blocks == 0


def test_a_parent_that_was_replaced_does_not_adopt() -> None:
    pool = allocator(2)
    chain = computed(pool, [1, 2, 3, 4, 5, 6, 7, 8])
    pool.close(chain)
    pool.close(opened(pool, [9, 9, 9, 9, 9, 9, 9, 9]))  # takes both blocks: the chain is forgotten
    pool.close(computed(pool, [1, 2, 3, 4, 0]))
    again = opened(pool, [1, 2, 3, 4, 5, 6, 7, 8])
    assert again.num_cached_blocks == 1
    pool.check([again])


def test_released_blocks_stay_usable_until_they_are_needed() -> None:
    pool = allocator(3)
    pool.close(computed(pool, list(range(8))))
    assert pool.num_free == 3
    again = opened(pool, list(range(9)))
    assert again.num_cached_blocks == 2
    pool.check([again])


def test_least_recently_used_is_reused_first_and_ends_before_starts() -> None:
    pool = allocator(4)
    pool.close(computed(pool, [1] * 8))
    pool.close(computed(pool, [2] * 8))
    pool.close(opened(pool, [3]))  # takes one block: the end of the older chain
    old = opened(pool, [1] * 5)
    assert old.num_cached_blocks == 1
    pool.close(old)
    new = opened(pool, [2] * 8)
    assert new.num_cached_blocks == 1
    pool.check([new])


def test_a_block_computed_twice_is_kept_once() -> None:
    pool = allocator()
    tokens = list(range(8))
    first, second = opened(pool, tokens), opened(pool, tokens)
    for table in (first, second):
        pool.publish(table, tokens, 8)
    assert first.blocks == second.blocks
    assert pool.num_free == 6
    pool.check([first, second])


def test_no_more_is_shared_than_allowed() -> None:
    pool = allocator()
    first = computed(pool, list(range(9)))
    second = pool.open(list(range(9)), "", max_shared=7)
    assert second is not None
    assert second.num_cached_blocks == 1
    assert second.blocks[0] == first.blocks[0]
    assert not set(first.blocks[1:]) & set(second.blocks)
    pool.check([first, second])


def test_open_leaves_the_spare_blocks() -> None:
    pool = allocator(4)
    assert pool.open(list(range(12)), "", num_spare=2) is None
    assert pool.num_free == 4
    assert pool.open(list(range(12)), "", num_spare=1) is not None


def test_grow_does_all_or_nothing() -> None:
    pool = allocator(3)
    table = opened(pool, [1])
    assert not pool.grow(table, 13)
    assert len(table.blocks) == 1
    assert pool.grow(table, 12)
    assert len(table.blocks) == 3


def test_truncate_drops_whole_blocks_only() -> None:
    pool = allocator()
    table = opened(pool, list(range(16)))
    assert pool.truncate(table, 6) == 6
    assert len(table.blocks) == 2
    pool.check([table])


def test_truncate_never_leaves_a_cached_block_to_be_written() -> None:
    pool = allocator()
    table = computed(pool, list(range(16)))
    assert pool.truncate(table, 6) == 4
    assert (len(table.blocks), table.num_cached_blocks) == (1, 1)
    assert pool.grow(table, 8)
    pool.publish(table, [0, 1, 2, 3, 9, 9, 9, 9], 8)
    assert opened(pool, list(range(9))).num_cached_blocks == 2
    assert opened(pool, [0, 1, 2, 3, 9, 9, 9, 9, 9]).blocks[:2] == table.blocks


@pytest.mark.parametrize("seed", range(5))
def test_random_use_adds_up(seed: int) -> None:
    choose = random.Random(seed)
    pool = allocator(10)
    tables: list[tuple[BlockTable, list[int]]] = []
    for _ in range(400):
        action = choose.random()
        if action < 0.4:
            tokens = [choose.randrange(2) for _ in range(choose.randrange(1, 20))]
            table = pool.open(tokens, choose.choice("ab"))
            if table is not None:
                tables.append((table, tokens))
        elif tables and action < 0.6:
            pool.close(tables.pop(choose.randrange(len(tables)))[0])
        elif tables and action < 0.8:
            table, tokens = choose.choice(tables)
            pool.publish(table, tokens, choose.randrange(len(tokens) + 1))
        elif tables:
            table, tokens = choose.choice(tables)
            kept = pool.truncate(table, choose.randrange(len(tokens) + 1))
            assert kept <= len(tokens)
            del tokens[kept:]
            tokens += [choose.randrange(2)]
            if not pool.grow(table, len(tokens)):
                tokens.pop()
        pool.check([table for table, _ in tables])
    for table, _ in tables:
        pool.close(table)
    assert pool.num_free == 10
