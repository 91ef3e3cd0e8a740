// What the AMX kernels share: the entry points of their files.
#pragma once

#include "../kernels.h"
#include "tiles.h"

namespace subsecond::amx {

int64_t activation_bytes(int64_t num_rows, int64_t width);
int64_t linear_scratch_bytes(int64_t max_inputs);
void pack_rows(const PackArgs&, int64_t begin, int64_t end, uint8_t* scratch);
void linear(const LinearArgs&, int64_t begin, int64_t end, uint8_t* scratch);

int64_t quantized_bytes(int64_t num_rows, int64_t width);
int64_t channel_scratch_bytes(int64_t max_inputs);
void channel_linear(const LinearArgs&, int64_t begin, int64_t end, uint8_t* scratch);

int64_t head_bytes(int64_t head_dim);
int64_t attend_rows(int64_t heads_per_kv_head);
int64_t attend_scratch_bytes(int64_t head_dim);
void store_kv(const AttentionArgs&, const Span&, int64_t begin, int64_t end, int64_t kv_head, uint8_t* scratch);
void attend(const AttentionArgs&, const Span&, int64_t begin, int64_t end, int64_t kv_head, uint8_t* scratch);

}  // namespace subsecond::amx
