#include "sparse_weight.h"

#include <bit>
#include <cstring>

namespace subsecond {
namespace {

int64_t count_weights(const uint16_t* values, int64_t count) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) found += is_weight(values[i]);
  return found;
}

int64_t count_bits(const uint8_t* masks, int64_t num_tiles) {
  int64_t found = 0;
  for (int64_t t = 0; t < num_tiles; ++t) found += std::popcount(mask_at(masks, t));
  return found;
}

int64_t tiles_of(int64_t num_inputs) { return (num_inputs + kTileInputs - 1) / kTileInputs; }

// Appends the weights of a row to `weights` and sets their bits; returns how many they are.
int64_t pack_row(const uint16_t* row, int64_t num_inputs, uint8_t* masks, uint8_t* weights) {
  int64_t found = 0;
  for (int64_t k = 0; k < num_inputs; k += kTileInputs) {
    const int64_t count = num_inputs - k < kTileInputs ? num_inputs - k : kTileInputs;
    uint32_t mask = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!is_weight(row[k + i])) continue;
      mask |= uint32_t{1} << i;
      std::memcpy(weights + 2 * found++, row + k + i, 2);
    }
    std::memcpy(masks + k / kTileInputs * 4, &mask, 4);
  }
  return found;
}

// Whether a panel of that many bytes is one.
bool is_sound_panel(const SparsePanel& panel, int64_t num_bytes) {
  int64_t num_weights = 0;
  for (int64_t n = 0; n < kPanelOutputs; ++n) {
    uint32_t start;
    std::memcpy(&start, panel.data + 4 * n, 4);
    if (start != num_weights) return false;
    num_weights += count_bits(panel.masks(n), panel.num_tiles);
  }
  return num_bytes == SparsePanel::num_bytes(panel.num_tiles, num_weights);
}

}  // namespace

int64_t sparse_panels_bytes(int64_t num_inputs, const uint16_t* rows, int64_t num_rows) {
  int64_t num_bytes = 0;
  for (int64_t row = 0; row < num_rows; row += kPanelOutputs) {
    const int64_t count = num_rows - row < kPanelOutputs ? num_rows - row : kPanelOutputs;
    num_bytes +=
        SparsePanel::num_bytes(tiles_of(num_inputs), count_weights(rows + row * num_inputs, count * num_inputs));
  }
  return num_bytes;
}

void pack_sparse(int64_t num_outputs, int64_t num_inputs, const uint16_t* rows, int64_t begin, int64_t end,
                 uint8_t* packed) {
  const int64_t num_tiles = tiles_of(num_inputs);
  if (begin == 0) begin_offsets(num_outputs, packed);
  for (int64_t row = begin; row < end; row += kPanelOutputs) {
    const int64_t index = row / kPanelOutputs, count = end - row < kPanelOutputs ? end - row : kPanelOutputs;
    const uint64_t offset = offset_at(packed, index);
    uint8_t* data = packed + offset;
    const int64_t masks_at = SparsePanel::kStartBytes, weights_at = masks_at + SparsePanel::mask_bytes(num_tiles);
    std::memset(data, 0, static_cast<size_t>(weights_at));
    int64_t num_weights = 0;
    for (int64_t n = 0; n < kPanelOutputs; ++n) {
      const auto start = static_cast<uint32_t>(num_weights);
      std::memcpy(data + 4 * n, &start, 4);
      if (n < count)
        num_weights += pack_row(rows + (row - begin + n) * num_inputs, num_inputs, data + masks_at + n * num_tiles * 4,
                                data + weights_at + 2 * num_weights);
    }
    const int64_t num_bytes = SparsePanel::num_bytes(num_tiles, num_weights), used = weights_at + 2 * num_weights;
    std::memset(data + used, 0, static_cast<size_t>(num_bytes - used));
    put_offset(packed, index + 1, offset + static_cast<uint64_t>(num_bytes));
  }
}

bool is_sound_sparse(const PackedWeight& weight, int64_t num_bytes) {
  const int64_t num_tiles = weight.num_tiles();
  return are_sound_offsets(weight, num_bytes, SparsePanel::num_bytes(num_tiles, 0),
                           [&](const uint8_t* data, int64_t size) { return is_sound_panel({data, num_tiles}, size); });
}

}  // namespace subsecond
