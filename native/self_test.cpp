#include "self_test.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu_features.h"

namespace subsecond {
namespace {

// A fixed stream of numbers in [-1, 1) (Knuth's 64-bit linear congruential generator).
class Numbers {
 public:
  float next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<float>(static_cast<int64_t>(state_) >> 40) / static_cast<float>(1 << 23);
  }
  std::vector<float> take(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = next();
    return values;
  }
  uint8_t byte() { return static_cast<uint8_t>(127.0f * (next() + 1.0f)); }

 private:
  uint64_t state_ = 42;
};

constexpr uint64_t kDigestStart = 14695981039346656037ull;
constexpr uint16_t kSmallHalf = 0x2c00;  // 1/16 as fp16

// Stored blocks with random codes and sane scales: every fp16 field is 1/16, every value field finite.
std::vector<uint8_t> random_blocks(Format format, int64_t num_outputs, int64_t num_inputs, Numbers& numbers) {
  const FormatInfo& info = format_info(format);
  const int64_t num_blocks = num_outputs * num_inputs / info.block_elements;
  std::vector<uint8_t> bytes(static_cast<size_t>(num_blocks * info.block_bytes));
  for (uint8_t& byte : bytes) byte = numbers.byte();
  for (int64_t b = 0; b < num_blocks; ++b) {
    uint8_t* block = bytes.data() + b * info.block_bytes;
    const float value = numbers.next();
    const uint16_t plain = format == Format::kF16 ? 0x3000 : 0x3e00;
    const auto plain_bits = static_cast<uint16_t>(plain + numbers.byte());
    if (format == Format::kF32)
      std::memcpy(block, &value, 4);
    else if (info.is_plain())
      std::memcpy(block, &plain_bits, 2);
    else
      std::memcpy(block + info.stored_d, &kSmallHalf, 2);
    if (info.has_minimum()) std::memcpy(block + info.stored_d + 2, &kSmallHalf, 2);
  }
  return bytes;
}

double relative_error(const std::vector<float>& expected, const std::vector<float>& actual) {
  double largest = 0.0, error = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    const double difference = std::abs(static_cast<double>(expected[i]) - static_cast<double>(actual[i]));
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  return largest > 0.0 ? error / largest : INFINITY;
}

// FNV-1a over the bits of the values.
void add_to_digest(uint64_t& digest, const std::vector<float>& values) {
  for (const float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    digest = (digest ^ bits) * 1099511628211ull;
  }
}

uint64_t digest_of(const std::vector<float>& values) {
  uint64_t digest = kDigestStart;
  add_to_digest(digest, values);
  return digest;
}

std::vector<float> run_linear(const Kernels& kernels, const PackedWeight& weight, std::vector<float> input,
                              int64_t num_rows) {
  const LinearKernels& linear = kernels.linear_of(weight.format);
  std::vector<uint8_t> packed(static_cast<size_t>(linear.activation_bytes(num_rows, weight.num_inputs)) + 64);
  std::vector<uint8_t> scratch(static_cast<size_t>(kernels.scratch_bytes(weight.num_inputs, 64)) + 64);
  const auto align = [](std::vector<uint8_t>& v) {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(v.data()) + 63) / 64 * 64);
  };
  std::vector<float> output(static_cast<size_t>(num_rows * weight.num_outputs));
  const PackArgs pack{{input.data(), weight.num_inputs}, num_rows, weight.num_inputs, nullptr, 0.0f, align(packed)};
  linear.pack_rows(pack, 0, (num_rows + kGroupRows - 1) / kGroupRows, align(scratch));
  const float* bias = nullptr;
  const LinearArgs args{
      align(packed), num_rows, &weight, &bias, 1, false, Activation::kSilu, {}, {output.data(), weight.num_outputs}};
  linear.linear(args, 0, linear_units(args), align(scratch));
  return output;
}

