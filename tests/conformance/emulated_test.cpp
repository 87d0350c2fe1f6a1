// Row kernels and sorting on emulated blocks of threads conform to EigenCpu.
#include "gpu/emulated.hpp"
#include "conformance/desk.hpp"

namespace conformance {

struct Subjects {
  static void each(auto&& f) {
    emulated::Emulated emulated(1);
    f("Emulated", emulated, Limits{});
  }
};

}  // namespace conformance

#include "conformance/all_models.hpp"
#include "conformance/cases.hpp"
