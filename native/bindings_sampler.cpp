// Python's way into the sampler: checks every array, then draws with the interpreter released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>
#include <utility>

#include "cpu_features.h"
#include "sampler.h"

namespace nb = nanobind;

namespace subsecond {
namespace {

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OptionalIds = std::optional<Vector<int32_t>>;
using Masks = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename T>
const T* checked(const Vector<T>& array, int64_t length, const char* name) {
  if (static_cast<int64_t>(array.shape(0)) != length)
    throw nb::value_error((std::string(name) + " has " + std::to_string(array.shape(0)) + " entries where " +
                           std::to_string(length) + " are needed")
                              .c_str());
  return array.data();
}

// Offsets [num_rows + 1] that ascend from 0 to the number of ids.
const int32_t* checked_offsets(const Vector<int32_t>& offsets, int64_t num_rows, int64_t num_ids, const char* name) {
  const int32_t* data = checked(offsets, num_rows + 1, name);
  bool is_valid = data[0] == 0 && data[num_rows] == num_ids;
  for (int64_t row = 0; row < num_rows; ++row) is_valid = is_valid && data[row] <= data[row + 1];
  if (!is_valid)
    throw nb::value_error((std::string(name) + " must ascend from 0 to " + std::to_string(num_ids)).c_str());
  return data;
}

const int32_t* checked_ids(const Vector<int32_t>& ids, int64_t vocab_size, const char* name) {
  for (size_t i = 0; i < ids.shape(0); ++i)
    if (ids.data()[i] < 0 || ids.data()[i] >= vocab_size)
      throw nb::value_error((std::string(name) + " holds token " + std::to_string(ids.data()[i]) +
                             "; the vocabulary has " + std::to_string(vocab_size))
                                .c_str());
  return ids.data();
}

// Entries that are -1 or below `limit`; null where the array is not given.
const int32_t* checked_choices(const OptionalIds& choices, int64_t num_rows, int64_t limit, const char* name) {
  if (!choices) return nullptr;
  const int32_t* data = checked(*choices, num_rows, name);
  for (int64_t row = 0; row < num_rows; ++row)
    if (data[row] < -1 || data[row] >= limit)
      throw nb::value_error((std::string(name) + " holds " + std::to_string(data[row]) + "; allowed are -1 to " +
                             std::to_string(limit - 1))
                                .c_str());
  return data;
}

template <typename T>
nb::object owned_array(T*& data, std::initializer_list<size_t> shape) {
  size_t size = 1;
  for (size_t extent : shape) size *= extent;
  data = new T[size];
  nb::capsule owner(data, [](void* memory) noexcept { delete[] static_cast<T*>(memory); });
  return nb::cast(nb::ndarray<nb::numpy, T>(data, shape, owner));
}

using SampledArrays = nb::typed<nb::tuple, nb::any, nb::any, nb::any, nb::any, nb::any>;

// Draws with the interpreter released, into arrays that Python owns.
SampledArrays drawn(const SampleInput& input) {
  const size_t rows = static_cast<size_t>(input.num_rows);
  const size_t columns = static_cast<size_t>(input.num_logprobs);
  SampleOutput output{};
  nb::object token_ids = owned_array(output.token_ids, {rows});
  nb::object logprobs = owned_array(output.logprobs, {rows});
  nb::object has_failed = owned_array(output.has_failed, {rows});
  nb::object top_ids = owned_array(output.top_ids, {rows, columns});
  nb::object top_logprobs = owned_array(output.top_logprobs, {rows, columns});
  {
    nb::gil_scoped_release release;
    sample(input, output);
  }
  return SampledArrays(nb::make_tuple(token_ids, logprobs, top_ids, top_logprobs, has_failed));
}

SampledArrays sample_arrays(
    const Logits& logits, const Vector<float>& temperature, const Vector<int32_t>& top_k, const Vector<float>& top_p,
    const Vector<float>& min_p, const Vector<float>& repetition_penalty, const Vector<float>& presence_penalty,
    const Vector<float>& frequency_penalty, const Vector<uint64_t>& seed, const Vector<int32_t>& sample_index,
    const Vector<int32_t>& position, const Vector<int32_t>& bias_offsets, const Vector<int32_t>& bias_ids,
    const Vector<float>& bias_values, const Vector<int32_t>& history_offsets, const Vector<int32_t>& history_ids,
    const Vector<int32_t>& history_counts, const OptionalIds& forced_ids, const OptionalIds& mask_rows,
    const std::optional<Masks>& masks, int64_t num_logprobs, const std::string& isa, int num_threads) {
  const int64_t num_rows = static_cast<int64_t>(logits.shape(0));
  const int64_t vocab_size = static_cast<int64_t>(logits.shape(1));
  const int64_t num_biases = static_cast<int64_t>(bias_ids.shape(0));
  const int64_t num_history = static_cast<int64_t>(history_ids.shape(0));
  if (vocab_size < 1 || vocab_size > INT32_MAX) throw nb::value_error("logits need 1 to 2^31 - 1 columns");
  if (num_logprobs < 0 || num_logprobs > vocab_size)
    throw nb::value_error("num_logprobs must lie between 0 and the size of the vocabulary");
  const Kernels* kernels = find_kernels(isa);
  if (!kernels) throw nb::value_error(("instruction set " + isa + " cannot run here").c_str());
  if (num_threads < 1 || num_threads > 1024) throw nb::value_error("num_threads must lie between 1 and 1024");
  const int64_t num_masks = masks ? static_cast<int64_t>(masks->shape(0)) : 0;
  if (masks && static_cast<int64_t>(masks->shape(1)) != mask_words(vocab_size))
    throw nb::value_error(("masks need " + std::to_string(mask_words(vocab_size)) + " words a row").c_str());
  const SampleInput input{
      .kernels = kernels,
      .num_threads = num_threads,
      .logits = logits.data(),
      .num_rows = num_rows,
      .vocab_size = vocab_size,
      .temperature = checked(temperature, num_rows, "temperature"),
      .top_k = checked(top_k, num_rows, "top_k"),
      .top_p = checked(top_p, num_rows, "top_p"),
      .min_p = checked(min_p, num_rows, "min_p"),
      .repetition_penalty = checked(repetition_penalty, num_rows, "repetition_penalty"),
      .presence_penalty = checked(presence_penalty, num_rows, "presence_penalty"),
      .frequency_penalty = checked(frequency_penalty, num_rows, "frequency_penalty"),
      .seed = checked(seed, num_rows, "seed"),
      .sample_index = checked(sample_index, num_rows, "sample_index"),
      .position = checked(position, num_rows, "position"),
      .bias_offsets = checked_offsets(bias_offsets, num_rows, num_biases, "bias_offsets"),
      .bias_ids = checked_ids(bias_ids, vocab_size, "bias_ids"),
      .bias_values = checked(bias_values, num_biases, "bias_values"),
      .history_offsets = checked_offsets(history_offsets, num_rows, num_history, "history_offsets"),
      .history_ids = checked_ids(history_ids, vocab_size, "history_ids"),
      .history_counts = checked(history_counts, num_history, "history_counts"),
      .forced_ids = checked_choices(forced_ids, num_rows, vocab_size, "forced_ids"),
      .mask_rows = checked_choices(mask_rows, num_rows, num_masks, "mask_rows"),
      .masks = masks ? masks->data() : nullptr,
      .num_logprobs = num_logprobs,
  };
  return drawn(input);
}

}  // namespace

void bind_sampler(nb::module_& module) {
  module.def("sample", &sample_arrays, nb::arg("logits").noconvert(), nb::arg("temperature").noconvert(),
             nb::arg("top_k").noconvert(), nb::arg("top_p").noconvert(), nb::arg("min_p").noconvert(),
             nb::arg("repetition_penalty").noconvert(), nb::arg("presence_penalty").noconvert(),
             nb::arg("frequency_penalty").noconvert(), nb::arg("seed").noconvert(), nb::arg("sample_index").noconvert(),
             nb::arg("position").noconvert(), nb::arg("bias_offsets").noconvert(), nb::arg("bias_ids").noconvert(),
             nb::arg("bias_values").noconvert(), nb::arg("history_offsets").noconvert(),
             nb::arg("history_ids").noconvert(), nb::arg("history_counts").noconvert(),
             nb::arg("forced_ids").noconvert().none(), nb::arg("mask_rows").noconvert().none(),
             nb::arg("masks").noconvert().none(), nb::arg("num_logprobs"), nb::arg("isa"), nb::arg("num_threads"),
             "Draws one token a row: (token_ids, logprobs, top_ids, top_logprobs, has_failed). Arguments as in "
             "SampleBatch.");
}

}  // namespace subsecond
