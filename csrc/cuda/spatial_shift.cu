// spatial_shift moves data and computes nothing: 0 operations (at most 1 addition an element in the
// backward of "keep") and 2 * bytes(x) of traffic, so its floor is 2 * bytes(x) / bandwidth.
// A thread owns one word of channels, all of one group, and walks the pixels of a row: the group is
// found once a row, and neighbouring threads read and write neighbouring words.
#include <cstring>

#include "device.h"
#include "spatial_shift.h"

namespace shiftmlp {
namespace {

constexpr uint32_t kThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 31;  // a launch: the block's row is a 32-bit number

// SpatialShiftParams with all sizes and strides counted in words.
template <class Word>
struct Words {
  Image<Word> first;
  Word* y;
  int64_t stride_b;
  uint32_t words, tiles;  // words of a pixel, blocks side by side for them
  uint32_t item;
  int32_t C;
  bool keep;
  Shift shift;
};

// Stores to every word of y what read(make_reader(image, h, step), w) gives.
template <class Word, class MakeReader, class Read>
__device__ void for_each_word(const Words<Word>& p, MakeReader make_reader, Read read) {
  constexpr int kBatch = 4;  // loads in flight; a store between them would hold up the next
  const uint32_t H = p.first.H;
  const int32_t W = p.first.W;
  const uint32_t row = blockIdx.x / p.tiles;
  const uint32_t word = blockIdx.x % p.tiles * blockDim.x + threadIdx.x;
  if (word >= p.words) return;
  const uint32_t c = word * static_cast<uint32_t>(sizeof(Word)) / p.item;
  Image<Word> image = p.first;
  image.data += row / H * p.stride_b + word;
  const auto reader = make_reader(image, row % H, p.shift.steps[p.shift.group(c, p.C)]);
  Word* y = p.y + int64_t{row} * W * p.words + word;
  for (int32_t first = threadIdx.y; first < W; first += kBatch * blockDim.y) {
    Word batch[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int32_t w = first + i * blockDim.y;
      if (w < W) batch[i] = read(reader, w);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int32_t w = first + i * blockDim.y;
      if (w < W) y[int64_t{w} * p.words] = batch[i];
    }
  }
}

template <class Word>
__device__ Word load(const Word* from) {
  return from == nullptr ? Word{} : *from;
}

template <class Word>
__global__ void __launch_bounds__(kThreads)
    spatial_shift_kernel(const __grid_constant__ Words<Word> p) {
  for_each_word(
      p,
      [&p](const Image<Word>& x, int32_t h, Step step) {
        return Shifted<Word>(x, h, step, p.keep);
      },
      [](const Shifted<Word>& reader, int32_t w) { return load(reader.at(w)); });
}

__device__ float sum(float a, float b) { return a + b; }
__device__ double sum(double a, double b) { return a + b; }
__device__ __half sum(__half a, __half b) { return __half(float(a) + float(b)); }
__device__ __nv_bfloat16 sum(__nv_bfloat16 a, __nv_bfloat16 b) {
  return __nv_bfloat16(float(a) + float(b));
}

template <class T, class Word>
__global__ void __launch_bounds__(kThreads)
    spatial_shift_keep_backward_kernel(const __grid_constant__ Words<Word> p) {
  constexpr int kItems = sizeof(Word) / sizeof(T);
  for_each_word(
      p, [](const Image<Word>& dy, int32_t h, Step step) { return Gathered<Word>(dy, h, step); },
      [](const Gathered<Word>& reader, int32_t w) {
        const Terms<Word> terms = reader.at(w);
        Word word = load(terms.moved);
        const Word other = load(terms.kept);
        T total[kItems], kept[kItems];
        memcpy(total, &word, sizeof word), memcpy(kept, &other, sizeof other);
#pragma unroll
        for (int i = 0; i < kItems; ++i) total[i] = sum(total[i], kept[i]);
        memcpy(&word, total, sizeof word);
        return word;
      });
}

// Whether pointers, strides and groups are all multiples of `bytes`.
bool divides(int64_t bytes, const SpatialShiftParams& p) {
  const int64_t item = p.item;
  uint64_t all = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y);
  for (const int64_t n : {p.stride_b, p.stride_h, p.stride_w, int64_t{p.C}}) all |= n * item;
  return (all | p.shift.edges(p.C) * item) % bytes == 0;
}

template <class Word>
Words<Word> in_words(const SpatialShiftParams& p) {
  const auto words = [&p](int64_t n) { return n * p.item / static_cast<int64_t>(sizeof(Word)); };
  const Image<Word> first{
      static_cast<const Word*>(p.x),  p.H, p.W, words(p.stride_h), words(p.stride_w),
      p.shift.border == Border::kWrap};
  const uint32_t pixel = static_cast<uint32_t>(words(p.C));
  return {first, static_cast<Word*>(p.y),           words(p.stride_b),
          pixel, (pixel + kThreads - 1) / kThreads, static_cast<uint32_t>(p.item),
          p.C,   p.shift.border == Border::kKeep,   p.shift};
}

template <class Word>
void launch(void (*kernel)(Words<Word>), const SpatialShiftParams& params, cudaStream_t stream) {
  Words<Word> p = in_words<Word>(params);
  const uint32_t x = std::min(p.words, kThreads);
  const uint32_t y = std::min<uint32_t>(params.W, kThreads / x);
  const int64_t blocks = int64_t{params.H} * p.tiles;  // of an image
  const int64_t most = std::max<int64_t>((kMaxBlocks - 1) / blocks, 1);
  for (int64_t left = params.B; left > 0; left -= most) {
    const int64_t images = std::min(left, most);
    shiftmlp::launch(kernel, dim3(static_cast<uint32_t>(images * blocks)), dim3(x, y), 0, stream,
                     p);
    p.first.data += images * p.stride_b;
    p.y += images * params.H * params.W * p.words;
  }
}

}  // namespace

void launch_spatial_shift(const SpatialShiftParams& p, cudaStream_t stream) {
  int64_t bytes = 16;
  while (!divides(bytes, p)) bytes /= 2;
  with_int<1, 2, 4, 8, 16>(bytes, [&](auto size) {
    launch(spatial_shift_kernel<Bits<decltype(size)::value>>, p, stream);
  });
}

void launch_spatial_shift_keep_backward(const SpatialShiftParams& p, DType dtype,
                                        cudaStream_t stream) {
  with_type<__half, __nv_bfloat16>(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (divides(16, p)) {
      launch(spatial_shift_keep_backward_kernel<T, Bits128>, p, stream);
    } else {
      launch(spatial_shift_keep_backward_kernel<T, Bits<sizeof(T)>>, p, stream);
    }
  });
}

}  // namespace shiftmlp
