// The engine for every processor, with registers of 16 bytes.
#define SHIFTMLP_BYTES 16
#define SHIFTMLP_COLUMNS 2
#include "norm_backward.h"

const shiftmlp::Engines* shiftmlp_engines_plain() noexcept {
  using namespace shiftmlp;
  static constexpr Engines engines = {"plain", kEngine<float>, kEngine<double>};
  return &engines;
}
