// The rows kernel for x86-64 processors with AVX2. The build gives *_avx2.cpp its flags; the choice is made at run
// time.
#if defined(CPU_CAPABILITY_AVX2)
#include "logit_energy_rows.h"

void prism_fast::logit_energy_rows_avx2(const LogitEnergyCall& call, at::ScalarType dtype, int64_t begin, int64_t end,
                                        float* scratch) {
  logit_energy_rows(call, dtype, begin, end, scratch);
}
#endif
