// spatial_shift on the CPU: every group of channels of every pixel is one copy, rows in parallel.
#include "spatial_shift.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <vector>

namespace shiftmlp {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class Reader>
struct Group {
  Channels channels;
  Reader reader;
};

// Calls write(y of the pixel, w, group) for every group of channels of every pixel. Pixels come
// first, so that y is written in order. make_reader(image, h, step) is called once a row and group.
template <class T, class MakeReader, class Write>
void for_each_group(const Map& map, const Shift& shift, T* y, const MakeReader& make_reader,
                    const Write& write) {
  using Reader = decltype(make_reader(Image<T>{}, 0, Step{}));
  const T* data = static_cast<const T*>(map.x.const_data_ptr());
  const int64_t stride_b = map.x.stride(0), row_size = int64_t{map.W} * map.C;
  const Image<T> first{
      data, map.H, map.W, map.x.stride(1), map.x.stride(2), shift.border == Border::kWrap};
  // Waking a second thread costs as much as moving this much.
  constexpr int64_t kBytesPerTask = 1 << 19;
  const int64_t grain = kBytesPerTask / (row_size * static_cast<int64_t>(sizeof(T))) + 1;

  torch::stable::parallel_for(0, map.B * map.H, grain, [&](int64_t begin, int64_t end) {
    std::vector<Group<Reader>> groups;
    for (int64_t row = begin; row < end; ++row) {
      Image<T> image = first;
      image.data += row / map.H * stride_b;
      groups.clear();
      for (int32_t g = 0; g <= shift.count; ++g) {
        const Channels channels = shift.channels(g, map.C);
        if (channels.begin >= channels.end) continue;
        groups.push_back({channels, make_reader(image, row % map.H, shift.steps[g])});
      }
      T* pixel = y + row * row_size;
      for (int32_t w = 0; w < map.W; ++w, pixel += map.C) {
        for (const Group<Reader>& group : groups) write(pixel, w, group);
      }
    }
  });
}

template <class F>
void for_each_channel(Channels channels, const F& f) {
  if (channels.stride == 1) {  // a loop of its own, as only this one vectorizes
    for (int32_t c = channels.begin; c < channels.end; ++c) f(c);
  } else {
    for (int32_t c = channels.begin; c < channels.end; c += channels.stride) f(c);
  }
}

template <class T>
void copy(T* y, const T* x, Channels channels) {
  if (channels.stride != 1) {
    return for_each_channel(channels, [=](int32_t c) { y[c] = x == nullptr ? T{} : x[c]; });
  }
  const size_t bytes = (channels.end - channels.begin) * sizeof(T);
  if (x == nullptr) {
    std::memset(y + channels.begin, 0, bytes);
  } else {
    std::memcpy(y + channels.begin, x + channels.begin, bytes);
  }
}

template <class T>
T sum(T a, T b) {
  if constexpr (sizeof(T) == 2) {
    return static_cast<float>(a) + static_cast<float>(b);
  } else {
    return a + b;
  }
}

// x + 0, which turns -0 to +0 as a sum does; 16-bit types without the way through float.
template <class T>
T plus_zero(T x) {
  if constexpr (sizeof(T) == 2) {
    return T(x.x == 0x8000 ? 0 : x.x, T::from_bits());
  } else {
    return x + T(0);
  }
}

template <class T>
void add(T* dx, Terms<T> terms, Channels channels) {
  const T* one = terms.moved == nullptr ? terms.kept : terms.moved;
  if (one == nullptr) return copy(dx, one, channels);
  if (terms.moved == nullptr || terms.kept == nullptr) {
    return for_each_channel(channels, [=](int32_t c) { dx[c] = plus_zero(one[c]); });
  }
  for_each_channel(channels, [=](int32_t c) { dx[c] = sum(terms.moved[c], terms.kept[c]); });
}

Tensor run(const Tensor& x, const Shift& unfitted) {
  Tensor y = empty_contiguous(x);
  const Map map(x);
  if (map.empty()) return y;
  const Shift shift = unfitted.within(map.H, map.W);
  const bool keep = shift.border == Border::kKeep;
  with_int<1, 2, 4, 8, 16>(x.element_size(), [&](auto size) {
    using T = Bits<decltype(size)::value>;
    const auto make_reader = [keep](const Image<T>& image, int32_t h, Step step) {
      return Shifted<T>(image, h, step, keep);
    };
    for_each_group(map, shift, static_cast<T*>(y.mutable_data_ptr()), make_reader,
                   [](T* pixel, int32_t w, const Group<Shifted<T>>& group) {
                     copy(pixel, group.reader.at(w), group.channels);
                   });
  });
  return y;
}

Tensor run_keep_backward(const Tensor& dy, const Shift& unfitted) {
  Tensor dx = empty_contiguous(dy);
  const Map map(dy);
  if (map.empty()) return dx;
  const Shift shift = unfitted.within(map.H, map.W);
  with_type<Half, BFloat16>(dtype_of(dy), [&](auto type) {
    using T = typename decltype(type)::type;
    const auto make_reader = [](const Image<T>& image, int32_t h, Step step) {
      return Gathered<T>(image, h, step);
    };
    for_each_group(map, shift, static_cast<T*>(dx.mutable_data_ptr()), make_reader,
                   [](T* pixel, int32_t w, const Group<Gathered<T>>& group) {
                     add(pixel, group.reader.at(w), group.channels);
                   });
  });
  return dx;
}

}  // namespace

Tensor spatial_shift(const Tensor& x, const std::string& shift) {
  return run(x, Shift::parse(shift));
}

Tensor spatial_shift_backward(const Tensor& dy, const std::string& spec) {
  const Shift shift = Shift::parse(spec);
  return shift.border == Border::kKeep ? run_keep_backward(dy, shift) : run(dy, shift.reversed());
}

}  // namespace shiftmlp

STABLE_TORCH_LIBRARY_IMPL(shiftmlp_cpu, CPU, m) {
  m.impl("spatial_shift", TORCH_BOX(&shiftmlp::spatial_shift));
  m.impl("spatial_shift_backward", TORCH_BOX(&shiftmlp::spatial_shift_backward));
}
