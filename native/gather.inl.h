// Floats of places that are not side by side; included inside a namespace by the vectors of each instruction set.

// x[i] for indices of 16 bits, by single loads: the gathers of many processors take longer.
inline __m128 gather_four(const float* x, const uint8_t* indices) {
  uint64_t four;
  __builtin_memcpy(&four, indices, 8);
  __m128 v = _mm_load_ss(x + (four & 0xffff));
  v = _mm_insert_ps(v, _mm_load_ss(x + (four >> 16 & 0xffff)), 0x10);
  v = _mm_insert_ps(v, _mm_load_ss(x + (four >> 32 & 0xffff)), 0x20);
  return _mm_insert_ps(v, _mm_load_ss(x + (four >> 48)), 0x30);
}
