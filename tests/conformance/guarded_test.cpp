// Guarded, whose memory the host cannot touch, conforms to EigenCpu.
#include "guarded/guarded.hpp"

#include "conformance/desk.hpp"

namespace conformance {

struct Subjects {
  static void each(auto&& f) {
    guarded::Guarded guarded(2);
    f("Guarded", guarded, Limits{});
  }
};

}  // namespace conformance

#include "conformance/all_models.hpp"
#include "conformance/cases.hpp"
