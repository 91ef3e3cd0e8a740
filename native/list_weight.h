// F16_LIST: the half precision weights of a matrix with few of them, each with the number of its input. Of every output
// they stand in groups of sixteen, the last of which is filled up with zeros of input 0:
//
//   offset[panels + 1]  uint64, of each panel and of the end; zeros to a multiple of 64
//   panel               start[17]  uint32, of the first group of each output and of the end, zeros to 128 bytes
//                       group[]    input[16] uint16, weight[16] fp16
//
// It takes four bytes a weight where F16_SPARSE takes two and a bit an input, but no work for what is zero.
#pragma once

#include "packed_weight.h"

namespace subsecond {

constexpr int64_t kMaxListInputs = 65536;

struct ListPanel {
  const uint8_t* data;

  static constexpr int64_t kStartBytes = 128;
  static constexpr int64_t kGroupWeights = 16;
  static constexpr int64_t kGroupBytes = 64;
  static constexpr int64_t kWeightsAt = 32;  // in a group

  static constexpr int64_t num_bytes(int64_t num_groups) { return kStartBytes + num_groups * kGroupBytes; }

  int64_t start(int64_t n) const {
    uint32_t start;
    __builtin_memcpy(&start, data + 4 * n, 4);
    return start;
  }
  const uint8_t* group(int64_t index) const { return data + kStartBytes + index * kGroupBytes; }
};

inline uint16_t half_word(const uint8_t* p, int64_t i) {
  uint16_t word;
  __builtin_memcpy(&word, p + 2 * i, 2);
  return word;
}

// As of sparse_weight.h.
int64_t list_panels_bytes(int64_t num_inputs, const uint16_t* rows, int64_t num_rows);
void pack_list(int64_t num_outputs, int64_t num_inputs, const uint16_t* rows, int64_t begin, int64_t end,
               uint8_t* packed);
bool is_sound_list(const PackedWeight& weight, int64_t num_bytes);

}  // namespace subsecond
