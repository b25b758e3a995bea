// Stands in for NVIDIA's bfloat16: storage and conversions, rounding to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const uint32_t nearest_even = 0x7fff + (word >> 16 & 1);
    bits = value != value ? 0x7fff : (word + nearest_even) >> 16;
  }
  operator float() const {
    const uint32_t word = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};