void test_linear(const Kernels& kernels, double tolerance, std::vector<SelfTestResult>& results) {
  constexpr int64_t num_outputs = 20, num_inputs = 256;
  for (int f = 0; f < static_cast<int>(Format::kNumStored); ++f) {
    const auto format = static_cast<Format>(f);
    Numbers numbers;
    const std::vector<uint8_t> stored = random_blocks(format, num_outputs, num_inputs, numbers);
    std::vector<uint8_t> packed(static_cast<size_t>(packed_bytes(format, num_outputs, num_inputs)) + 4096);
    pack_weight(format, num_outputs, num_inputs, stored.data(), packed.data());
    const PackedWeight weight{format, num_outputs, num_inputs, packed.data()};
    double error = 0.0;
    uint64_t digest = kDigestStart;
    // One row, two row tiles, and for one format enough rows for panels to be unpacked in full.
    for (const int64_t num_rows : {1, 20, 33}) {
      if (num_rows == 33 && format != Format::kQ4_1) continue;
      const std::vector<float> input = numbers.take(num_rows * num_inputs);
      const std::vector<float> output = run_linear(kernels, weight, input, num_rows);
      error = std::max(error, relative_error(run_linear(scalar::kernels(), weight, input, num_rows), output));
      add_to_digest(digest, output);
    }
    results.push_back({std::string("linear_") + format_info(format).name, error, tolerance, digest});
  }
}

// Channel formats give the same bits on every instruction set.
void test_channel_linear(const Kernels& kernels, std::vector<SelfTestResult>& results) {
  constexpr int64_t num_outputs = 40, num_inputs = 192;
  for (const Format format : {Format::kINT8, Format::kINT4, Format::kNESTED8, Format::kNESTED4}) {
    Numbers numbers;
    const std::vector<float> rows = numbers.take(num_outputs * num_inputs);
    std::vector<uint8_t> packed(static_cast<size_t>(packed_bytes(format, num_outputs, num_inputs)) + 4096);
    quantize_weight(format, num_outputs, num_inputs, rows.data(), 0, num_outputs, packed.data());
    const PackedWeight weight{format, num_outputs, num_inputs, packed.data()};
    double error = 0.0;
    uint64_t digest = kDigestStart;
    for (const int64_t num_rows : {1, 11}) {
      const std::vector<float> input = numbers.take(num_rows * num_inputs);
      const std::vector<float> output = run_linear(kernels, weight, input, num_rows);
      error = std::max(error, relative_error(run_linear(scalar::kernels(), weight, input, num_rows), output));
      add_to_digest(digest, output);
    }
    results.push_back({std::string("linear_") + format_name(format), error, 0.0, digest});
  }
}

// Half of the weights are zero.
void test_sparse_linear(const Kernels& kernels, Format format, double tolerance, std::vector<SelfTestResult>& results) {
  constexpr int64_t num_outputs = 20, num_inputs = 100;
  const bool is_list = format == Format::kF16_LIST;
  Numbers numbers;
  std::vector<uint16_t> rows(static_cast<size_t>(num_outputs * num_inputs));
  for (uint16_t& bits : rows) bits = numbers.next() < 0.0f ? 0 : static_cast<uint16_t>(0x3000 + numbers.byte());
  const auto panels_bytes = is_list ? list_panels_bytes : sparse_panels_bytes;
  const int64_t num_bytes = offsets_bytes(num_outputs) + panels_bytes(num_inputs, rows.data(), num_outputs);
  std::vector<uint8_t> packed(static_cast<size_t>(num_bytes) + 4096);
  (is_list ? pack_list : pack_sparse)(num_outputs, num_inputs, rows.data(), 0, num_outputs, packed.data());
  const PackedWeight weight{format, num_outputs, num_inputs, packed.data()};
  double error = 0.0;
  uint64_t digest = kDigestStart;
  for (const int64_t num_rows : {1, 11}) {
    const std::vector<float> input = numbers.take(num_rows * num_inputs);
    const std::vector<float> output = run_linear(kernels, weight, input, num_rows);
    error = std::max(error, relative_error(run_linear(scalar::kernels(), weight, input, num_rows), output));
    add_to_digest(digest, output);
  }
  results.push_back({std::string("linear_") + format_name(weight.format), error, tolerance, digest});
}

