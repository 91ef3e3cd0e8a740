"""Choose which positions of which sequences the next step computes; sees token ids and blocks, never a tensor.

There is no prefill or decode phase. A sequence has computed tokens and wanted ones, and each step closes gaps within
its budget of rows: first those of a single row, which are answers being written, then prompts, by rank. How many rows
prompts may have beside answers is the pacer's to say.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from subsecond.engine.blocks import BlockAllocator, BlockTable
from subsecond.engine.constraint import Constraint
from subsecond.engine.pacing import StepPacer
from subsecond.engine.request import PromptLogprobs, Request

# Rows of a step whose logits are wanted for the log-probabilities of prompts; each takes a vocabulary of floats.
MAX_PROMPT_LOGITS_ROWS = 64


@dataclass(slots=True, eq=False)
class Sequence:
    """A live request: its tokens so far, how many of them have their keys and values computed, and in which blocks.

    max_length         most tokens, prompt included
    salt               of its cached blocks; None takes the request's
    arrival            number of the sequence in the order in which they came
    deadline_s         when it has to be done, by time.perf_counter(); None for no such time
    num_cached_tokens  prompt tokens that the prefix cache held when the sequence was first admitted; None before
    history            token id -> times in the answer, kept only if the request has penalties
    stop_ids           tokens that end the answer
    prompt_logprobs    those that were asked for, of the prompt's tokens from the second on, as far as computed
    constraint         what the answer is held to, made when its first token is due
    num_advanced       tokens of the answer that the constraint has taken
    """

    request: Request
    seed: int
    max_length: int
    salt: str | None = None
    arrival: int = 0
    deadline_s: float | None = None
    token_ids: list[int] = field(init=False)
    num_computed: int = 0
    num_cached_tokens: int | None = None
    table: BlockTable | None = None
    history: dict[int, int] | None = None
    stop_ids: frozenset[int] = field(init=False)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    constraint: Constraint | None = None
    num_advanced: int = 0

    def __post_init__(self) -> None:
        params = self.request.params
        self.salt = self.request.salt if self.salt is None else self.salt
        self.token_ids = list(self.request.prompt_ids)
        self.stop_ids = frozenset(params.stop_token_ids + (() if params.ignore_eos else self.request.eos_ids))
        if params.has_penalties:
            self.history = dict.fromkeys(self.token_ids, 0)

    @property
    def rank(self) -> tuple[int, int]:
        """What comes first is served first."""
        return self.request.priority, self.arrival

    @property
    def num_missing(self) -> int:
        """Tokens that are known and not computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_answer_tokens(self) -> int:
        """Tokens after the prompt."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt are still to be computed."""
        is_asked = self.request.params.num_prompt_logprobs is not None
        return is_asked and len(self.prompt_logprobs) < len(self.request.prompt_ids) - 1

    @property
    def is_prompt_read(self) -> bool:
        """Whether all of the prompt but its last token is computed, so that others may share it."""
        return self.num_computed >= len(self.request.prompt_ids) - 1

    def append(self, token_id: int) -> None:
        """Add a sampled token."""
        self.token_ids.append(token_id)
        if self.history is not None:
            self.history[token_id] = self.history.get(token_id, 0) + 1


class Span(NamedTuple):
    """Positions [start, end) of a sequence, computed in one step, of which [logits_start, end) want logits.

    If `is_sampled`, the token after the last position is drawn; the other logits are for tokens of the prompt.
    """

    sequence: Sequence
    start: int
    end: int
    logits_start: int
    is_sampled: bool


class StepPlan(NamedTuple):
    """The spans of one step, at most one a sequence, by rank; their rows, and how many of these continue answers."""

    spans: list[Span]
    num_rows: int
    num_answers: int


