// Shift in C++: the value that shiftmlp/shift.py defines, read from its spec ("keep floor 1,0
// -1,0"). Shared by the CPU and the CUDA kernels; no torch.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

#ifdef __CUDACC__
#define SHIFTMLP_HOST_DEVICE __host__ __device__
#else
#define SHIFTMLP_HOST_DEVICE
#endif

namespace shiftmlp {

// H, W and C are checked against this, so that sums and products of them with steps fit 32 bits.
constexpr int64_t kMaxSide = 1 << 24;

enum class Border : int32_t { kKeep, kZero, kWrap };
enum class Split : int32_t { kFloor, kChunk, kCycle, kFold, kCycleFold };

struct Step {
  int32_t dy, dx;  // content moves dy rows down and dx columns right
};

// The channels of one group: begin, begin + stride, ... below end.
struct Channels {
  int32_t begin, end, stride;
};

struct Shift {
  // A kernel gets the whole value as an argument, and all arguments have 4 KiB at most.
  static constexpr int32_t kMaxSteps = 64;

  Border border;
  Split split;
  int32_t count;              // groups 0 ... count - 1 take a step each,
  Step steps[kMaxSteps + 1];  // group `count` holds the channels that a fold leaves over: they stay

  // The group of channel c of C.
  SHIFTMLP_HOST_DEVICE int32_t group(int32_t c, int32_t C) const {
    const uint32_t n = count, i = c;
    switch (split) {
      case Split::kFloor:
        return ((i + 1) * n - 1) / C;
      case Split::kChunk:
        return i / ((C + n - 1) / n);
      case Split::kCycle:
        return i % n;
      default:
        if (i >= C / n * n) return n;
        return split == Split::kFold ? i / (C / n) : i % n;
    }
  }

  // The same, told by group: kernels that walk the channels in order need no division.
  Channels channels(int32_t g, int32_t C) const {
    const int32_t n = count, width = C / n, chunk = (C + n - 1) / n;
    const bool fold = split == Split::kFold || split == Split::kCycleFold;
    if (g == n) return {fold ? width * n : C, C, 1};
    switch (split) {
      case Split::kFloor:
        return {g * C / n, (g + 1) * C / n, 1};
      case Split::kChunk:
        return {std::min(g * chunk, C), std::min((g + 1) * chunk, C), 1};
      case Split::kFold:
        return {g * width, (g + 1) * width, 1};
      default:
        return {g, fold ? width * n : C, n};
    }
  }

  // All channels at which a group begins or ends, or 1 for groups of channels apart, in one word:
  // what divides it divides each of them.
  uint32_t edges(int32_t C) const {
    uint32_t all = 0;
    for (int32_t g = 0; g <= count; ++g) {
      const Channels in = channels(g, C);
      if (in.begin < in.end) all |= in.stride == 1 ? in.begin | in.end : 1;
    }
    return all;
  }

  // The steps that an H by W map sees: at most its size, and with "wrap" in [0, size).
  Shift within(int32_t H, int32_t W) const {
    Shift result = *this;
    for (int32_t g = 0; g < count; ++g) {
      result.steps[g] = {fit(steps[g].dy, H), fit(steps[g].dx, W)};
    }
    return result;
  }

  Shift reversed() const {
    Shift result = *this;
    for (int32_t g = 0; g < count; ++g) result.steps[g] = {-steps[g].dy, -steps[g].dx};
    return result;
  }

  static Shift parse(const std::string& spec);

 private:
  int32_t fit(int32_t step, int32_t size) const {
    if (border == Border::kWrap) return (step % size + size) % size;
    return std::clamp(step, -size, size);
  }
};

inline Shift Shift::parse(const std::string& spec) {
  std::string_view rest = spec;
  const auto bad = [&spec] { return std::invalid_argument("not the spec of a Shift: " + spec); };
  const auto word = [&rest](char end) {
    const std::string_view first = rest.substr(0, rest.find(end));
    rest.remove_prefix(std::min(first.size() + 1, rest.size()));
    return first;
  };
  const auto index = [&](std::initializer_list<std::string_view> words) {
    const auto found = std::find(words.begin(), words.end(), word(' '));
    if (found == words.end()) throw bad();
    return static_cast<int32_t>(found - words.begin());
  };
  const auto number = [&](char end) {
    const std::string_view digits = word(end);
    int32_t value = 0;
    const auto [stop, error] = std::from_chars(digits.begin(), digits.end(), value);
    const bool whole = error == std::errc() && stop == digits.end();
    if (!whole || value == std::numeric_limits<int32_t>::min()) throw bad();
    return value;
  };
  Shift shift{};
  shift.border = static_cast<Border>(index({"keep", "zero", "wrap"}));
  shift.split = static_cast<Split>(index({"floor", "chunk", "cycle", "fold", "cycle_fold"}));
  do {
    if (shift.count == kMaxSteps) throw bad();
    const int32_t dy = number(',');
    shift.steps[shift.count++] = {dy, number(' ')};
  } while (!rest.empty());
  return shift;
}

}  // namespace shiftmlp
