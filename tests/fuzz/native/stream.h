// Choices and memory for the fuzz targets: numbers from the input's bytes, buffers whose every overrun is seen.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

namespace subsecond::fuzz {

// Takes numbers from the input, zeros after its end.
class Stream {
 public:
  Stream(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() { return place_ < size_ ? data_[place_++] : 0; }
  // A number in [low, high].
  int64_t between(int64_t low, int64_t high) {
    const uint32_t drawn = byte() | byte() << 8;
    return low + static_cast<int64_t>(drawn) % (high - low + 1);
  }
  bool flag() { return byte() % 2 == 1; }

  // Ordinary and extraordinary floats, by a generator that the input seeds.
  float number() {
    constexpr float kOdd[] = {0.0f,
                              -0.0f,
                              1.0f,
                              -1.0f,
                              1e-42f,
                              -1e-42f,
                              3e38f,
                              -3e38f,
                              65504.0f,
                              6.0e-8f,
                              -65536.0f,
                              1e30f,
                              std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()};
    const uint32_t drawn = random();
    if (drawn % 256 < odd_share_) return kOdd[drawn / 256 % (sizeof(kOdd) / sizeof(kOdd[0]))];
    return static_cast<float>(static_cast<int32_t>(random())) / 2147483648.0f * 4.0f;
  }
  std::vector<float> numbers(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = number();
    return values;
  }
  uint32_t random() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }
  // Seeds the generator and says how many of 256 floats are odd.
  void start_numbers() {
    for (int i = 0; i < 4; ++i) state_ = state_ << 8 | byte();
    odd_share_ = flag() ? byte() : 0;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t place_ = 0;
  uint64_t state_ = 1;
  uint32_t odd_share_ = 0;
};

// Exactly `size` bytes at an address that kernels may expect, so that a sanitizer sees the first byte beyond.
class Bytes {
 public:
  explicit Bytes(int64_t size, uint8_t fill = 0xee) : size_(static_cast<size_t>(size)) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, size_ ? size_ : 1) != 0) std::abort();
    data_ = static_cast<uint8_t*>(memory);
    std::memset(data_, fill, size_);
  }
  ~Bytes() { std::free(data_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  size_t size_;
  uint8_t* data_;
};

}  // namespace subsecond::fuzz
