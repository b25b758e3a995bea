// Division by a number that the host knows, which takes a GPU dozens of instructions.
#pragma once

#include "device.h"

namespace shiftmlp {

// Divides numbers below 2^31 by d without a division: 2^p / d, rounded up, times n errs by less
// than n < 2^31 <= 2^p / d.
struct Divisor {
  uint32_t d, multiplier, p;

  explicit Divisor(uint32_t d) : d(d), p(31) {
    while (uint64_t{d} << 31 > uint64_t{1} << p) ++p;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << p) + d - 1) / d);
  }

  __device__ int32_t quotient(uint32_t n) const { return uint64_t{n} * multiplier >> p; }
};

}  // namespace shiftmlp
