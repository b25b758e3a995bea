// A block's part of an operand, of 64 bytes of terms of the sums, on its way into shared memory.
#pragma once

#include <algorithm>

#include "../image.h"
#include "divisor.h"
#include "items.h"
#include "primitives.h"

namespace shiftmlp {

template <class T>
constexpr int kWord = 16 / sizeof(T);  // items of 16 bytes, in which memory is accessed
template <class T>
constexpr int kDepth = 4 * kWord<T>;  // terms of a chunk

// The first power of two that is n or more.
constexpr int power_of_two(int n) { return n > 1 ? 2 * power_of_two((n + 1) / 2) : 1; }

// An operand as a kernel takes it.
struct Side {
  Operand operand;        // whose shift is a pointer of the host's,
  Shift shift;            // and this its value,
  Divisor H, W;           // of H and W;
  int32_t rows, columns;  // of an image
  int32_t bytes;          // that can be copied at a time
  bool plain;             // no shift, and bytes are 8 or 16
  bool changes;           // more is to be done than to copy
};

// The bytes by which an operand's pieces can be copied: pointers, rows and groups are multiples.
inline int32_t bytes_of_a_copy(const Side& side, int64_t item) {
  const Rows& rows = side.operand.rows;
  uint64_t all = reinterpret_cast<uintptr_t>(rows.data);
  for (const int64_t n : {rows.stride_b, rows.stride, int64_t{side.columns}}) all |= n * item;
  if (side.operand.shift) all |= side.shift.edges(side.columns) * item;
  int32_t bytes = 16;
  while (all % bytes != 0) bytes /= 2;
  return bytes;
}

// `size` is the operand's in the result.
inline Side side_of(const Operand& o, int32_t size, int32_t K, int64_t item) {
  Side side{o, {}, Divisor(std::max(o.H, 1)), Divisor(std::max(o.W, 1)), K, size, 0, false, false};
  if (!o.sums_rows) std::swap(side.rows, side.columns);
  if (o.shift) side.shift = *o.shift;
  side.bytes = bytes_of_a_copy(side, item);
  side.plain = !o.shift && side.bytes >= 8;
  side.changes = o.mean || o.weight.data || o.bias.data || o.factor.data;
  return side;
}

// A thread's pieces of a tile, 16 bytes each, below one another. What a tile knows are numbers
// here: code that is long, or slow in any case, is compiled once for both operands.
template <class T>
struct Pieces {
  T* at;         // the first one, in shared memory,
  int32_t r, c;  // and in the image
  int32_t count;
  int32_t pitch, down;  // items and rows from one to the next
};

// The element (r, c) of an image after the shift; null where zero enters.
template <class T>
__device__ const T* element(const Side& side, const T* image, int32_t r, int32_t c) {
  const int64_t stride = side.operand.rows.stride;
  if (side.operand.shift == nullptr) return image + r * stride + c;
  const Shift& shift = side.shift;
  const int32_t H = side.operand.H, W = side.operand.W;
  const int32_t line = side.W.quotient(r), number = side.H.quotient(line);
  const bool wrap = shift.border == Border::kWrap, keep = shift.border == Border::kKeep;
  const T* const map = image + int64_t{number} * H * W * stride + c;
  const Step step = shift.steps[shift.group(c, side.columns)];
  const Shifted<T> shifted({map, H, W, W * stride, stride, wrap}, line - number * H, step, keep);
  return shifted.at(r - line * W);
}

// Starts the copy of the pieces from image b; of zeros beyond it.
template <class T>
__device__ void copy_any(const Pieces<T>& pieces, const Side& side, int64_t b) {
  const T* const data = static_cast<const T*>(side.operand.rows.data);
  const T* const image = data + b * side.operand.rows.stride_b;
  const int each = side.bytes / static_cast<int>(sizeof(T));
#pragma unroll 1
  for (int i = 0; i < pieces.count; ++i) {
    const int32_t r = pieces.r + i * pieces.down;
#pragma unroll 1
    for (int j = 0; j < kWord<T>; j += each) {
      const int32_t c = pieces.c + j;
      const bool inside = r < side.rows && c < side.columns;
      const T* const found = inside ? element(side, image, r, c) : nullptr;
      const T* const from = found ? found : data;
      T* const to = pieces.at + i * pieces.pitch + j;
      switch (side.bytes) {
        case 16:
          cp_async<16>(to, from, found != nullptr);
          break;
        case 8:
          cp_async<8>(to, from, found != nullptr);
          break;
        case 4:
          cp_async<4>(to, from, found != nullptr);
          break;
        default:
          *to = found ? *found : T(0.0f);
      }
    }
  }
}

// What belongs to one piece alone.
template <class T>
struct OfPiece {
  float mean, rstd;
  Packed<T, kWord<T>> factor;

