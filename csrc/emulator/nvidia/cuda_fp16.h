// Stands in for NVIDIA's half: storage and conversions, rounding to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

struct __half {
  uint16_t bits;

  __half() = default;
  explicit __half(float value) : bits(std::signbit(value) ? 0x8000 : 0) {
    const float size = std::fabs(value);
    if (size != size) {
      bits = 0x7fff;
    } else if (size >= 65520.0f) {
      bits |= 0x7c00;
    } else if (size >= 0x1p-14f) {
      int exponent;
      const float fraction = std::frexp(size, &exponent);  // in [1/2, 1)
      bits += ((exponent + 13) << 10) + std::lrint(std::ldexp(fraction, 11));
    } else {
      bits += std::lrint(std::ldexp(size, 24));
    }
  }
  operator float() const {
    const int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * std::numeric_limits<float>::infinity();
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
    return sign * std::ldexp(static_cast<float>(fraction + 0x400), exponent - 25);
  }
};