// What an attention may have beside its scale.
struct AttentionForm {
  int64_t window;
  float softcap;
  bool is_causal;
};

// Every row is stored, those from `first` on attend.
std::vector<float> run_attention(const Kernels& kernels, const AttentionKernels& attention, const AttentionForm& form,
                                 int64_t num_rows, int64_t first, Numbers numbers) {
  constexpr int64_t head_dim = 64, num_heads = 3, num_kv_heads = 1;
  const int64_t num_blocks = (num_rows + kBlockTokens - 1) / kBlockTokens;
  std::vector<float> query = numbers.take(num_rows * num_heads * head_dim),
                     key = numbers.take(num_rows * num_kv_heads * head_dim),
                     value = numbers.take(num_rows * num_kv_heads * head_dim), output(query.size());
  std::vector<uint8_t> cache(static_cast<size_t>(num_blocks * num_kv_heads * attention.head_bytes(head_dim)) + 64);
  std::vector<uint8_t> scratch(static_cast<size_t>(kernels.scratch_bytes(64, head_dim)) + 64);
  const auto align = [](std::vector<uint8_t>& v) {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(v.data()) + 63) / 64 * 64);
  };
  std::vector<int32_t> blocks;
  for (int64_t block = num_blocks; block > 0; --block) blocks.push_back(static_cast<int32_t>(block - 1));
  const Span span{0, num_rows, 0, blocks.data()};
  AttentionArgs args{};
  args.query = {query.data(), num_heads * head_dim};
  args.key = {key.data(), num_kv_heads * head_dim};
  args.value = {value.data(), num_kv_heads * head_dim};
  args.output = {output.data(), num_heads * head_dim};
  args.cache = {align(cache), attention.head_bytes(head_dim)};
  args.num_heads = num_heads;
  args.num_kv_heads = num_kv_heads;
  args.head_dim = head_dim;
  args.scale = 0.125f;
  args.window = form.window;
  args.softcap = form.softcap;
  args.is_causal = form.is_causal;
  const int64_t step = attention.attend_rows(num_heads / num_kv_heads);
  for (int64_t head = 0; head < num_kv_heads; ++head) {
    for (int64_t row = 0; row < num_rows; ++row) attention.store_kv(args, span, row, row + 1, head, align(scratch));
    for (int64_t row = first; row < num_rows; row += step)
      attention.attend(args, span, row, std::min(row + step, num_rows), head, align(scratch));
  }
  return output;
}

// Every type of keys and values gives the bits that the scalar kernels have for it. Those have no bf16, which is
// compared with their default.
void test_attention(const Kernels& kernels, const AttentionKernels& attention, std::vector<SelfTestResult>& results) {
  const Kernels& reference = scalar::kernels();
  const AttentionKernels* same = find_attention(reference, attention.kv_type);
  const double tolerance = same ? 0.0 : 0.02;
  const Numbers numbers;
  const auto compare = [&](const char* name, const AttentionForm& form, int64_t num_rows, int64_t first) {
    const std::vector<float> expected = run_attention(reference, same ? *same : *reference.attention, form, num_rows,
                                                      first, numbers),
                             actual = run_attention(kernels, attention, form, num_rows, first, numbers);
    results.push_back(
        {std::string(name) + "_" + attention.kv_type, relative_error(expected, actual), tolerance, digest_of(actual)});
  };
  compare("attention", {0, 0.0f, true}, 34, 0);
  compare("attention_long", {0, 0.0f, true}, kPartTokens + 20, kPartTokens + 14);
  compare("attention_window_softcap", {20, 0.5f, true}, 34, 0);
  compare("attention_whole", {0, 0.0f, false}, 34, 0);
}

