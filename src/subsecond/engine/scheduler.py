"""Choose which positions of which sequences the next step computes; sees token ids and blocks, never a tensor.

There is no prefill or decode phase. A sequence has computed tokens and wanted ones, and each step closes gaps within
its budget of rows, oldest sequence first. A prompt is admitted only while rows are left, so every sequence older than
one that is read in chunks misses a single token, and its answer goes on meanwhile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from subsecond.engine.blocks import BlockAllocator, BlockTable
from subsecond.engine.request import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """A live request: its tokens so far, how many of them have their keys and values computed, and in which blocks.

    max_length         most tokens, prompt included
    num_cached_tokens  prompt tokens that the prefix cache held when the sequence was first admitted; None before
    history            token id -> times in the answer, kept only if the request has penalties
    """

    request: Request
    seed: int
    max_length: int
    token_ids: list[int] = field(init=False)
    num_computed: int = 0
    num_cached_tokens: int | None = None
    table: BlockTable | None = None
    history: dict[int, int] | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)
        if self.request.params.has_penalties:
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


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [start, end) of a sequence, computed in one step; if it wants logits, the next token is sampled."""

    sequence: Sequence
    start: int
    end: int
    wants_logits: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The spans of one step, at most one a sequence, oldest sequence first."""

    spans: tuple[Span, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return sum(span.end - span.start for span in self.spans)


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
            num_rows = min(sequence.num_missing, rows_left)
            rows_left -= num_rows
            if num_rows:
                end = sequence.num_computed + num_rows
                spans.append(Span(sequence, sequence.num_computed, end, end == len(sequence.token_ids)))
        return StepPlan(tuple(spans))

    def commit(self, plan: StepPlan) -> None:
        """Note that the positions of a plan are computed; before any of its sequences gets its next token."""
        for span in plan.spans:
            span.sequence.num_computed = span.end
            assert span.sequence.table is not None
            self.allocator.publish(span.sequence.table, span.sequence.token_ids, span.end)

    def _make_room(self) -> None:
        """Give every running sequence, oldest first, blocks for all its tokens; preempt from the young end for it."""
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            assert sequence.table is not None
            if self.allocator.grow(sequence.table, len(sequence.token_ids)):
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
