// The rows kernel for the processor that the compiler targets.
#include "logit_energy_rows.h"

void prism_fast::logit_energy_rows_default(const LogitEnergyCall& call, at::ScalarType dtype, int64_t begin,
                                           int64_t end, float* scratch) {
  logit_energy_rows(call, dtype, begin, end, scratch);
}
