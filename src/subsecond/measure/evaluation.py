"""Runs windows through backends and streams their logits, one window at a time, into quality reports.

The logits of a window of 512 tokens are 311 MB for a vocabulary of 151 936, so no more than one window of each source
is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from subsecond.backends.batch import Float32, ForwardBatch, Int32
from subsecond.backends.protocol import Backend
from subsecond.core.errors import InputError
from subsecond.measure.quality import QualityReport, RowQuality, compare_logits, summarize

# Logits of consecutive windows, float32 [window_len, vocab] each, or a backend that computes them.
LogitsSource = Backend | Iterable[Float32]
# Called with the number of windows done and the number of all.
Progress = Callable[[int, int], None]


def forward_windows(backend: Backend, windows: Int32, chunk: int | None = None) -> Iterator[Float32]:
    """Logits [window_len, vocab] of every row of each window of `windows` [num_windows, window_len].

    Each window starts at position 0 and is run in steps of `chunk` rows (the backend's `max_rows` when None). The
    array is valid until the next window. Nobody else may use the backend's blocks meanwhile; a pool too small for a
    window or a chunk out of range is an InputError.
    """
    window_len = windows.shape[1]
    chunk = min(window_len, backend.max_rows) if chunk is None else chunk
    num_blocks = -(-window_len // backend.block_tokens)
    if not 1 <= chunk <= backend.max_rows:
        raise InputError(f"chunk={chunk} is not allowed; give 1 to {backend.max_rows}, the backend's limit")
    if num_blocks > backend.num_blocks:
        raise InputError(
            f"a window of {window_len} tokens needs {num_blocks} blocks of {backend.block_tokens}, the backend has "
            f"{backend.num_blocks}; give it more blocks or use shorter windows"
        )
    logits = np.empty((window_len, backend.vocab_size), dtype=np.float32)
    for window in windows:
        for start in range(0, window_len, chunk):
            end = min(start + chunk, window_len)
            logits[start:end] = backend.forward(window_batch(window, start, end, num_blocks))
        yield logits


def evaluate(
    candidate: LogitsSource, reference: LogitsSource, windows: Int32, progress: Progress | None = None
) -> QualityReport:
    """Quality of `candidate` against `reference` over `windows` int32 [num_windows, window_len].

    A source is a backend, or the logits of exactly these windows in order. For the scoring see
    `subsecond.measure.quality`.
    """
    return evaluate_all({"candidate": candidate}, reference, windows, progress)["candidate"]


def evaluate_all(
    candidates: Mapping[str, LogitsSource], reference: LogitsSource, windows: Int32, progress: Progress | None = None
) -> dict[str, QualityReport]:
    """As `evaluate`, for several candidates by name; the reference is computed once a window."""
    if windows.ndim != 2 or len(windows) == 0 or windows.shape[1] < 2:
        raise InputError(f"windows have shape {windows.shape}; at least 1 window of at least 2 tokens is needed")
    reference_logits = _logits_of(reference, windows)
    candidate_logits = {name: _logits_of(source, windows) for name, source in candidates.items()}
    rows: dict[str, list[RowQuality]] = {name: [] for name in candidates}
    for done, window in enumerate(windows):
        expected = _next_window("the reference", reference_logits, done, len(windows))
        for name, iterator in candidate_logits.items():
            given = _next_window(name, iterator, done, len(windows))
            rows[name].append(compare_logits(expected[:-1], given[:-1], window[1:]))
        if progress is not None:
            progress(done + 1, len(windows))
    return {name: summarize(found) for name, found in rows.items()}


def _logits_of(source: LogitsSource, windows: Int32) -> Iterator[Float32]:
    return iter(source) if isinstance(source, Iterable) else forward_windows(source, windows)


def _next_window(name: str, source: Iterator[Float32], index: int, num_windows: int) -> Float32:
    logits = next(source, None)
    if logits is None:
        raise InputError(f"{name} gave the logits of {index} windows; {num_windows} are needed")
    return logits


def window_batch(window: Int32, start: int, end: int, num_blocks: int) -> ForwardBatch:
    """Tokens [start, end) of one sequence that lies in blocks 0 to num_blocks, all rows selected."""
    num_rows = end - start
    return ForwardBatch(
        token_ids=np.asarray(window[start:end], dtype=np.int32),
        positions=np.arange(start, end, dtype=np.int32),
        row_sequence=np.zeros(num_rows, dtype=np.int32),
        block_tables=np.arange(num_blocks, dtype=np.int32)[np.newaxis],
        logits_rows=np.arange(num_rows, dtype=np.int32),
    )
