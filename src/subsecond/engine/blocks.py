"""Which key/value block belongs to whom: allocation, sharing by reference counts, prefix cache; never sees a tensor."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class BlockKey(NamedTuple):
    """What the content of a full block depends on. Compared in full, so equal hashes alone never share a block.

    `parent` is the serial number of the cached block before it, or 0. A serial number is never used twice, so a chain
    of equal keys means that all tokens up to the end of the block are equal.
    """

    parent: int
    token_ids: tuple[int, ...]
    variant: str
    salt: str


@dataclass(slots=True, eq=False)
class BlockTable:
    """The blocks of one sequence in order of position; the first `num_cached_blocks` are full and in the cache.

    `version` is another number after every change of `blocks`, so that copies know when they are out of date.
    """

    salt: str
    blocks: list[int] = field(default_factory=list)
    num_cached_blocks: int = 0
    parent: int = 0
    version: int = 0


class BlockAllocator:
    """A pool of blocks that hold `block_tokens` positions each.

    Every block is in exactly one state: free, held by tables (counted), or kept: cached and held by nobody, in the
    order in which it will be reused, least recently used first. Full blocks are shared, never written again.
    """

    def __init__(self, num_blocks: int, block_tokens: int, *, variant: str) -> None:
        assert num_blocks > 0
        assert block_tokens > 0
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._variant = variant
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_holders = [0] * num_blocks
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._block_by_key: dict[BlockKey, int] = {}
        self._key_by_block: dict[int, BlockKey] = {}
        self._serial_by_block: dict[int, int] = {}
        self._last_serial = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, kept ones included."""
        return len(self._free) + len(self._kept)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many positions."""
        return -(-num_tokens // self.block_tokens)

    def open(
        self, token_ids: Sequence[int], salt: str, *, num_spare: int = 0, max_shared: int | None = None
    ) -> BlockTable | None:
        """Return a table that holds all tokens, its start shared with the cache where possible.

        At most `max_shared` tokens are shared, and at least the last one is left to compute, because its logits are
        wanted. Returns None, and changes nothing
        but the order of reuse, if fewer than `num_spare` blocks would remain free.
        """
        table = BlockTable(salt)
        self._share_prefix(table, token_ids, len(token_ids) if max_shared is None else max_shared)
        num_missing = self.blocks_for(len(token_ids)) - len(table.blocks)
        if self.num_free < num_missing + num_spare:
            self.close(table)
            return None
        self.grow(table, len(token_ids))
        return table

    def grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Add blocks until the table holds `num_tokens`; False, and no change, if there are not enough."""
        num_missing = self.blocks_for(num_tokens) - len(table.blocks)
        if num_missing > self.num_free:
            return False
        table.version += 1
        for _ in range(num_missing):
            block = self._take()
            self._num_holders[block] = 1
            table.blocks.append(block)
        return True

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Put the table's full computed blocks into the cache; `token_ids` are those of the sequence from its start.

        Where the cache already has such a block, the table takes that one and frees its own.
        """
        size = self.block_tokens
        for index in range(table.num_cached_blocks, num_computed // size):
            key = self._key(table, token_ids, index)
            cached = self._block_by_key.get(key)
            if cached is None:
                self._insert(key, table.blocks[index])
            else:
                self._release(table.blocks[index])
                self._hold(cached)
                table.blocks[index] = cached
                table.version += 1
            self._follow(table, table.blocks[index])

    def truncate(self, table: BlockTable, num_tokens: int) -> int:
        """Give up positions from `num_tokens` on; return how many stay computed, at most `num_tokens`.

        Fewer stay where the cut falls into a cached block: those are never written again, so the rest of that one has
        to be computed anew, into another block.
        """
        num_kept_blocks = self.blocks_for(num_tokens)
        if num_kept_blocks <= table.num_cached_blocks and num_tokens % self.block_tokens:
            num_kept_blocks -= 1
            num_tokens = num_kept_blocks * self.block_tokens
        table.version += 1
        for block in reversed(table.blocks[num_kept_blocks:]):
            self._release(block)
        del table.blocks[num_kept_blocks:]
        if table.num_cached_blocks > num_kept_blocks:
            table.num_cached_blocks = num_kept_blocks
            table.parent = self._serial_by_block[table.blocks[-1]] if table.blocks else 0
        return num_tokens

    def close(self, table: BlockTable) -> None:
        """Release all blocks of a table; the cached ones stay usable, the end of a chain is reused first."""
        self.truncate(table, 0)

    def check(self, tables: Iterable[BlockTable]) -> None:
        """Assert that all blocks add up, given every open table; for tests."""
        holders = Counter(block for table in tables for block in table.blocks)
        free, kept, held = set(self._free), set(self._kept), set(holders)
        assert len(free) == len(self._free), "a block is free twice"
        assert not (free & kept or free & held or kept & held), "a block is in two states"
        assert free | kept | held == set(range(self.num_blocks)), "a block is lost"
        assert all(self._num_holders[block] == holders[block] for block in range(self.num_blocks)), "a wrong count"
        assert kept <= set(self._key_by_block), "a kept block is not in the cache"
        assert not free & set(self._key_by_block), "a free block is in the cache"
        inverse = {block: key for key, block in self._block_by_key.items()}
        assert self._key_by_block == inverse, "the two directions of the cache differ"
        assert set(self._serial_by_block) == set(self._key_by_block), "a serial number without a block"
        for block, count in holders.items():
            assert count == 1 or block in self._key_by_block, "a block that is not in the cache is shared"

    def _share_prefix(self, table: BlockTable, token_ids: Sequence[int], max_shared: int) -> None:
        for index in range(min(len(token_ids) - 1, max_shared) // self.block_tokens):
            block = self._block_by_key.get(self._key(table, token_ids, index))
            if block is None:
                return
            self._hold(block)
            table.blocks.append(block)
            self._follow(table, block)

    def _key(self, table: BlockTable, token_ids: Sequence[int], index: int) -> BlockKey:
        start = index * self.block_tokens
        return BlockKey(table.parent, tuple(token_ids[start : start + self.block_tokens]), self._variant, table.salt)

    def _follow(self, table: BlockTable, block: int) -> None:
        """Note that the table's next block is this cached one."""
        table.num_cached_blocks += 1
        table.parent = self._serial_by_block[block]

    def _insert(self, key: BlockKey, block: int) -> None:
        self._last_serial += 1
        self._block_by_key[key] = block
        self._key_by_block[block] = key
        self._serial_by_block[block] = self._last_serial

    def _hold(self, block: int) -> None:
        self._kept.pop(block, None)
        self._num_holders[block] += 1

    def _release(self, block: int) -> None:
        self._num_holders[block] -= 1
        if self._num_holders[block] == 0:
            if block in self._key_by_block:
                self._kept[block] = None
            else:
                self._free.append(block)

    def _take(self) -> int:
        """Remove a block from the free ones, or else the least recently used kept one from the cache."""
        if self._free:
            return self._free.pop()
        block, _ = self._kept.popitem(last=False)
        del self._block_by_key[self._key_by_block.pop(block)]
        del self._serial_by_block[block]
        return block