  __device__ void load(const Operand& o, int64_t b, int64_t rows, int32_t r, int32_t c, int count) {
    const int64_t at = b * rows + r;
    if (o.mean) mean = o.mean[at], rstd = o.rstd[at];
    if (o.factor.data) factor = pack<T, kWord<T>>(o.factor, b, r, c, count);
  }
};

// Turns this thread's pieces, once they are there, into what the operand is made of. Memory is
// waited for once for kBatch pieces.
template <int kBatch, class T>
__device__ void change(const Pieces<T>& pieces, const Side& side, int64_t b) {
  constexpr int kItems = kWord<T>;
  const Operand& o = side.operand;
  const int32_t c = pieces.c, count = side.columns - c;
  if (count <= 0) return;
  const bool norm = o.mean != nullptr || o.weight.data != nullptr || o.bias.data != nullptr;
  const auto weight = read<kItems>(o.weight, c, count, 1.0f);
  const auto bias = read<kItems>(o.bias, c, count, 0.0f);
  OfPiece<T> batch[kBatch];
#pragma unroll 1
  for (int piece = 0; piece < pieces.count; ++piece) {
    const auto row = [&](int piece) { return pieces.r + piece * pieces.down; };
    if (row(piece) >= side.rows) return;
    if (piece % kBatch == 0) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (row(piece + i) >= side.rows) break;
        batch[i].load(o, b, side.rows, row(piece + i), c, count);
      }
    }
    const OfPiece<T> own = batch[0];
#pragma unroll
    for (int i = 1; i < kBatch; ++i) batch[i - 1] = batch[i];
    T* const at = pieces.at + piece * pieces.pitch;
    auto v = read<kItems>(at, kItems);
    if (norm) {
      const float mean = o.mean ? own.mean : 0.0f, rstd = o.mean ? own.rstd : 1.0f;
      for_each_item<kItems>(
          [&](int i) { v.at[i] = (v.at[i] - mean) * rstd * weight.at[i] + bias.at[i]; });
    }
    if (o.factor.data) {
      const auto factor = unpack(own.factor);
      for_each_item<kItems>([&](int i) { v.at[i] *= factor.at[i]; });
    }
    for_each_item<kItems>([&](int i) { v.at[i] = i < count ? v.at[i] : 0.0f; });
    write(at, v, kItems);
  }
}

// kSize of the result's columns or rows by kDepth terms. A thread copies the same pieces in each
// chunk, all in one column of pieces.
template <class T, bool kSumsRows, int kSize, int kThreads>
struct Tile {
  static constexpr int kRows = kSumsRows ? kDepth<T> : kSize;
  static constexpr int kColumns = kSumsRows ? kSize : kDepth<T>;
  // So that what a warp loads lies in different banks: eight words in neighbouring rows, for
  // ldmatrix or of four floats each, or eight floats in each of four.
  static constexpr int kPitch = kColumns + (kSumsRows ? 8 : kWord<T>);
  static constexpr int kWords = kColumns / kWord<T>;
  static constexpr int kAcross = power_of_two(kWords);  // threads that copy a row
  static constexpr int kDown = kThreads / kAcross;
  static_assert(kThreads % kAcross == 0);

  T items[kRows][kPitch];

  // This thread's, of the terms from k on for the result's columns or rows from `first` on.
  __device__ Pieces<T> pieces(int32_t first, int32_t k) {
    const int row = threadIdx.x / kAcross, column = threadIdx.x % kAcross * kWord<T>;
    const bool idle = column >= kColumns;
    const int count = idle ? 0 : (kRows - row + kDown - 1) / kDown;
    return {&items[row][idle ? 0 : column],
            (kSumsRows ? k : first) + row,
            (kSumsRows ? first : k) + column,
            count,
            kDown * kPitch,
            kDown};
  }

  // Starts the copy of a plain operand's pieces from image b; of zeros beyond it.
  __device__ void copy(const Pieces<T>& pieces, const Side& side, int64_t b) {
    side.bytes == 16 ? copy_by<16>(pieces, side, b) : copy_by<8>(pieces, side, b);
  }

  // Loads matrices of 8 columns or rows of the result by kWord terms, as mma takes them: the first
  // one from `at` and k on, the second one beside it along the terms or not, the others beyond.
  template <bool kTermsFirst, int kCount>
  __device__ void load(uint32_t (&to)[kCount], int at, int k) const {
    const auto item = [&](int matrix, int line, int term) {
      const int near = matrix % 2, far = matrix / 2;
      line += at + (kTermsFirst ? far : near) * 8;
      term += k + (kTermsFirst ? near : far) * kWord<T>;
      return kSumsRows ? &items[term][line] : &items[line][term];
    };
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 4) {  // one by one: ldmatrix turns no floats
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] = to_tf32(*item(i, lane / 4, lane % 4));
    } else {
      const int row = lane % 8;
      ldmatrix<kSumsRows>(to, kSumsRows ? item(lane / 8, 0, row) : item(lane / 8, row, 0));
    }
  }

 private:
  template <int kBytes>
  __device__ static void copy_by(const Pieces<T>& pieces, const Side& side, int64_t b) {
    const Rows& rows = side.operand.rows;
    const T* const data = static_cast<const T*>(rows.data);
    const T* from = data + b * rows.stride_b + pieces.r * rows.stride + pieces.c;
#pragma unroll
    for (int i = 0; i < (kRows + kDown - 1) / kDown; ++i) {
      if (i >= pieces.count) return;
#pragma unroll
      for (int j = 0; j < kWord<T>; j += kBytes / sizeof(T)) {
        const bool inside = pieces.r + i * kDown < side.rows && pieces.c + j < side.columns;
        cp_async<kBytes>(pieces.at + i * kDown * kPitch + j, inside ? from + j : data, inside);
      }
      from += kDown * rows.stride;
    }
  }
};

}  // namespace shiftmlp
