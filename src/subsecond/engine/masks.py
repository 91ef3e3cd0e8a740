"""Computes what constrained answers may say next, beside the step that computes their logits."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from subsecond.backends.batch import UInt32
from subsecond.engine.constraint import Constraint
from subsecond.engine.scheduler import Sequence


class StepMasks(NamedTuple):
    """The masks of one step: uint32 [masks, words], which row is whose, and the constraints that failed."""

    masks: UInt32
    row_by_sequence: dict[Sequence, int]
    failures: dict[Sequence, Exception]


class MaskWriter:
    """One thread, started with the first constraint, that advances constraints and writes their masks."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = -(-vocab_size // 32)
        self._pool: ThreadPoolExecutor | None = None
        self._masks: UInt32 = np.zeros((0, self._num_words), np.uint32)

    def begin(self, sequences: list[Sequence]) -> Future[StepMasks] | None:
        """Start on the masks of those sequences that have a constraint; None if none has.

        Nobody else may use these sequences until the result is there. It is valid until the next call.
        """
        constrained = [sequence for sequence in sequences if sequence.request.constraint is not None]
        if not constrained:
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "subsecond-masks")
        return self._pool.submit(self._write, constrained)

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown()

    def _write(self, sequences: list[Sequence]) -> StepMasks:
        if len(sequences) > len(self._masks):
            self._masks = np.zeros((len(sequences), self._num_words), np.uint32)
        rows: dict[Sequence, int] = {}
        failures: dict[Sequence, Exception] = {}
        for row, sequence in enumerate(sequences):
            try:
                _advanced(sequence).fill_mask(self._masks[row])
                rows[sequence] = row
            except Exception as error:
                failures[sequence] = error
        return StepMasks(self._masks[: len(sequences)], rows, failures)


def _advanced(sequence: Sequence) -> Constraint:
    """The constraint of a sequence, which has taken the whole of its answer so far."""
    if sequence.constraint is None:
        assert sequence.request.constraint is not None
        sequence.constraint = sequence.request.constraint()
    for token_id in sequence.token_ids[len(sequence.request.prompt_ids) + sequence.num_advanced :]:
        sequence.constraint.advance(token_id)
        sequence.num_advanced += 1
    return sequence.constraint
