// What codes stood for before they were quantised.
#pragma once

#include <algorithm>
#include <dsv3/nn/emulated_product.hpp>
#include <dsv3/nn/moe.hpp>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace example {

using dsv3::Index;
using dsv3::View;

/// A matrix before it was quantised, on the host.
struct PlainMatrix {
  Index rows = 0, columns = 0;
  std::vector<double> values;  // row by row
  std::string weight = {};     ///< checkpoint name, where it is a weight
  bool transposed = false;     ///< lies the other way round than it was quantised

  PlainMatrix(Index down, Index across, auto&& value)
      : rows(down), columns(across), values(static_cast<std::size_t>(down * across)) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) values[at(i, j)] = static_cast<double>(value(i, j));
  }

  double operator()(Index i, Index j) const { return values[at(i, j)]; }
  View<const double, 2> view() const { return {values.data(), {rows, columns}}; }

 private:
  std::size_t at(Index i, Index j) const { return static_cast<std::size_t>(i * columns + j); }
};

/// The plain matrices behind codes in memory, found by the address of the first code. Codes that
/// are written over others replace them; codes of unknown origin stand for nothing.
class PlainValues {
 public:
  void clear() { all_.clear(); }

  /// The `bytes` of codes that begin at `codes` now stand for `matrix`.
  void put(const void* codes, Index bytes, std::optional<PlainMatrix> matrix) {
    const auto *begin = static_cast<const std::byte*>(codes), *end = begin + bytes;
    auto first = all_.lower_bound(begin);
    if (first != all_.begin() && std::prev(first)->second.end > begin) --first;
    while (first != all_.end() && first->first < end) first = all_.erase(first);
    if (matrix && begin != end) all_.emplace(begin, Entry{end, std::move(*matrix)});
  }
  template <class C>
  void put(View<C, 2> codes, std::optional<PlainMatrix> matrix) {
    put(codes.data, codes.size() * static_cast<Index>(sizeof(C)), std::move(matrix));
  }

  /// The plain values in `x` were made from codes and stand for `matrix`, until others are written
  /// there.
  template <class T>
  void put_values(View<T, 2> x, std::optional<PlainMatrix> matrix) {
    put(x, std::move(matrix));
    const auto found = all_.find(reinterpret_cast<const std::byte*>(x.data));
    if (found != all_.end()) found->second.written.assign(found->first, found->second.end);
  }

  /// What plain values made from codes stand for; null where x holds others.
  template <class T>
  const PlainMatrix* find_values(View<T, 2> x) const {
    const PlainMatrix* m = find(x);
    if (!m) return nullptr;
    const auto& [begin, entry] = *all_.find(reinterpret_cast<const std::byte*>(x.data));
    return entry.written.size() == static_cast<std::size_t>(entry.end - begin) &&
                   std::equal(entry.written.begin(), entry.written.end(), begin)
               ? m
               : nullptr;
  }

  /// What a matrix whose codes begin at `codes` stands for; null where that is not known.
  const PlainMatrix* find(const void* codes, Index rows, Index columns) const {
    const auto found = all_.find(static_cast<const std::byte*>(codes));
    if (found == all_.end()) return nullptr;
    const PlainMatrix& m = found->second.matrix;
    return m.rows == rows && m.columns == columns ? &m : nullptr;
  }
  template <class C>
  const PlainMatrix* find(View<C, 2> codes) const {
    return find(codes.data, codes.extent(0), codes.extent(1));
  }

 private:
  struct Entry {
    const std::byte* end;
    PlainMatrix matrix;
    std::vector<std::byte> written = {};  // by put_values
  };
  std::map<const std::byte*, Entry> all_;
};

/// A matrix that is quantised, as it was before any quantisation.
template <class T>
std::optional<PlainMatrix> plain(const PlainValues& known, const View<T, 2>& x) {
  if (const PlainMatrix* m = known.find_values(x)) return *m;
  return PlainMatrix(x.extent(0), x.extent(1),
                     [&](Index i, Index j) { return dsv3::accum_t<T>(x(i, j)); });
}
template <class C>
std::optional<PlainMatrix> plain(const PlainValues& known, const dsv3::Quantized<C>& q) {
  const PlainMatrix* m = known.find(q.codes);
  return m ? std::optional(*m) : std::nullopt;
}
inline std::optional<PlainMatrix> plain(const PlainValues& known, const dsv3::PackedE5m6& q) {
  const PlainMatrix* m = known.find(q.bytes.data, q.extent(0), q.extent(1));
  return m ? std::optional(*m) : std::nullopt;
}
template <class C>
std::optional<PlainMatrix> plain(const PlainValues& known,
                                 const dsv3::detail::WeightedSlots<C>& x) {
  const PlainMatrix* m = known.find(x.slots.codes);
  if (!m) return std::nullopt;
  const Index k = x.weights.extent(1);
  return PlainMatrix(m->rows, m->columns, [&](Index slot, Index j) {
    const Index pair = x.pair_of_slot(slot);
    return (*m)(slot, j) * double(x.weights(pair / k, pair % k));
  });
}