// Operators that are float32 in both arithmetics, on rows that fill no whole number of vectors.
void test_element_wise(const Kernels& kernels, std::vector<SelfTestResult>& results) {
  constexpr int64_t width = 39, num_rows = 3, head_dim = 13;
  Numbers numbers;
  std::vector<float> left = numbers.take(num_rows * width), right = numbers.take(num_rows * width);
  const std::vector<float> weight = numbers.take(width), bias = numbers.take(width), angles = numbers.take(4 * 12);
  for (float& value : left) value *= 8.0f;
  const Matrix l{left.data(), width}, r{right.data(), width};
  const int32_t positions[] = {0, 2, 3};
  const auto compare = [&](const char* name, auto run) {
    std::vector<float> expected(left.size()), actual(left.size());
    run(scalar::kernels(), Matrix{expected.data(), width});
    run(kernels, Matrix{actual.data(), width});
    results.push_back({name, relative_error(expected, actual), 0.0, digest_of(actual)});
  };
  for (const bool is_layer : {false, true}) {
    const NormArgs norm{weight.data(), is_layer ? bias.data() : nullptr, 1e-5f, is_layer, is_layer ? width : head_dim};
    compare(is_layer ? "normalize_layer" : "normalize_rms",
            [&](const Kernels& k, Matrix out) { k.normalize(l, out, width, norm, 0, num_rows); });
  }
  constexpr const char* names[] = {"silu", "gelu", "gelu_tanh"};
  for (int i = 0; i < static_cast<int>(Activation::kCount); ++i) {
    const auto activation = static_cast<Activation>(i);
    compare(names[i], [&](const Kernels& k, Matrix out) { k.activate(l, out, width, activation, 0, num_rows); });
    compare((std::string("gated_") + names[i]).c_str(),
            [&](const Kernels& k, Matrix out) { k.gated_activation(l, r, out, width, activation, 0, num_rows); });
  }
  compare("add", [&](const Kernels& k, Matrix out) { k.add(l, r, out, width, 0, num_rows); });
  compare("scale", [&](const Kernels& k, Matrix out) { k.scale(l, out, width, 1.7f, 0, num_rows); });
  compare("softcap", [&](const Kernels& k, Matrix out) { k.softcap(l, out, width, 2.0f, 0, num_rows); });
  compare("softmax", [&](const Kernels& k, Matrix out) { k.softmax(l.row(0), out.row(0), width); });
  compare("add_scaled", [&](const Kernels& k, Matrix out) { k.add_scaled(l.row(0), out.row(0), width, 0.3f); });
  compare("block_maxima", [&](const Kernels& k, Matrix out) { k.block_maxima(l.row(0), width, out.row(0)); });
  compare("sum_exp", [&](const Kernels& k, Matrix out) {
    *out.row(0) = static_cast<float>(k.sum_exp(l.row(0), width, 8.0f, 0.7f));
  });
  for (const bool is_interleaved : {false, true})
    compare(is_interleaved ? "rope_interleaved" : "rope_halves", [&](const Kernels& k, Matrix out) {
      k.rope(l, out, {angles.data(), 12, is_interleaved}, head_dim, width / head_dim, positions, 0, num_rows);
    });
}

}  // namespace

std::vector<SelfTestResult> self_test(const Kernels& kernels) {
  std::vector<SelfTestResult> results;
  const bool is_exact = std::strcmp(kernels.arithmetic, scalar::kernels().arithmetic) == 0;
  const double tolerance = is_exact ? 0.0 : 0.02;
  test_linear(kernels, tolerance, results);
  test_channel_linear(kernels, results);
  for (const Format format : {Format::kF16_SPARSE, Format::kF16_LIST})
    test_sparse_linear(kernels, format, tolerance, results);
  for (const AttentionKernels& attention : kernels.attention)
    if (attention.kv_type) test_attention(kernels, attention, results);
  test_element_wise(kernels, results);
  return results;
}

}  // namespace subsecond
