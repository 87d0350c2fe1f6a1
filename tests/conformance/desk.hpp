// What the conformance tests work with: memory of any backend, filled from the host and read back.
//
// A file that includes cases of this folder says first which backends it tests:
//
//     struct Subjects {
//       static void each(auto&& f);  // calls f(name, backend, limits) for each that can run here
//     };
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/buffer.hpp>
#include <dsv3/core/philox.hpp>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace conformance {

using dsv3::bf16;
using dsv3::Index;
using dsv3::View;

/// What a backend may be off by where it promises less than Cpu.
struct Limits {
  /// Of a sum of codes, relative to the sum of magnitudes within a segment: some 128 roundings of
  /// 2^-24, of either sign.
  double codes = 1e-6;
  /// Of whole tensors of a model in an FP8 policy: values, and gradients. 0: as elsewhere.
  double fp8_values = 0, fp8_gradients = 0;
};

/// Values of a tensor, row by row, under a name.
struct Values {
  std::string name;
  std::vector<double> of;
};
using Results = std::vector<Values>;

/// Memory of a backend from which a case takes its tensors. Every byte starts as 0xFF: a number
/// that nobody wrote is not a number.
template <class Backend>
struct Desk {
  Backend& backend;
  dsv3::Buffer<Backend> memory;
  dsv3::Arena arena;
  std::uint64_t stream = 0;
  std::map<const void*, Index> apart;  // elements between rows of what empty() gave

  explicit Desk(Backend& b, Index bytes = Index{3} << 20)
      : backend(b), memory(b, bytes), arena(memory.data(), bytes) {
    const std::vector<unsigned char> ones(static_cast<std::size_t>(bytes), 0xFF);
    copy_to_backend(backend, memory.data(), ones.data(), bytes);
  }

  /// Memory that nobody has written. Rows lie `gap` elements apart, and the first as far from the
  /// aligned start.
  template <class T, int Rank>
  View<T, Rank> empty(const Index (&shape)[Rank], Index gap = 0) {
    Index padded[Rank], size = gap;
    for (int d = 0; d < Rank; ++d) padded[d] = shape[d];
    padded[Rank - 1] += gap;
    View<T, Rank> view(nullptr, padded);
    size += view.size();
    view.data = arena.take<T>({size}).data + gap;
    view.extents[Rank - 1] = shape[Rank - 1];
    if (gap > 0) apart[view.data] = gap;
    return view;
  }

  /// The host's values.
  template <class T, int Rank>
  View<T, Rank> put(const std::vector<T>& host, const Index (&shape)[Rank], Index gap = 0) {
    const View<T, Rank> view = empty<T>(shape, gap);
    REQUIRE(static_cast<Index>(host.size()) == view.size());
    const Index width = shape[Rank - 1];
    if (gap == 0) {
      copy_to_backend(backend, view.data, host.data(), view.size() * static_cast<Index>(sizeof(T)));
      return view;
    }
    for (Index row = 0; width && row * width < view.size(); ++row)
      copy_to_backend(backend, view.data + row * (width + gap), host.data() + row * width,
                      width * static_cast<Index>(sizeof(T)));
    return view;
  }

  /// Numbers in (-scale, scale), the same for every backend.
  template <class T, int Rank>
  View<T, Rank> random(const Index (&shape)[Rank], double scale = 1, Index gap = 0) {
    Index size = 1;
    for (const Index n : shape) size *= n;
    const dsv3::Philox philox(23, ++stream);
    std::vector<T> host;
    for (Index i = 0; i < size; ++i) {
      const auto word = philox(static_cast<std::uint64_t>(i)).word[0];
      host.push_back(T(dsv3::accum_t<T>(scale * (2 * dsv3::uniform(word) - 1))));
    }
    return put(host, shape, gap);
  }

  template <class T, int Rank>
  View<T, Rank> zeros(const Index (&shape)[Rank]) {
    const View<T, Rank> view = empty<T>(shape);
    fill_zero(backend, view.data, view.size() * static_cast<Index>(sizeof(T)));
    return view;
  }

