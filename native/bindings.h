// The parts of the Python module; only files named bindings*.cpp know Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <utility>

#include "kernels.h"
#include "memory.h"
#include "packed_weight.h"

namespace subsecond {

namespace nb = nanobind;

using FloatRows = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;  // rows may be apart, columns are not
using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntRows = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A buffer as a uint8 array that owns it.
inline nb::object as_array(Buffer&& buffer) {
  auto* owned = new Buffer(std::move(buffer));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<Buffer*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(owned->data(), {owned->size()}, owner));
}

// The kernels of that instruction set; ValueError when it cannot run here.
const Kernels& checked_kernels(const std::string& isa);

// Its attention for that type of keys and values, the default for an empty name; ValueError when there is none.
const AttentionKernels& checked_attention(const Kernels& kernels, const std::string& kv_type);

// The format of that name, when a weight of this shape can have it; ValueError otherwise.
Format checked_format(const std::string& name, int64_t num_outputs, int64_t num_inputs);

// A weight over `packed`, which the caller keeps alive; ValueError when its size is not what the shape asks for.
PackedWeight checked_weight(const std::string& name, int64_t num_outputs, int64_t num_inputs, const Bytes& packed);

// The activation of that name; ValueError otherwise.
inline Activation checked_activation(const std::string& name) {
  constexpr const char* names[] = {"silu", "gelu", "gelu_tanh"};
  static_assert(sizeof(names) / sizeof(names[0]) == static_cast<size_t>(Activation::kCount));
  for (int i = 0; i < static_cast<int>(Activation::kCount); ++i)
    if (name == names[i]) return static_cast<Activation>(i);
  throw nb::value_error(("there is no activation " + name).c_str());
}

void bind_sampler(nb::module_& module);
void bind_kernels(nb::module_& module);
void bind_executor(nb::module_& module);

}  // namespace subsecond
