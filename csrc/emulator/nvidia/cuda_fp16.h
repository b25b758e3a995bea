// Stands in for NVIDIA's half: storage and conversions, rounding to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;

  __half() = default;
  explicit __half(float value) : bits(std::signbit(value) ? 0x8000 : 0) {
    const float size = std::fabs(value);
    uint32_t word;
    std::memcpy(&word, &size, 4);
    const uint32_t nearest_even = 0xfff + (word >> 13 & 1);
    if (size != size) {
      bits = 0x7fff;
    } else if (size >= 65520.0f) {
      bits |= 0x7c00;
    } else if (size >= 0x1p-14f) {
      bits += (word - (112u << 23) + nearest_even) >> 13;  // the exponents are counted from others
    } else {
      bits += std::lrint(size * 0x1p24f);
    }
  }
  operator float() const {
    const uint32_t word = (bits & 0x7fffu) << 13;
    float size;
    std::memcpy(&size, &word, 4);
    size *= 0x1p112f;
    if (size >= 0x1p16f) size = word == 0x7c00u << 13 ? INFINITY : NAN;
    return bits >> 15 ? -size : size;
  }
};
