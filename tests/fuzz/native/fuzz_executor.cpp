// The executor with a small decoder layer and valid batches of every shape, by one or two threads.
#include <algorithm>

#include "cpu_features.h"
#include "executor.h"
#include "stream.h"

namespace subsecond::fuzz {
namespace {

constexpr int64_t kWidth = 32, kVocabSize = 20, kNumBlocks = 5, kMaxRows = 40;

Operand place(Operand::Arena arena, int64_t slot) { return {arena, slot * kWidth, 0, kWidth}; }

Call call_of(Call::Kind kind, Operand output, Operand input) {
  Call call;
  call.kind = kind;
  call.output = output;
  call.inputs[0] = input;
  call.width = kWidth;
  return call;
}

void add_layer(Executor& executor, const PackedWeight& weight, const float* norm, int rotary, int64_t head_dim) {
  const auto all = [](int64_t slot) { return place(Operand::Arena::kAll, slot); };
  Call embed = call_of(Call::Kind::kEmbed, all(0), Call::absent());
  embed.weights = {weight};
  executor.add_call(embed);
  Call attention = call_of(Call::Kind::kAttention, all(1), all(0));
  attention.inputs[1] = all(0);
  attention.inputs[2] = all(0);
  attention.head_dim = head_dim;
  attention.num_heads = attention.num_kv_heads = kWidth / head_dim;
  attention.scale = 0.3f;
  attention.rotary = rotary;
  executor.add_call(attention);
  Call rms_norm = call_of(Call::Kind::kRmsNorm, all(2), all(1));
  rms_norm.norm_weight = norm;
  rms_norm.norm_eps = 1e-5f;
  executor.add_call(rms_norm);
  Call gated = call_of(Call::Kind::kGatedSilu, all(1), all(1));
  gated.inputs[1] = all(2);
  executor.add_call(gated);
  executor.add_call(call_of(Call::Kind::kSelectRows, place(Operand::Arena::kSelected, 0), all(1)));
  Call head = call_of(Call::Kind::kLinear, {Operand::Arena::kSelected, kWidth, 0, kVocabSize},
                      place(Operand::Arena::kSelected, 0));
  head.weights = {weight};
  head.biases = {nullptr};
  executor.add_call(head);
  executor.finish({Operand::Arena::kSelected, kWidth, 0, kVocabSize});
}

void run(Stream stream) {
  const std::vector<const Kernels*>& tables = available_kernels();
  const Kernels& kernels = *tables[static_cast<size_t>(stream.between(0, static_cast<int64_t>(tables.size()) - 1))];
  const int64_t head_dim = int64_t{1} << stream.between(1, 5);
  const ExecutorConfig config{
      1 + stream.byte() % 2, kMaxRows, kVocabSize, 3 * kWidth, kWidth + kVocabSize, 1, kNumBlocks,
      kWidth / head_dim,     head_dim};
  Executor executor(kernels, config);
  const int rotary = stream.flag() ? executor.add_rotary({1.0, 0.1}, stream.flag()) : -1;
  stream.start_numbers();
  std::vector<float> stored = stream.numbers(kVocabSize * kWidth), norm = stream.numbers(kWidth);
  Bytes packed(packed_bytes(Format::kF32, kVocabSize, kWidth));
  pack_weight(Format::kF32, kVocabSize, kWidth, reinterpret_cast<uint8_t*>(stored.data()), packed.data());
  add_layer(executor, {Format::kF32, kVocabSize, kWidth, packed.data()}, norm.data(), head_dim >= 4 ? rotary : -1,
            head_dim);
  for (int step = 0; step < 3; ++step) {
    std::vector<int32_t> tokens, positions, sequences, selected, tables_of;
    const int32_t num_sequences = 1 + stream.byte() % 3;
    for (int32_t sequence = 0; sequence < num_sequences; ++sequence) {
      for (int64_t b = 0; b < kNumBlocks; ++b) tables_of.push_back(stream.byte() % kNumBlocks);
      const int64_t rows = stream.between(1, 13), first = stream.between(0, kNumBlocks * kBlockTokens - rows);
      for (int64_t row = 0; row < rows; ++row) {
        if (stream.flag()) selected.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back(stream.byte() % kVocabSize);
        positions.push_back(static_cast<int32_t>(first + row));
        sequences.push_back(sequence);
      }
    }
    const Batch batch{tokens.data(),    positions.data(), sequences.data(), static_cast<int64_t>(tokens.size()),
                      tables_of.data(), kNumBlocks,       selected.data(),  static_cast<int64_t>(selected.size())};
    executor.forward(batch);
  }
}

}  // namespace
}  // namespace subsecond::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  subsecond::fuzz::run(subsecond::fuzz::Stream(data, size));
  return 0;
}
