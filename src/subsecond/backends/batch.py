"""Everything that one step needs, as frozen arrays; it is built by the engine and read by every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
UInt32 = NDArray[np.uint32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The rows of one step. Rows of one sequence are adjacent and in order of position.

    token_ids      int32 [rows]
    positions      int32 [rows], from 0 within the row's sequence
    row_sequence   int32 [rows], index into block_tables; ascending
    block_tables   int32 [sequences, blocks]; block b of a sequence holds its positions [b * size, (b + 1) * size)
    logits_rows    int32 [selected rows], ascending rows that want logits; may be empty
    """

    token_ids: Int32
    positions: Int32
    row_sequence: Int32
    block_tables: Int32
    logits_rows: Int32

    @property
    def num_rows(self) -> int:
        """Rows in this step."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """How to draw one token from each selected row of logits. All arrays have one entry a row unless said otherwise.

    temperature         float32; 0 means the most likely token (the lowest id on a tie)
    top_k               int32; 0 means all
    top_p, min_p        float32; 1 and 0 mean off
    repetition_penalty  float32; 1 means off. presence_penalty, frequency_penalty float32; 0 means off
    seed                uint64;  sample_index, position int32: the random number depends on these three alone
    bias_offsets        int32 [rows + 1] into bias_ids int32 and bias_values float32 (added to the logits)
    history_offsets     int32 [rows + 1] into history_ids int32 and history_counts int32: tokens seen so far, each once,
                        with the number of times in the answer (0 for those of the prompt alone)
    forced_ids          int32: the token to report with its log-probability instead of drawing one, or -1; None: none
    mask_rows           int32: the row of `masks` with the tokens that may be drawn, or -1; None: no row has a mask
    masks               uint32 [masks, ceil(vocab / 32)]; bit j of word i is token 32 i + j
    num_logprobs        int: most likely tokens to report a row, of the distribution before temperature and cuts
    """

    temperature: Float32
    top_k: Int32
    top_p: Float32
    min_p: Float32
    repetition_penalty: Float32
    presence_penalty: Float32
    frequency_penalty: Float32
    seed: NDArray[np.uint64]
    sample_index: Int32
    position: Int32
    bias_offsets: Int32
    bias_ids: Int32
    bias_values: Float32
    history_offsets: Int32
    history_ids: Int32
    history_counts: Int32
    num_logprobs: int = 0
    forced_ids: Int32 | None = None
    mask_rows: Int32 | None = None
    masks: UInt32 | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """token_ids int32 [rows], logprobs float32 [rows], top_ids int32 and top_logprobs float32 [rows, num_logprobs].

    Log-probabilities are of the model's own distribution: after bias and penalties, before mask, temperature and cuts.
    failed_rows are those without a distribution: no logit is finite after bias and penalties, or the mask leaves none.
    Their token is 0 and its log-probability -inf.
    """

    token_ids: Int32
    logprobs: Float32
    top_ids: Int32
    top_logprobs: Float32
    failed_rows: tuple[int, ...] = ()
