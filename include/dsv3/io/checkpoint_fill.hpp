// Weights straight from a mapped file into a backend's memory that is the host's, by its threads.
#pragma once

#include <dsv3/backend/host.hpp>
#include <dsv3/core/quantized.hpp>
#include <dsv3/io/mapped_file.hpp>
#include <dsv3/io/tensor_transfer.hpp>

namespace dsv3::detail {

// One chunk of a weight: converted into the master, times its scales where it has some, and rounded
// into the operand where that is a copy. A piece stays in the first cache for all of it.
template <class M, class W>
struct FillChunk {
  static constexpr Index size = Index{1} << 16, piece = Index{1} << 11;
  const SafetensorsTensor* tensor;
  const SafetensorsTensor* scales;  // or null
  View<M, 1> master;
  View<W, 1> operand;  // or empty
  Index base = 0;      // of the tensor's elements, where the master's begin

  void operator()(auto team, Index chunk) const {
    const Index end = std::min(master.extent(0), (chunk + 1) * size);
    for (Index first = chunk * size; first < end; first += piece) {
      const Index n = std::min(piece, end - first);
      M* const to = master.data + first;
      read_scaled(*tensor, scales, base + first, to, n);
      if (operand.data) {
        W* const copy = operand.data + first;
        team.each(n, [=](Index i) { copy[i] = W(to[i]); });
      }
    }
  }
};

// Copies bytes of a file as they are.
struct CopyChunk {
  static constexpr Index size = Index{1} << 18;
  const std::byte* from;
  void* to;
  Index bytes;

  void operator()(auto, Index chunk) const {
    const Index first = chunk * size, n = std::min(size, bytes - first);
    std::memcpy(static_cast<std::byte*>(to) + first, from + first, static_cast<std::size_t>(n));
  }
};

// True for the backends whose row kernels may read a mapped file.
template <class Backend>
concept FillsInPlace = std::is_base_of_v<HostMemory, Backend> &&
    requires(Backend& backend, CopyChunk body) {
  for_each_row(backend, Index{1}, body);
};

template <class Backend>
void copy_in_place(Backend& backend, const std::byte* from, Index bytes, void* to) {
  for_each_row(backend, groups_of(bytes, CopyChunk::size), CopyChunk{from, to, bytes});
}

// Fills a master and, where it is a copy, its operand. Types and shapes were checked before.
template <class Backend, class M, int R, class W>
void fill_in_place(Backend& backend, const SafetensorsTensor& tensor,
                   const SafetensorsTensor* scales, const View<M, R>& master,
                   const View<W, R>& operand, Index base = 0) {
  const FillChunk<M, W> body{&tensor, scales, master.flat(), operand.flat(), base};
  for_each_row(backend, groups_of(master.size(), body.size), body);
}

}  // namespace dsv3::detail
