// How a row kernel runs on a GPU: a block of threads is the team of one row.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/math.hpp>

namespace dsv3 {
namespace detail {

inline constexpr int cuda_team_size = 128;

// The contract of SerialTeam. Every function is reached by all threads of the block.
struct BlockTeam {
  __device__ void each(Index n, auto&& f) const {
    for (Index i = threadIdx.x; i < n; i += cuda_team_size) f(i);
  }
  __device__ void once(auto&& f) const {
    if (threadIdx.x == 0) f();
  }
  __device__ void sync() const { __syncthreads(); }

  __device__ auto sum(Index n, auto&& f) const {
    using A = decltype(f(n));
    A own = A(0);
    for (Index i = threadIdx.x; i < n; i += cuda_team_size) own += f(i);
    return combine(own, [](A a, A b) { return a + b; });
  }
  __device__ auto dot(Index n, auto&& f, auto&& g) const {
    using A = decltype(f(n));
    A own = A(0);
    for (Index i = threadIdx.x; i < n; i += cuda_team_size) own = dsv3::fma(f(i), g(i), own);
    return combine(own, [](A a, A b) { return a + b; });
  }
  __device__ auto max(Index n, auto&& f) const {
    using A = decltype(f(n));
    A own = lowest<A>();
    for (Index i = threadIdx.x; i < n; i += cuda_team_size) {
      const A value = f(i);
      own = value > own ? value : own;
    }
    return combine(own, [](A a, A b) { return b > a ? b : a; });
  }
  __device__ Index argmax(Index n, auto&& f) const {
    using A = decltype(f(n));
    struct Best {
      A value;
      Index at;
    };
    Best own = {lowest<A>(), -1};
    for (Index i = threadIdx.x; i < n; i += cuda_team_size) {
      const A value = f(i);
      if (value > own.value) own = {value, i};
    }
    return combine(own,
                   [](Best a, Best b) {
                     const bool right =
                         b.at >= 0 && (b.value > a.value || (b.value == a.value && b.at < a.at));
                     return right || a.at < 0 ? b : a;
                   })
        .at;
  }

 private:
  // Minus infinity; 0 for the unsigned integers that magnitudes are compared as.
  template <class A>
  __device__ static A lowest() {
    if constexpr (std::is_unsigned_v<A>)
      return 0;
    else
      return -__builtin_bit_cast(float, 0x7F800000);
  }

  // The values of all threads as one, in a fixed order, known to all of them.
  template <class A, class F>
  __device__ static A combine(A own, F&& f) {
    __shared__ A shared[cuda_team_size];
    __syncthreads();
    shared[threadIdx.x] = own;
    __syncthreads();
    for (int width = cuda_team_size / 2; width > 0; width /= 2) {
      if (threadIdx.x < width)
        shared[threadIdx.x] = f(shared[threadIdx.x], shared[threadIdx.x + width]);
      __syncthreads();
    }
    return shared[0];
  }
};

template <class Body>
__global__ void __launch_bounds__(cuda_team_size) row_kernel(Index rows, Body body) {
  for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
    body(BlockTeam{}, row);
    __syncthreads();
  }
}

}  // namespace detail

template <class Body>
void for_each_row(Cuda& cuda, Index rows, Body body) {
  if (rows == 0) return;
  detail::row_kernel<<<static_cast<unsigned>(rows < 65535 ? rows : 65535), detail::cuda_team_size,
                       0, cuda.stream()>>>(rows, body);
  detail::check_cuda(cudaGetLastError(), "for_each_row", "launch", std::to_string(rows) + " rows");
}

}  // namespace dsv3
