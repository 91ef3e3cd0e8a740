// F16_SPARSE: the half precision weights of a pruned matrix without its zeros. For every sixteen outputs a bit says
// which inputs have a weight, and the weights stand behind one another:
//
//   offset[panels + 1]  uint64, of each panel and of the end; zeros to a multiple of 64
//   panel               start[16]     uint32, of the first weight of each output, counted in weights
//                       mask[16][T]   uint32, bit k % 32 of word k / 32: whether the weight of input k is stored
//                       weight[]      fp16, output after output; 64 bytes at least up to the next multiple of 64
//
// The bytes behind the last weight may be read by vectors.
#pragma once

#include "packed_weight.h"

namespace subsecond {

constexpr int64_t kMaxSparseInputs = int64_t{1} << 24;  // start counts up to 16 times as many

struct SparsePanel {
  const uint8_t* data;
  int64_t num_tiles;

  static constexpr int64_t kStartBytes = 64;
  static constexpr int64_t kSpareBytes = 64;

  static constexpr int64_t mask_bytes(int64_t num_tiles) { return kPanelOutputs * num_tiles * 4; }
  static constexpr int64_t num_bytes(int64_t num_tiles, int64_t num_weights) {
    return (kStartBytes + mask_bytes(num_tiles) + 2 * num_weights + kSpareBytes + 63) / 64 * 64;
  }

  const uint8_t* masks(int64_t n) const { return data + kStartBytes + n * num_tiles * 4; }
  const uint8_t* weights(int64_t n) const {
    uint32_t start;
    __builtin_memcpy(&start, data + 4 * n, 4);
    return data + kStartBytes + mask_bytes(num_tiles) + 2 * static_cast<int64_t>(start);
  }
};

inline uint32_t mask_at(const uint8_t* masks, int64_t tile) {
  uint32_t mask;
  __builtin_memcpy(&mask, masks + 4 * tile, 4);
  return mask;
}

// Weights of zero and of minus zero are none.
constexpr bool is_weight(uint16_t bits) { return (bits & 0x7fff) != 0; }

// --- offsets of panels, for F16_LIST too ----------------------------------------------------------------------------

// Bytes before the first panel.
constexpr int64_t offsets_bytes(int64_t num_outputs) {
  const int64_t num_panels = (num_outputs + kPanelOutputs - 1) / kPanelOutputs;
  return ((num_panels + 1) * 8 + 63) / 64 * 64;
}

inline uint64_t offset_at(const uint8_t* packed, int64_t panel) {
  uint64_t offset;
  __builtin_memcpy(&offset, packed + 8 * panel, 8);
  return offset;
}

inline void put_offset(uint8_t* packed, int64_t panel, uint64_t offset) {
  __builtin_memcpy(packed + 8 * panel, &offset, 8);
}

// Only that of the first panel; each packed panel adds that of the next.
inline void begin_offsets(int64_t num_outputs, uint8_t* packed) {
  const int64_t num_bytes = offsets_bytes(num_outputs);
  __builtin_memset(packed, 0, static_cast<size_t>(num_bytes));
  put_offset(packed, 0, static_cast<uint64_t>(num_bytes));
}

// Whether panels of at least `least` bytes follow each other up to the end, and is_sound(data, bytes) holds for each.
template <class IsSound>
bool are_sound_offsets(const PackedWeight& weight, int64_t num_bytes, int64_t least, IsSound is_sound) {
  const auto header = static_cast<uint64_t>(offsets_bytes(weight.num_outputs)), size = static_cast<uint64_t>(num_bytes);
  if (size < header || offset_at(weight.data, 0) != header) return false;
  for (int64_t index = 0; index < weight.num_panels(); ++index) {
    const uint64_t begin = offset_at(weight.data, index), end = offset_at(weight.data, index + 1);
    if (end > size || end < begin || end - begin < static_cast<uint64_t>(least)) return false;
    if (!is_sound(weight.data + begin, static_cast<int64_t>(end - begin))) return false;
  }
  return offset_at(weight.data, weight.num_panels()) == size;
}

// --- panels ---------------------------------------------------------------------------------------------------------

// Bytes of the panels of `num_rows` outputs, the first of which begins one: bits of fp16 [num_rows][num_inputs].
int64_t sparse_panels_bytes(int64_t num_inputs, const uint16_t* rows, int64_t num_rows);

// Pack outputs [begin, end), whose bits are `rows`, into the whole weight; `begin` is a multiple of 16, and the outputs
// before it were packed.
void pack_sparse(int64_t num_outputs, int64_t num_inputs, const uint16_t* rows, int64_t begin, int64_t end,
                 uint8_t* packed);

// Whether offsets, starts and masks of a weight of `num_bytes` bytes fit each other and stay within it.
bool is_sound_sparse(const PackedWeight& weight, int64_t num_bytes);

}  // namespace subsecond
