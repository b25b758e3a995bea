// How spatial_shift reads a map: the same lines in the CPU and the CUDA kernels. No torch.
#pragma once

#include "shift.h"

namespace shiftmlp {

// A row of pixels. Without data it lies outside the image.
template <class T>
struct Row {
  const T* data;
  int32_t W;
  int64_t stride;
  bool wrap;

  // The pixel in column w, or null outside.
  SHIFTMLP_HOST_DEVICE const T* at(int32_t w) const {
    if (wrap && w < 0) w += W;
    return data != nullptr && 0 <= w && w < W ? data + w * stride : nullptr;
  }
};

// One (H, W, C) image of a map, with C dense. Strides count T.
template <class T>
struct Image {
  const T* data;
  int32_t H, W;
  int64_t stride_h, stride_w;
  bool wrap;

  SHIFTMLP_HOST_DEVICE Row<T> row(int32_t h) const {
    if (wrap && h < 0) h += H;
    return {0 <= h && h < H ? data + h * stride_h : nullptr, W, stride_w, wrap};
  }
};

// Where the content of row h of the result comes from.
template <class T>
struct Shifted {
  Row<T> from, own;
  int32_t dx;
  bool keep;

  SHIFTMLP_HOST_DEVICE Shifted(const Image<T>& x, int32_t h, Step step, bool keep)
      : from(x.row(h - step.dy)), own(x.row(h)), dx(step.dx), keep(keep) {}

  // Null where zero enters.
  SHIFTMLP_HOST_DEVICE const T* at(int32_t w) const {
    const T* moved = from.at(w - dx);
    return moved == nullptr && keep ? own.at(w) : moved;
  }
};

template <class T>
struct Terms {
  const T *moved, *kept;
};

// The adjoint of "keep": a pixel was read where its content went, and by itself if it was kept.
template <class T>
struct Gathered {
  Row<T> from, to, own;
  int32_t dx;

  SHIFTMLP_HOST_DEVICE Gathered(const Image<T>& dy, int32_t h, Step step)
      : from(dy.row(h - step.dy)), to(dy.row(h + step.dy)), own(dy.row(h)), dx(step.dx) {}

  SHIFTMLP_HOST_DEVICE Terms<T> at(int32_t w) const {
    return {to.at(w + dx), from.at(w - dx) == nullptr ? own.at(w) : nullptr};
  }
};

}  // namespace shiftmlp
