// What a unit for one instruction set offers: the few passes that every op is put together from.
//
// Numbers in work stand in tiles, [block][row][lane]: a row is what products sum over, a lane an
// independent column of the problem, a block as many lanes as a product keeps in registers. Tokens
// mix with channels as lanes, channels with tokens as lanes; only `pack` and `unpack` know which.
//
// The right operand of a product that rounds it to bfloat16 can stand in a paired tile as well,
// [block][pair of rows][lane]: words of two neighbours, the first in the lower half.
//
// Plain data and no function, so that no code of one instruction set can be linked into another.
#pragma once

#include "../activation.h"
#include "../dtype.h"

// What the compiler has no instructions for is left out.
#if defined(__x86_64__) && __has_include(<avx512bf16intrin.h>)
#define SHIFTMLP_AVX512_BF16
#endif
#if defined(SHIFTMLP_AVX512_BF16) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define SHIFTMLP_AMX
#endif

namespace shiftmlp {

// Rows in memory whose elements are dense. Strides count elements.
struct Rows {
  void* data;
  DType dtype;
  int64_t stride;
};

// The left operand of a product, (N, K): element (n, k) is at n * row + k * column, one of which
// is 1; with `block` it is a tile, of `block` lanes, of which k counts all.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row, column;
  int64_t block;
  int64_t zeros = 0;    // so many behind each row's last term
  bool paired = false;  // whether the tile is
};

// (x - mean) * rstd * weight + bias. What is null is left out.
template <class Acc>
struct Norm {
  const double *mean, *rstd;  // for every row
  const Acc *weight, *bias;   // for every column
};

// Memory on its way into a tile and back. A tile is `turned` if its lanes are the rows in memory.
template <class Acc>
struct Transfer {
  Rows memory;
  int64_t rows, columns;
  bool turned;
  Norm<Acc> norm;
  const Acc* scale;     // for every column, or null
  Rows factor;          // for every element; without data: none
  Rows residual;        // the same
  bool paired = false;  // whether the tile is
};

// Which tiles of a product are paired.
struct Pairing {
  bool right = false, out = false;
};

// out = activation(left * right + bias), for the blocks of `lanes` lanes; with `accumulate`, of the
// sum with what stands in out.
template <class Acc>
struct Product {
  Operand left;
  const Acc* right;  // a tile of K rows
  const Acc* bias;   // (N,) or null
  Acc* out;          // a tile of N rows
  int64_t N, K, lanes;
  Activation activation;
  bool accumulate;
  Acc* scratch;                       // Engine::scratch(K, lanes) elements
  const Transfer<Acc>* to = nullptr;  // where the result goes, without `accumulate`, not to a tile
  bool rounded = false;               // whether what is not of bfloat16 may be rounded to it
  Pairing pairing = {};               // with `out`, the memory of `to` takes words as they are
  // A tile for the activation's slopes, or `backward`, what the result is multiplied by instead of
  // being activated. Beside it there is no `to`.
  Acc* slopes = nullptr;
  bool backward = false;
};

// Every stride-th row of a tile from `begin` to `end`: its lane i is map[row * pitch + from[i]], or
// zero where from[i] is negative. A register's numbers before and behind the map are read as well.
template <class Acc>
struct Gathering {
  const Acc* map;
  int64_t pitch;
  const int64_t* from;  // for every lane of the blocks
  int64_t rows, blocks;
  int64_t begin, end, stride;
};

template <class Acc>
struct Engine {
  int64_t lanes;       // of a block
  int64_t tile_lanes;  // of a tile, at most: to repay the reading of the weights
  // Rows of bfloat16 weights are read fastest from the beginning of a line on, filled up with zeros
  // to a multiple of so many terms, a power of two; 1: it is all the same.
  int64_t terms;
  // Products with bfloat16 weights read paired tiles, whose rows are filled up with zeros to a
  // multiple of so many; 0: they do not.
  int64_t pairs;
  bool rounds;  // whether products round their left operand, too, where they may: it is faster
  // Elements that a product needs to work in; more terms or lanes need no less.
  int64_t (*scratch)(int64_t K, int64_t lanes);
  // mean and 1 / sqrt(variance + eps) of every row in memory, in two passes.
  void (*moments)(Rows x, int64_t rows, int64_t columns, double eps, double* mean, double* rstd);
  // The same of every lane of a tile.
  void (*lane_moments)(const Acc* tile, int64_t rows, int64_t blocks, double eps, double* mean,
                       double* rstd);
  // tile = norm(memory) * scale * factor, zero in the lanes beyond.
  void (*pack)(const Transfer<Acc>& from, Acc* tile);
  // memory = residual + norm(tile) * scale * factor
  void (*unpack)(const Acc* tile, const Transfer<Acc>& to);
  void (*multiply)(const Product<Acc>& product);
  void (*gather)(const Gathering<Acc>& from, Acc* tile);
  // dy *= slope, as a product has left it
  void (*activate_backward)(Activation activation, const Acc* slope, int64_t count, Acc* dy);
  // Every lane of a tile times its scale.
  void (*scale_lanes)(Acc* tile, int64_t rows, int64_t blocks, const Acc* scale);
  // The adjoint of the norm of `x`, whose result has the gradient dy: dx, and added to dweight and
  // dbias the sums over the rows. What is null is left out.
  void (*norm_backward)(Rows dy, const Transfer<Acc>& x, Rows dx, Acc* dweight, Acc* dbias);
  // sums[row] += the sum of a tile's row; it may be paired where products round
  void (*sum_lanes)(const Acc* tile, int64_t rows, int64_t lanes, bool paired, Acc* sums);
  // sums[lane] += the sum over the rows of a * b
  void (*dot_rows)(const Acc* a, const Acc* b, int64_t rows, int64_t blocks, Acc* sums);
};

struct Engines {
  const char* name;
  Engine<float> single;
  Engine<double> twofold;
};

}  // namespace shiftmlp

extern "C" {
const shiftmlp::Engines* shiftmlp_engines_plain() noexcept;
const shiftmlp::Engines* shiftmlp_engines_avx2() noexcept;
const shiftmlp::Engines* shiftmlp_engines_avx512() noexcept;
const shiftmlp::Engines* shiftmlp_engines_avx512_bf16() noexcept;
const shiftmlp::Engines* shiftmlp_engines_amx() noexcept;
}
