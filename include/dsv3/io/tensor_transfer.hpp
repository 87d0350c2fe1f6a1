// Tensors between files and a backend's memory, through a bounded buffer on the host.
#pragma once

#include <dsv3/io/checkpoint_names.hpp>
#include <dsv3/io/safetensors_writer.hpp>

namespace dsv3::detail {

inline constexpr Index transfer_elements = Index{1} << 18;  // of the buffer: at most 2 MiB

// Calls f(pointer, at, count) for the contiguous pieces of elements [first, first + n) in row-major
// order; `at` counts from `first`.
template <class T, int R>
void for_each_piece(const View<T, R>& view, Index first, Index n, auto&& f) {
  static_assert(R <= 2, "tensors of checkpoints have one or two dimensions");
  if constexpr (R == 2) {
    if (!view.dense()) {
      const Index columns = view.extent(1);
      for (Index at = 0; at < n;) {
        const Index row = (first + at) / columns, column = (first + at) % columns;
        const Index count = std::min(columns - column, n - at);
        f(&view(row, column), at, count);
        at += count;
      }
      return;
    }
  }
  if (n > 0) f(view.data + first, Index{0}, n);
}

// to[i] = code times scale for elements [first, first + n), in row-major order, of an FP8 matrix
// with one scale for each block: rounded once, to T.
template <class T>
void decode_scaled(const SafetensorsTensor& codes, const SafetensorsTensor& scales, Index first,
                   T* to, Index n) {
  using A = accum_t<T>;
  const Index columns = codes.shape[1], across = scales.shape[1];
  for (Index i = 0; i < n;) {
    const Index row = (first + i) / columns, column = (first + i) % columns;
    const Index left = std::min(scale_block - column % scale_block, columns - column);
    const Index count = std::min(left, n - i);
    float stored;
    std::memcpy(&stored, scales.data + (row / scale_block * across + column / scale_block) * 4, 4);
    const A scale = static_cast<A>(stored);
    decode_elements<e4m3>(codes.data + first + i, to + i, count,
                          [scale](e4m3 code) { return T(A(float(code)) * scale); });
    i += count;
  }
}

// Elements [first, first + n) of a tensor as T, times its scales where it has some. Types and
// shapes were checked before.
template <class T>
void read_scaled(const SafetensorsTensor& tensor, const SafetensorsTensor* scales, Index first,
                 T* to, Index n) {
  if (scales)
    decode_scaled(tensor, *scales, first, to, n);
  else
    convert_elements(tensor.dtype, tensor.data + first * dtype_bytes(tensor.dtype), to, n);
}

// Converts a tensor into the view of the backend's memory, times its scales where it has some.
template <class Backend, class T, int R>
void read_to_backend(Backend& backend, const SafetensorsTensor& tensor, const View<T, R>& to,
                     const SafetensorsTensor* scales = nullptr) {
  std::vector<T> buffer(static_cast<std::size_t>(std::min(to.size(), transfer_elements)));
  for (Index first = 0; first < to.size(); first += transfer_elements) {
    const Index n = std::min(to.size() - first, transfer_elements);
    read_scaled(tensor, scales, first, buffer.data(), n);
    for_each_piece(to, first, n, [&](T* piece, Index at, Index count) {
      copy_to_backend(backend, piece, buffer.data() + at, count * static_cast<Index>(sizeof(T)));
    });
    synchronize(backend);  // the buffer is about to be written again
  }
}

// A `fill` that copies the view of the backend's memory to the host and converts it to To.
template <class To, class Backend, class T, int R>
auto fill_from_backend(Backend& backend, const View<T, R>& from) {
  return [&backend, from](std::byte* to, Index offset, Index bytes) {
    using From = std::remove_const_t<T>;
    constexpr auto unit = static_cast<Index>(sizeof(To));
    const auto copy = [&](Index first, Index n, void* memory) {
      for_each_piece(from, first, n, [&](const T* piece, Index at, Index count) {
        constexpr auto width = static_cast<Index>(sizeof(T));
        copy_to_host(backend, static_cast<std::byte*>(memory) + at * width, piece, count * width);
      });
    };
    if constexpr (std::is_same_v<From, To>) {
      copy(offset / unit, bytes / unit, to);
    } else {
      const Index most = std::min(bytes / unit, transfer_elements);
      std::vector<From> buffer(static_cast<std::size_t>(most));
      std::vector<To> converted(static_cast<std::size_t>(most));
      for (Index done = 0; done < bytes / unit; done += most) {
        const Index n = std::min(bytes / unit - done, most);
        copy(offset / unit + done, n, buffer.data());
        for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i)
          if constexpr (std::is_same_v<From, double> && std::is_same_v<To, bf16>)
            converted[i] = bf16_nearest(buffer[i]);
          else
            converted[i] = static_cast<To>(buffer[i]);
        std::memcpy(to + done * unit, converted.data(), static_cast<std::size_t>(n * unit));
      }
    }
  };
}

}  // namespace dsv3::detail
