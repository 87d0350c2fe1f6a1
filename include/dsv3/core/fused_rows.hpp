// A row kernel in the fused form that a backend may have of it.
#pragma once

#include <dsv3/core/view.hpp>

namespace dsv3 {

/// for_each_row, or the backend's fused_rows(backend, rows, body) where it has one for this kernel,
/// which must write the same bits and take no memory. DryRun has none and does nothing either way.
template <class Backend, class Body>
void for_each_row_fused(Backend& backend, Index rows, const Body& body) {
  if constexpr (requires { fused_rows(backend, rows, body); })
    fused_rows(backend, rows, body);
  else
    for_each_row(backend, rows, body);
}

}  // namespace dsv3
