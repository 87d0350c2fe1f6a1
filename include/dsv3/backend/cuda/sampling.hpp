// Choosing tokens where the logits are, declared: for the host's compiler too.
#pragma once

#include <dsv3/backend/cuda/context.hpp>

namespace dsv3 {
namespace detail {
template <class A>
struct SampleRow;  // infer/ defines it
}

/// Fused form of choosing each row's token: a block of more threads than other row kernels have,
/// because rows are few and as long as the vocabulary. Its sums run in another fixed order than
/// those of for_each_row.
///
/// Types    float or double.
template <class A>
[[gnu::noinline]] void fused_rows(Cuda& cuda, Index rows, const detail::SampleRow<A>& row);

}  // namespace dsv3
