// A block's part of an operand, of 32 terms of the sums, on its way into shared memory.
#pragma once

#include "../image.h"
#include "activation.h"
#include "items.h"
#include "primitives.h"

namespace shiftmlp {

constexpr int kDepth = 32;  // terms of a chunk
// Rows of 16-byte words end in an odd one, so that ldmatrix's eight rows lie in different banks.
constexpr int kPad = 8;

// An operand as a kernel takes it.
struct Side {
  Operand operand;        // whose shift is a pointer of the host's,
  Shift shift;            // and this its value
  int32_t rows, columns;  // of an image
  int32_t bytes;          // that can be copied at a time
  bool changes;           // more is to be done than to copy
};

// The element (r, c) of an image after the shift; null where zero enters.
template <class T>
__device__ const T* element(const Side& side, const T* image, int32_t r, int32_t c) {
  const int64_t stride = side.operand.rows.stride;
  if (side.operand.shift == nullptr) return image + r * stride + c;
  const int32_t H = side.operand.H, W = side.operand.W, line = r / W;
  const Shift& shift = side.shift;
  const Image<T> map{image + int64_t{line / H} * H * W * stride + c,
                     H,
                     W,
                     W * stride,
                     stride,
                     shift.border == Border::kWrap};
  const Step step = shift.steps[shift.group(c, side.columns)];
  return Shifted<T>(map, line % H, step, shift.border == Border::kKeep).at(r % W);
}

// kSize of the result's columns or rows by kDepth terms. A thread copies the same pieces of 16
// bytes in each chunk, all in one column of pieces.
template <class T, bool kSumsRows, int kSize, int kThreads>
struct Tile {
  static constexpr int kRows = kSumsRows ? kDepth : kSize;
  static constexpr int kColumns = kSumsRows ? kSize : kDepth;
  static constexpr int kAcross = kColumns <= 32    ? 4
                                 : kColumns <= 64  ? 8
                                 : kColumns <= 128 ? 16
                                                   : 32;  // threads
  static constexpr int kDown = kThreads / kAcross;
  static_assert(kColumns <= 256 && kThreads % kAcross == 0);

  T items[kRows][kColumns + kPad];

  // Starts the copy of the terms from k on of image b, for the columns or rows of the result from
  // `first` on; of zeros beyond the image.
  __device__ void copy(const Side& side, int64_t b, int32_t first, int32_t k) {
    switch (side.bytes) {
      case 16:
        return copy_by<16>(side, b, first, k);
      case 8:
        return copy_by<8>(side, b, first, k);
      case 4:
        return copy_by<4>(side, b, first, k);
      default:
        return copy_by<2>(side, b, first, k);
    }
  }

  // Turns this thread's pieces, once they are there, into what the operand is made of.
  __device__ void change(const Side& side, int64_t b, int32_t first, int32_t k) {
    const Operand& o = side.operand;
    const int32_t c = (kSumsRows ? first : k) + column(), count = side.columns - c;
    if (count <= 0) return;
    const bool norm = o.mean != nullptr || o.weight.data != nullptr || o.bias.data != nullptr;
    const Items weight = read(o.weight, c, count, 1.0f), bias = read(o.bias, c, count, 0.0f);
    const Items scale = read(o.scale, c, count, 1.0f);
    for_each_row<1>([&](int row) {
      const int32_t r = (kSumsRows ? k : first) + row;
      if (r >= side.rows) return;
      T* const piece = &items[row][column()];
      Items v = read(piece, kItems);
      if (norm) {
        const int64_t at = b * side.rows + r;
        const float mean = o.mean ? o.mean[at] : 0.0f, rstd = o.mean ? o.rstd[at] : 1.0f;
        for_each_item(
            [&](int i) { v.at[i] = (v.at[i] - mean) * rstd * weight.at[i] + bias.at[i]; });
      }
      with_activation(o.activation, [&](auto activation) {
        for_each_item([&](int i) { v.at[i] = activate<decltype(activation)::value>(v.at[i]); });
      });
      for_each_item([&](int i) { v.at[i] *= scale.at[i]; });
      if (o.factor.data) {
        const Items factor = read<T>(o.factor, b, r, c, count);
        for_each_item([&](int i) { v.at[i] *= factor.at[i]; });
      }
      for_each_item([&](int i) { v.at[i] = i < count ? v.at[i] : 0.0f; });
      write(piece, v, kItems);
    });
  }

  // Loads 8 x 8 matrices as mma takes them. Eight lanes, of each matrix, give where it begins: the
  // column or row of the result, and the term.
  template <int kCount>
  __device__ void load(uint32_t (&to)[kCount], int at, int k) const {
    const int line = threadIdx.x % 8;
    ldmatrix<kSumsRows>(to, kSumsRows ? &items[k + line][at] : &items[at + line][k]);
  }

 private:
  static __device__ int column() { return threadIdx.x % kAcross * kItems; }

  // Calls f(row) for each of this thread's pieces.
  template <int kUnroll, class F>
  static __device__ void for_each_row(const F& f) {
    if (column() >= kColumns) return;
#pragma unroll kUnroll
    for (int above = 0; above < kRows; above += kDown) {
      const int row = above + threadIdx.x / kAcross;
      if (kRows % kDown == 0 || row < kRows) f(row);
    }
  }

  template <int kBytes>
  __device__ void copy_by(const Side& side, int64_t b, int32_t first, int32_t k) {
    constexpr int kEach = kBytes / sizeof(T);
    const T* const data = static_cast<const T*>(side.operand.rows.data);
    const T* const image = data + b * side.operand.rows.stride_b;
    for_each_row<kBytes >= 8 ? kRows / kDown : 1>([&](int row) {
      const int32_t r = (kSumsRows ? k : first) + row;
#pragma unroll
      for (int i = 0; i < kItems; i += kEach) {
        const int32_t c = (kSumsRows ? first : k) + column() + i;
        const bool inside = r < side.rows && c < side.columns;
        const T* const from = inside ? element(side, image, r, c) : nullptr;
        T* const to = &items[row][column() + i];
        if constexpr (kBytes >= 4) {
          cp_async<kBytes>(to, from ? from : data, from != nullptr);
        } else {
          *to = from ? *from : T(0.0f);
        }
      }
    });
  }
};

}  // namespace shiftmlp
