#include "fp8_linears.hpp"

#include <dsv3/backend/eigen.hpp>

#include "fp8_checkpoint_case.hpp"

namespace golden {

template <class Backend>
void check_fp8_linears(const std::string& path, bool casts, Backend& backend, Counts& counts) {
  if (casts)
    check_fp8(path, backend, counts);
  else
    check_fp8_checkpoint(path, backend, counts);
}

template void check_fp8_linears(const std::string&, bool, dsv3::Cpu&, Counts&);
template void check_fp8_linears(const std::string&, bool, dsv3::EigenCpu&, Counts&);

}  // namespace golden