class Scheduler:
    """Sequences that run (they hold blocks) and wait, both by rank: priority, then arrival.

    All blocks for the known tokens are taken at admission, so only growing answers can run out of blocks; then the
    running sequence of the last rank gives its own back and is computed again later, with the same result.
    """

    def __init__(self, allocator: BlockAllocator, max_rows: int, pacer: StepPacer | None = None) -> None:
        assert max_rows > 0
        self.allocator = allocator
        self.max_rows = max_rows
        self.pacer = pacer or StepPacer()
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.num_preemptions = 0
        self._num_arrivals = 0

    @property
    def has_work(self) -> bool:
        """Whether a step is due."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit into the pool when alone there."""
        assert self.allocator.blocks_for(sequence.max_length) <= self.allocator.num_blocks
        sequence.arrival = self._num_arrivals
        self._num_arrivals += 1
        insort(self.waiting, sequence, key=_rank)

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
        spans, prompts = [], []
        for sequence in self.running:
            end = len(sequence.token_ids)
            if sequence.num_computed == end - 1 and not sequence.wants_prompt_logprobs:
                is_sampled = end < sequence.max_length
                spans.append(Span(sequence, end - 1, end, end - is_sampled, is_sampled))
            else:
                prompts.append(sequence)
        del spans[self.max_rows :]
        num_answers = len(spans)
        if not prompts:
            return StepPlan(spans, num_answers, num_answers)
        num_prompts = len(prompts) + len(self.waiting)
        num_rows = min(self.max_rows - num_answers, self.pacer.prompt_rows(num_answers, num_prompts, self.max_rows))
        spans += self._prompt_spans(prompts, num_rows)
        return StepPlan(spans, sum(span.end - span.start for span in spans), num_answers)

    def commit(self, plan: StepPlan) -> None:
        """Note that the positions of a plan are computed; before any of its sequences gets its next token."""
        block_tokens = self.allocator.block_tokens
        for sequence, _, end, _, _ in plan.spans:
            sequence.num_computed = end
            table = sequence.table
            assert table is not None
            if end // block_tokens > table.num_cached_blocks:  # a block is full
                self.allocator.publish(table, sequence.token_ids, end)

    @staticmethod
    def _prompt_spans(prompts: list[Sequence], rows_left: int) -> Iterator[Span]:
        """The next positions of sequences with more than one to compute, as far as rows are left."""
        logits_rows_left = MAX_PROMPT_LOGITS_ROWS
        for sequence in prompts:
            start, wanted = sequence.num_computed, len(sequence.token_ids)
            end = min(wanted, start + rows_left)
            first_wanted = len(sequence.prompt_logprobs) if sequence.wants_prompt_logprobs else wanted
            if first_wanted < end:
                end = min(end, first_wanted + logits_rows_left)
                logits_rows_left -= end - first_wanted
            if end <= start:
                continue
            rows_left -= end - start
            is_sampled = end == wanted < sequence.max_length
            yield Span(sequence, start, end, min(first_wanted, end - is_sampled), is_sampled)

    def _make_room(self) -> None:
        """Give every running sequence, by rank, blocks for all its tokens; preempt from the other end for it."""
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
        insort(self.waiting, sequence, key=_rank)
        self.num_preemptions += 1

    def _admit(self) -> None:
        """Start waiting sequences by rank, as long as there are rows and blocks for them.

        One spare block for each that runs keeps the newcomer from being preempted by the next token of an older one. A
        newcomer of a better priority takes the blocks of those of a worse one.
        """
        if not self.waiting:
            return
        num_missing = sum(sequence.num_missing for sequence in self.running)
        unread_groups = {(item.request.group, item.salt) for item in self.running if not item.is_prompt_read}
        index = 0
        while index < len(self.waiting) and num_missing < self.max_rows:
            sequence = self.waiting[index]
            group = (sequence.request.group, sequence.salt)
            if sequence.request.group is not None and group in unread_groups:
                index += 1  # the prompt is being read by another of its group
                continue
            if not self._open(sequence):
                return
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=_rank)
            if not sequence.is_prompt_read:
                unread_groups.add(group)
            num_missing += sequence.num_missing

    def _open(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its blocks; False if there are not enough, those of lower priority included."""
        num_needed = self.allocator.blocks_for(len(sequence.token_ids)) + len(self.running)
        while True:
            max_shared = len(sequence.prompt_logprobs) if sequence.wants_prompt_logprobs else len(sequence.token_ids)
            table = self.allocator.open(
                sequence.token_ids, sequence.salt or "", num_spare=len(self.running), max_shared=max_shared
            )
            if table is not None:
                break
            lower = [item for item in self.running if item.request.priority > sequence.request.priority]
            num_theirs = sum(len(item.table.blocks) for item in lower if item.table is not None)
            if not lower or self.allocator.num_free + num_theirs < num_needed - len(lower):
                return False
            self._preempt(lower[-1])
        sequence.table = table
        sequence.num_computed = table.num_cached_blocks * self.allocator.block_tokens
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
        return True


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
