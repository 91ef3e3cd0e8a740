// Draws one token from each row of logits; knows nothing of Python or of where the logits came from.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace subsecond {

// The fields of backends/batch.py SampleBatch as pointers; one entry a row unless the name says otherwise.
// Ids must lie in [0, vocab_size), offsets must ascend from 0: the caller checks both.
struct SampleInput {
  const Kernels* kernels;
  int num_threads;
  const float* logits;  // [num_rows, vocab_size], left unchanged
  int64_t num_rows;
  int64_t vocab_size;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const float* repetition_penalty;
  const float* presence_penalty;
  const float* frequency_penalty;
  const uint64_t* seed;
  const int32_t* sample_index;
  const int32_t* position;
  const int32_t* bias_offsets;  // [num_rows + 1]
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* history_offsets;  // [num_rows + 1]
  const int32_t* history_ids;
  const int32_t* history_counts;
  const int32_t* forced_ids;  // [num_rows] or null: the token to report instead of drawing one, or -1
  const int32_t* mask_rows;   // [num_rows] or null: the row of `masks` that says which tokens may be drawn, or -1
  const uint32_t* masks;      // [masks, mask_words(vocab_size)]; bit j of word i is token 32 i + j
  int64_t num_logprobs;       // at most vocab_size
};

// token_ids, logprobs and has_failed: [num_rows]; top_ids and top_logprobs: [num_rows, num_logprobs].
struct SampleOutput {
  int32_t* token_ids;
  float* logprobs;
  bool* has_failed;
  int32_t* top_ids;
  float* top_logprobs;
};

inline int64_t mask_words(int64_t vocab_size) { return (vocab_size + 31) / 32; }

// Draws every row, several at once where that is worth it. A row has failed when it has no distribution: its largest
// logit after bias and penalties is not a finite number, or its mask leaves no token that has one. It gets token 0 with
// log-probability -inf. NaN logits count as -inf. Log-probabilities are of the row without its mask.
void sample(const SampleInput& input, const SampleOutput& output);

}  // namespace subsecond
