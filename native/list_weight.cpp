#include "list_weight.h"

#include <cstring>

#include "sparse_weight.h"

namespace subsecond {
namespace {

int64_t groups_of(const uint16_t* row, int64_t num_inputs) {
  int64_t found = 0;
  for (int64_t k = 0; k < num_inputs; ++k) found += is_weight(row[k]);
  return (found + ListPanel::kGroupWeights - 1) / ListPanel::kGroupWeights;
}

// Writes the groups of a row; returns how many they are.
int64_t pack_row(const uint16_t* row, int64_t num_inputs, uint8_t* groups) {
  int64_t found = 0, num_groups = 0;
  for (int64_t k = 0; k < num_inputs; ++k) {
    if (!is_weight(row[k])) continue;
    const int64_t i = found++ % ListPanel::kGroupWeights;
    if (i == 0) std::memset(groups + num_groups++ * ListPanel::kGroupBytes, 0, ListPanel::kGroupBytes);
    uint8_t* group = groups + (num_groups - 1) * ListPanel::kGroupBytes;
    const auto input = static_cast<uint16_t>(k);
    std::memcpy(group + 2 * i, &input, 2);
    std::memcpy(group + ListPanel::kWeightsAt + 2 * i, row + k, 2);
  }
  return num_groups;
}

// Whether a panel of that many bytes is one. Kernels have room for an output with a weight for every input.
bool is_sound_panel(const ListPanel& panel, int64_t num_bytes, int64_t num_inputs) {
  const int64_t num_groups = panel.start(kPanelOutputs);
  if (panel.start(0) != 0 || num_bytes != ListPanel::num_bytes(num_groups)) return false;
  const int64_t most_groups = (num_inputs + ListPanel::kGroupWeights - 1) / ListPanel::kGroupWeights;
  for (int64_t n = 0; n < kPanelOutputs; ++n) {
    const int64_t count = panel.start(n + 1) - panel.start(n);
    if (count < 0 || count > most_groups) return false;
  }
  bool is_within = true;
  for (int64_t g = 0; g < num_groups; ++g)
    for (int64_t i = 0; i < ListPanel::kGroupWeights; ++i) is_within &= half_word(panel.group(g), i) < num_inputs;
  return is_within;
}

}  // namespace

int64_t list_panels_bytes(int64_t num_inputs, const uint16_t* rows, int64_t num_rows) {
  const int64_t num_panels = (num_rows + kPanelOutputs - 1) / kPanelOutputs;
  int64_t num_groups = 0;
  for (int64_t row = 0; row < num_rows; ++row) num_groups += groups_of(rows + row * num_inputs, num_inputs);
  return num_panels * ListPanel::kStartBytes + num_groups * ListPanel::kGroupBytes;
}

void pack_list(int64_t num_outputs, int64_t num_inputs, const uint16_t* rows, int64_t begin, int64_t end,
               uint8_t* packed) {
  if (begin == 0) begin_offsets(num_outputs, packed);
  for (int64_t row = begin; row < end; row += kPanelOutputs) {
    const int64_t index = row / kPanelOutputs, count = end - row < kPanelOutputs ? end - row : kPanelOutputs;
    const uint64_t offset = offset_at(packed, index);
    uint8_t* data = packed + offset;
    std::memset(data, 0, ListPanel::kStartBytes);
    int64_t num_groups = 0;
    for (int64_t n = 0; n < kPanelOutputs; ++n) {
      uint8_t* groups = data + ListPanel::num_bytes(num_groups);
      if (n < count) num_groups += pack_row(rows + (row - begin + n) * num_inputs, num_inputs, groups);
      const auto end_group = static_cast<uint32_t>(num_groups);
      std::memcpy(data + 4 * (n + 1), &end_group, 4);
    }
    put_offset(packed, index + 1, offset + static_cast<uint64_t>(ListPanel::num_bytes(num_groups)));
  }
}

bool is_sound_list(const PackedWeight& weight, int64_t num_bytes) {
  return are_sound_offsets(weight, num_bytes, ListPanel::num_bytes(0), [&](const uint8_t* data, int64_t size) {
    return is_sound_panel({data}, size, weight.num_inputs);
  });
}

}  // namespace subsecond