  /// What a tensor holds. What lies between its rows, and behind the last where rows lie apart,
  /// must be as empty() left it.
  template <class T, int Rank>
  Values read(std::string name, const View<T, Rank>& view) {
    using Element = std::remove_const_t<T>;
    Values values{std::move(name), {}};
    const Index width = view.extent(Rank - 1), rows = width ? view.size() / width : 0;
    const Index step = Rank == 1 ? width : view.strides[Rank < 2 ? 0 : Rank - 2];
    const auto gap = apart.find(view.data);
    const Index behind = gap == apart.end() ? 0 : gap->second;
    std::vector<Element> host(
        static_cast<std::size_t>(rows ? (rows - 1) * step + width + behind : 0));
    copy_to_host(backend, host.data(), view.data,
                 static_cast<Index>(host.size() * sizeof(Element)));
    std::size_t touched = 0;
    for (std::size_t i = 0; i < host.size(); ++i) {
      const Element& x = host[i];
      if (static_cast<Index>(i) % (step + (step == width ? behind : 0)) < width) {
        if constexpr (std::is_integral_v<Element>)
          values.of.push_back(static_cast<double>(x));
        else
          values.of.push_back(static_cast<double>(dsv3::accum_t<Element>(x)));
        continue;
      }
      unsigned char bytes[sizeof(Element)];
      std::memcpy(bytes, &x, sizeof(Element));
      for (const unsigned char byte : bytes) touched += byte != 0xFF;
    }
    INFO(values.name, ": bytes between rows");
    CHECK(touched == 0);
    return values;
  }
  template <class S>
  Values read(std::string name, const dsv3::Scales<S>& scales) {
    REQUIRE(scales.strides[1] == 1);
    return read(std::move(name), View<S, 2>(scales.data, {scales.extents[0], scales.extents[1]}));
  }
};

// --- Comparisons ---

inline void require_same_shape(const Values& ours, const Values& theirs) {
  INFO(ours.name);
  REQUIRE(ours.of.size() == theirs.of.size());
}

/// The same bits.
inline void check_equal(const Values& ours, const Values& theirs) {
  require_same_shape(ours, theirs);
  std::size_t differ = 0, first = 0;
  for (std::size_t i = ours.of.size(); i-- > 0;)
    if (std::memcmp(&ours.of[i], &theirs.of[i], sizeof(double)) != 0) ++differ, first = i;
  INFO(ours.name, ", the first of them [", first, "]: ", ours.of.empty() ? 0 : ours.of[first],
       " beside ", ours.of.empty() ? 0 : theirs.of[first]);
  CHECK(differ == 0);
}

/// Each element within `bound(i)`.
inline void check_each(const Values& ours, const Values& theirs, auto&& bound) {
  require_same_shape(ours, theirs);
  double worst = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < ours.of.size(); ++i) {
    const double allowed = bound(i), off = std::abs(ours.of[i] - theirs.of[i]);
    const double share = off == 0 ? 0 : off / allowed;
    if (!(share <= worst)) worst = share, at = i;  // not a number is the worst
    if (std::isnan(worst)) break;
  }
  INFO(ours.name, "[", at, "]: ", ours.of.empty() ? 0 : ours.of[at], " beside ",
       ours.of.empty() ? 0 : theirs.of[at]);
  CHECK(worst <= 1);
}

/// The distance in the Frobenius norm, relative to theirs.
inline double distance(const Values& ours, const Values& theirs) {
  double off = 0, norm = 0;
  for (std::size_t i = 0; i < theirs.of.size(); ++i) {
    off += (ours.of[i] - theirs.of[i]) * (ours.of[i] - theirs.of[i]);
    norm += theirs.of[i] * theirs.of[i];
  }
  return off == 0 ? 0 : std::sqrt(off / norm);
}

inline void check_distance(const Values& ours, const Values& theirs, double tolerance) {
  require_same_shape(ours, theirs);
  INFO(ours.name);
  CHECK(distance(ours, theirs) <= tolerance);
}

/// Runs a case on the reference and twice on each subject, whose two runs must have the same bits;
/// compare(ours, theirs, limits) judges each tensor.
template <class Subjects>
void conform(auto&& work, auto&& compare, Index bytes = Index{3} << 20) {
  dsv3::EigenCpu reference;
  Desk desk(reference, bytes);
  const Results theirs = work(desk);
  REQUIRE(!theirs.empty());
  Subjects::each([&](const char* name, auto& backend, const Limits& limits) {
    INFO("on ", name);
    Results first;
    for (const bool again : {false, true}) {
      Desk own(backend, bytes);
      const Results ours = work(own);
      REQUIRE(ours.size() == theirs.size());
      for (std::size_t i = 0; i < ours.size(); ++i) {
        if (again)
          check_equal(ours[i], first[i]);
        else
          compare(ours[i], theirs[i], limits);
      }
      first = ours;
    }
  });
}

/// The same where no float is added up: the reference's bits.
template <class Subjects>
void conform_exactly(auto&& work) {
  conform<Subjects>(work, [](const Values& ours, const Values& theirs, const Limits&) {
    check_equal(ours, theirs);
  });
}

}  // namespace conformance
