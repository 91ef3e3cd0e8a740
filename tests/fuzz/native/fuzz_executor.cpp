// The executor with a small decoder layer, with or without experts, and valid batches of every shape, by one or two
// threads.
#include <algorithm>
#include <iterator>

#include "cpu_features.h"
#include "executor.h"
#include "stream.h"

namespace subsecond::fuzz {
namespace {

constexpr int64_t kWidth = 32, kVocabSize = 20, kNumBlocks = 5, kMaxRows = 40, kExperts = 3;

Operand place(Operand::Arena arena, int64_t slot) { return {arena, slot * kWidth, 0, kWidth}; }

Call call_of(Call::Kind kind, Operand output, Operand input) {
  Call call;
  call.kind = kind;
  call.output = output;
  call.inputs[0] = input;
  call.width = kWidth;
  return call;
}

// A packed weight of kWidth inputs: arbitrary floats, or blocks of arbitrary bytes.
struct Stored {
  Stored(Stream& stream, Format stored_format, int64_t outputs)
      : format(stored_format), num_outputs(outputs), packed(packed_bytes(format, outputs, kWidth)) {
    const FormatInfo& info = format_info(format);
    std::vector<float> stored = stream.numbers(outputs * kWidth);
    std::vector<uint8_t> bytes(static_cast<size_t>(outputs * kWidth / info.block_elements * info.block_bytes));
    std::memcpy(bytes.data(), stored.data(), bytes.size());
    pack_weight(format, outputs, kWidth, bytes.data(), packed.data());
  }
  PackedWeight weight() const { return {format, num_outputs, kWidth, packed.data()}; }

  Format format;
  int64_t num_outputs;
  Bytes packed;
};

Operand in_all(int64_t slot) { return place(Operand::Arena::kAll, slot); }

struct Layer {
  PackedWeight embedding;              // [kVocabSize][kWidth]
  PackedWeight experts[3 * kExperts];  // [kWidth][kWidth] each
  const float *norm, *bias;
  int rotary;
  int64_t head_dim;
};

void add_attention(Executor& executor, const Layer& layer, Stream& stream) {
  Call attention = call_of(Call::Kind::kAttention, in_all(1), in_all(0));
  attention.inputs[1] = in_all(0);
  attention.inputs[2] = in_all(0);
  attention.head_dim = layer.head_dim;
  attention.num_heads = attention.num_kv_heads = kWidth / layer.head_dim;
  attention.factor = 0.3f;
  attention.rotary = layer.rotary;
  attention.window = stream.flag() ? stream.between(1, 70) : 0;
  attention.softcap = stream.flag() ? 20.0f : 0.0f;
  executor.add_call(attention);
}

// Slot 1 through a mixture of one to kExperts experts, whose router reads its first columns.
void add_experts(Executor& executor, const Layer& layer, Stream& stream) {
  Call experts = call_of(Call::Kind::kExperts, in_all(1), in_all(2));
  const int64_t num_experts = stream.between(1, kExperts);
  experts.inputs[1] = in_all(1);
  experts.weights.assign(layer.experts, layer.experts + 3 * num_experts);
  experts.experts = {num_experts, stream.between(1, num_experts), stream.flag(), kWidth, kWidth};
  experts.activation = static_cast<Activation>(stream.between(0, static_cast<int64_t>(Activation::kCount) - 1));
  executor.add_call(experts);
}

void add_layer(Executor& executor, const Layer& layer, Stream& stream) {
  Call embed = call_of(Call::Kind::kEmbed, in_all(0), Call::absent());
  embed.weights = {layer.embedding};
  executor.add_call(embed);
  Call scale = call_of(Call::Kind::kScale, in_all(0), in_all(0));
  scale.factor = 0.5f;
  executor.add_call(scale);
  add_attention(executor, layer, stream);
  Call normalize = call_of(Call::Kind::kNormalize, in_all(2), in_all(1));
  const bool is_layer = stream.flag();
  normalize.norm = {layer.norm, is_layer ? layer.bias : nullptr, 1e-5f, is_layer,
                    stream.flag() ? kWidth : layer.head_dim};
  executor.add_call(normalize);
  Call gated = call_of(Call::Kind::kGatedActivation, in_all(1), in_all(1));
  gated.inputs[1] = in_all(2);
  gated.activation = static_cast<Activation>(stream.between(0, static_cast<int64_t>(Activation::kCount) - 1));
  executor.add_call(gated);
  if (stream.flag()) add_experts(executor, layer, stream);
  executor.add_call(call_of(Call::Kind::kActivate, in_all(1), in_all(1)));
  executor.add_call(call_of(Call::Kind::kSelectRows, place(Operand::Arena::kSelected, 0), in_all(1)));
  const Operand logits{Operand::Arena::kSelected, kWidth, 0, kVocabSize};
  Call head = call_of(Call::Kind::kLinear, logits, place(Operand::Arena::kSelected, 0));
  head.weights = {layer.embedding};
  head.biases = {nullptr};
  executor.add_call(head);
  Call softcap = call_of(Call::Kind::kSoftcap, logits, logits);
  softcap.width = kVocabSize;
  softcap.factor = 15.0f;
  executor.add_call(softcap);
  executor.finish(logits);
}

void run(Stream stream) {
  const std::vector<const Kernels*>& tables = available_kernels();
  const Kernels& kernels = *tables[static_cast<size_t>(stream.between(0, static_cast<int64_t>(tables.size()) - 1))];
  const AttentionKernels* attention = find_attention(kernels, stream.flag() ? "int8" : "");
  const int64_t head_dim = int64_t{1} << stream.between(1, 5);
  const ExecutorConfig config{
      1 + stream.byte() % 2, kMaxRows, kVocabSize, 3 * kWidth, kWidth + kVocabSize, 1, kNumBlocks,
      kWidth / head_dim,     head_dim};
  Executor executor(kernels, *attention, config);
  const int rotary = stream.flag() ? executor.add_rotary({1.0, 0.1}, stream.flag(), 1.1) : -1;
  const auto format = static_cast<Format>(stream.between(0, static_cast<int64_t>(Format::kCount) - 1));
  stream.start_numbers();
  const std::vector<float> norm = stream.numbers(kWidth), bias = stream.numbers(kWidth);
  const bool fits = kWidth % format_info(format).block_elements == 0;
  const Stored embedding(stream, Format::kF32, kVocabSize), expert(stream, fits ? format : Format::kF32, kWidth);
  Layer layer{embedding.weight(), {}, norm.data(), bias.data(), head_dim >= 4 ? rotary : -1, head_dim};
  std::fill(std::begin(layer.experts), std::end(layer.experts), expert.weight());
  add_layer(executor, layer, stream);
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
