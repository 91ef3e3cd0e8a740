#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace subsecond {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSlack = 4096;  // kernels may prefetch or load a little past the end

}  // namespace

Buffer::Buffer(size_t num_bytes) : size_(num_bytes) {
  if (num_bytes == 0) return;
  if (num_bytes > SIZE_MAX / 2) throw std::bad_alloc();
#ifdef __linux__
  const size_t reserved = (num_bytes + kSlack + kHugePage - 1) / kHugePage * kHugePage;
  void* address =
      mmap(nullptr, reserved + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) throw std::bad_alloc();
  // Cut the mapping down to one that starts on a huge-page boundary.
  const uintptr_t start = reinterpret_cast<uintptr_t>(address);
  const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > start) munmap(address, aligned - start);
  munmap(reinterpret_cast<void*>(aligned + reserved), kHugePage - (aligned - start));
  data_ = reinterpret_cast<uint8_t*>(aligned);
  madvise(data_, reserved, MADV_HUGEPAGE);
#else
  data_ = static_cast<uint8_t*>(std::aligned_alloc(64, (num_bytes + kSlack + 63) / 64 * 64));
  if (!data_) throw std::bad_alloc();
  std::memset(data_, 0, num_bytes);
#endif
}

Buffer::~Buffer() {
  if (!data_) return;
#ifdef __linux__
  munmap(data_, (size_ + kSlack + kHugePage - 1) / kHugePage * kHugePage);
#else
  std::free(data_);
#endif
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace subsecond