namespace detail {

// silu(a) * b in the type of activations T.
template <class T, class C>
std::optional<PlainMatrix> plain_swiglu(const PlainValues& known, const dsv3::Quantized<C>& a,
                                        const dsv3::Quantized<C>& b) {
  const PlainMatrix *gates = known.find(a.codes), *ups = known.find(b.codes);
  if (!gates || !ups) return std::nullopt;
  return PlainMatrix(gates->rows, gates->columns, [&](Index i, Index j) {
    using A = dsv3::accum_t<T>;
    const A gate = A((*gates)(i, j)), up = A((*ups)(i, j));
    return A(T(gate * dsv3::sigmoid(gate) * up));
  });
}

}  // namespace detail

/// remember(known, kernel): what the codes stand for that a row kernel has written. Kernels without
/// an overload write nothing that products read as codes.
template <class T, class C, class R>
void remember(PlainValues& known, const dsv3::detail::QuantizeRow<T, C, R>& k) {
  known.put(k.q.codes, plain(known, k.x));
}
template <class T, class C, class R>
void remember(PlainValues& known, const dsv3::detail::QuantizeRowsTogether<T, C, R>& k) {
  known.put(k.q.codes, plain(known, k.x));
}
template <class Source, class C, class R>
void remember(PlainValues& known, const dsv3::detail::QuantizeColumnsBlock<Source, C, R>& k) {
  known.put(k.q.codes, plain(known, k.x));
}
template <class Source, class C, class R>
void remember(PlainValues& known, const dsv3::detail::EncodeRow<Source, C, R>& k) {
  known.put(k.q.codes, plain(known, k.x));
}
template <class In, class Out, class W, class C>
void remember(PlainValues& known, const dsv3::detail::RmsNormQuantizeRow<In, Out, W, C>& k) {
  using A = dsv3::accum_t<In>;
  std::vector<A> r;
  for (Index t = 0; t < k.x.extent(0); ++t)
    r.push_back(dsv3::detail::reciprocal_rms(dsv3::SerialTeam{}, k.x, t, k.eps));
  known.put(k.q.codes, PlainMatrix(k.x.extent(0), k.x.extent(1), [&](Index t, Index j) {
              return A(Out(A(k.x(t, j)) * r[static_cast<std::size_t>(t)] * A(k.weight(j))));
            }));
}
template <class T, class C>
void remember(PlainValues& known, const dsv3::detail::SwigluQuantizeRow<T, C>& k) {
  known.put(k.saved_a.codes, plain(known, k.a));
  known.put(k.saved_b.codes, plain(known, k.b));
  known.put(k.h.codes, detail::plain_swiglu<T>(known, k.saved_a, k.saved_b));
}
template <class T, class C>
void remember(PlainValues& known, const dsv3::detail::SwigluQuantizedBackwardRow<T, C>& k) {
  known.put_values(k.h, detail::plain_swiglu<T>(known, k.a, k.b));
}
template <class T, class C>
void remember(PlainValues& known, const dsv3::detail::ExpertQuantizedBackwardRow<T, C>& k) {
  known.put_values(k.h, detail::plain_swiglu<T>(known, k.a, k.b));
}
template <class T>
void remember(PlainValues& known, const dsv3::detail::PackE5m6Row<T>& k) {
  known.put(k.m.bytes.data, k.m.bytes.size(), plain(known, k.x));
}
template <class C>
void remember(PlainValues& known, const dsv3::detail::DispatchCodesRow<C>& k) {
  const PlainMatrix* m = known.find(k.x.codes);
  std::optional<PlainMatrix> slots;
  if (m)
    slots.emplace(k.slots.extent(0), m->columns, [&](Index slot, Index j) {
      return (*m)(k.pair_of_slot(slot) / k.pairs_per_token, j);
    });
  known.put(k.slots.codes, std::move(slots));
}
template <class C>
void remember(PlainValues& known, const dsv3::detail::TransposeRow<C>& k) {
  const PlainMatrix* m = known.find(k.x);
  std::optional<PlainMatrix> turned;
  if (m) {
    turned.emplace(m->columns, m->rows, [&](Index i, Index j) { return (*m)(j, i); });
    turned->weight = m->weight;
    turned->transposed = !m->transposed;
  }
  known.put(k.y, std::move(turned));
}

}  // namespace example
