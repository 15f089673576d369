// The rows kernel for x86-64 processors with AVX512. The build gives *_avx512.cpp its flags; the choice is made at run
// time.
#if defined(CPU_CAPABILITY_AVX512)
#include "logit_energy_rows.h"

void prism_fast::logit_energy_rows_avx512(const LogitEnergyCall& call, at::ScalarType dtype, int64_t begin, int64_t end,
                                          float* scratch) {
  logit_energy_rows(call, dtype, begin, end, scratch);
}
#endif
