// No wgmma here.
#pragma once

#include <dsv3/backend/cuda/attention_launch.cuh>

namespace dsv3::detail {

template <int, bool>
struct AttentionHopperShape {};
template <class>
bool attention_hopper_fits(const Cuda&, const AttentionTask&) {
  return false;
}
template <class, bool>
void attention_hopper_forward_as(auto&&...) {}

enum class AttentionPart { queries, keys, values };

struct AttentionHopperBackward {
  Cuda& cuda;
  const AttentionBackwardTask& task;

  bool fits() const { return false; }
  int maps() const { return 0; }
  template <AttentionPart, bool>
  void sum(auto&&...) const {}
  template <bool>
  void run(auto&&...) const {}
};

}  // namespace dsv3::detail
