"""Choose which positions of which sequences the next step computes; sees token ids and blocks, never a tensor.

There is no prefill or decode phase. A sequence has computed tokens and wanted ones, and each step closes gaps within
its budget of rows, oldest sequence first. A prompt is admitted only while rows are left, so every sequence older than
one that is read in chunks misses a single token, and its answer goes on meanwhile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from subsecond.engine.blocks import BlockAllocator, BlockTable
from subsecond.engine.request import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """A live request: its tokens so far, how many of them have their keys and values computed, and in which blocks.

    max_length         most tokens, prompt included
    num_cached_tokens  prompt tokens that the prefix cache held when the sequence was first admitted; None before
    history            token id -> times in the answer, kept only if the request has penalties
    stop_ids           tokens that end the answer
    """

    request: Request
    seed: int
    max_length: int
    token_ids: list[int] = field(init=False)
    num_computed: int = 0
    num_cached_tokens: int | None = None
    table: BlockTable | None = None
    history: dict[int, int] | None = None
    stop_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        params = self.request.params
        self.token_ids = list(self.request.prompt_ids)
        self.stop_ids = frozenset(params.stop_token_ids + (() if params.ignore_eos else self.request.eos_ids))
        if params.has_penalties:
            self.history = dict.fromkeys(self.token_ids, 0)

    @property
    def num_missing(self) -> int:
        """Tokens that are known and not computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_answer_tokens(self) -> int:
        """Tokens after the prompt."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    def append(self, token_id: int) -> None:
        """Add a sampled token."""
        self.token_ids.append(token_id)
        if self.history is not None:
            self.history[token_id] = self.history.get(token_id, 0) + 1


class Span(NamedTuple):
    """Positions [start, end) of a sequence, computed in one step; if it wants logits, the next token is sampled."""

    sequence: Sequence
    start: int
    end: int
    wants_logits: bool


class StepPlan(NamedTuple):
    """The spans of one step, at most one a sequence, oldest sequence first, and the number of their rows."""

    spans: list[Span]
    num_rows: int


class Scheduler:
    """Sequences that run (they hold blocks) and wait, both oldest first.

    All blocks for the known tokens are taken at admission, so only growing answers can run out of blocks; then the
    youngest running sequence gives its own back and is computed again later, with the same result.
    """

    def __init__(self, allocator: BlockAllocator, max_rows: int) -> None:
        assert max_rows > 0
        self.allocator = allocator
        self.max_rows = max_rows
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether a step is due."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit into the pool when alone there."""
        assert self.allocator.blocks_for(sequence.max_length) <= self.allocator.num_blocks
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and release its blocks."""
        if sequence.table is not None:
            self.allocator.close(sequence.table)
            sequence.table = None
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def plan(self) -> StepPlan:
        """Choose the next step and take the blocks it needs; `commit` must follow once it has been computed."""
        num_preemptions = self.num_preemptions
        self._make_room()
        if self.num_preemptions == num_preemptions:
            self._admit()
        rows_left = self.max_rows
        spans = []
        for sequence in self.running:
            start, wanted = sequence.num_computed, len(sequence.token_ids)
            end = min(wanted, start + rows_left)
            rows_left -= end - start
            if end > start:
                spans.append(Span(sequence, start, end, end == wanted))
        return StepPlan(spans, self.max_rows - rows_left)

    def commit(self, plan: StepPlan) -> None:
        """Note that the positions of a plan are computed; before any of its sequences gets its next token."""
        block_tokens = self.allocator.block_tokens
        for sequence, _, end, _ in plan.spans:
            sequence.num_computed = end
            table = sequence.table
            assert table is not None
            if end // block_tokens > table.num_cached_blocks:  # a block is full
                self.allocator.publish(table, sequence.token_ids, end)

    def _make_room(self) -> None:
        """Give every running sequence, oldest first, blocks for all its tokens; preempt from the young end for it."""
        block_tokens = self.allocator.block_tokens
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            table = sequence.table
            assert table is not None
            num_tokens = len(sequence.token_ids)
            if num_tokens <= len(table.blocks) * block_tokens or self.allocator.grow(table, num_tokens):
                index += 1
            else:
                self._preempt(self.running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)  # it is older than everything that waits, younger than everything that runs
        self.num_preemptions += 1

    def _admit(self) -> None:
        """Start waiting sequences in their order, as long as there are rows and blocks for them.

        One spare block for each that runs keeps the newcomer from being preempted by the next token of an older one.
        """
        if not self.waiting:
            return
        num_missing = sum(sequence.num_missing for sequence in self.running)
        while self.waiting and num_missing < self.max_rows:
            sequence = self.waiting[0]
            table = self.allocator.open(sequence.token_ids, sequence.request.salt, num_spare=len(self.running))
            if table is None:
                return
            self.waiting.popleft()
            self.running.append(sequence)
            sequence.table = table
            sequence.num_computed = table.num_cached_blocks * self.allocator.block_tokens
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed
            num_missing += sequence.num_missing
