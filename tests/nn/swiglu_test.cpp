#include <dsv3/backend/cpu.hpp>
#include <dsv3/nn/projection.hpp>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

constexpr Index rows = 131, columns = 259;

struct Wide : Fp8 {
  using activation = float;
};
struct Whole : Fp8 {
  static constexpr Index tile = 0;
};

template <class C, class D>
bool same(const Quantized<C>& a, const Quantized<D>& b) {
  return same_bits(as_const(a.codes), as_const(b.codes)) &&
         same_bits(View<const float, 2>(a.scales.data, a.scales.extents),
                   View<const float, 2>(b.scales.data, b.scales.extents));
}

// a and b of a SwiGLU, their codes, and the values of these.
template <class P>
struct Case {
  using T = typename P::activation;
  Cpu backend{2};
  Memory memory{Index{1} << 24};
  Projection<P> projection;
  View<T, 2> a = memory.random<T>({rows, columns}, 4), b = memory.random<T>({rows, columns}, 2);
  Quantized<const e4m3> saved_a = quantize(a), saved_b = quantize(b);
  View<float, 2> gate = values(saved_a), up = values(saved_b);

  Quantized<const e4m3> quantize(View<T, 2> x) {
    return projection.input(backend, "x", as_const(x), Route::dense, memory.arena);
  }
  View<float, 2> values(Quantized<const e4m3> q) {
    const auto x = memory.empty<float>({rows, columns});
    for_each_row(backend, rows, detail::DequantizeRow<Quantized<const e4m3>, float>{q, x});
    return x;
  }
  View<T, 2> rounded(View<float, 2> x) {
    const auto y = memory.empty<T>({rows, columns});
    for (Index i = 0; i < x.size(); ++i) y.data[i] = T(x.data[i]);
    return y;
  }
};

}  // namespace

TEST_CASE_TEMPLATE("Projection::swiglu has the bits of SwigluForwardRow, then of input", P, Fp8,
                   Wide, Whole) {
  Case<P> c;
  using T = typename P::activation;
  const auto h = c.memory.template empty<T>({rows, columns});
  for_each_row(c.backend, rows, detail::SwigluForwardRow<T>{c.a, c.b, h});
  const auto take = [&] { return Projection<P>::take_rows(c.memory.arena, rows, columns); };
  const auto a = take(), b = take(), q = take();
  c.projection.swiglu(c.backend, {}, as_const(c.a), as_const(c.b), a, b, q, c.memory.arena);
  CHECK(same(a, c.saved_a));
  CHECK(same(b, c.saved_b));
  CHECK(same(q, c.quantize(h)));
}

TEST_CASE_TEMPLATE("SwiGLU backward from codes has the bits of SwigluBackwardRow on their values",
                   P, Fp8, Wide, Whole) {
  using T = typename P::activation;
  Case<P> c;
  const auto dh = c.memory.template random<T>({rows, columns});
  const auto dh_wide = c.memory.template empty<float>({rows, columns});
  for (Index i = 0; i < dh.size(); ++i) dh_wide.data[i] = float(dh.data[i]);
  const auto take = [&] { return c.memory.template empty<float>({rows, columns}); };
  const auto da = take(), db = take(), h = take();
  for_each_row(c.backend, rows, detail::SwigluBackwardRow<float>{c.gate, c.up, dh_wide, da, db, h});
  const auto db_codes = c.memory.template empty<T>({rows, columns});
  const auto h_codes = c.memory.template empty<T>({rows, columns});
  for_each_row(c.backend, rows,
               detail::SwigluQuantizedBackwardRow<T, e4m3>{c.saved_a, c.saved_b, as_const(dh), dh,
                                                           db_codes, h_codes});  // da may be dh
  CHECK(same_bits(dh, c.rounded(da)));
  CHECK(same_bits(db_codes, c.rounded(db)));
  CHECK(same_bits(h_codes, c.rounded(h)));
}
