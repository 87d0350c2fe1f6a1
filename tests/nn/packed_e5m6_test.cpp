#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/packed_e5m6.hpp>
#include <dsv3/nn/projection.hpp>
#include <limits>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

template <class T, class Backend>
PackedE5m6 pack(Backend& backend, Memory& memory, View<T, 2> x, Index tile) {
  const auto m = PackedE5m6::take(memory.arena, x.extent(0), x.extent(1), tile);
  for_each_row(backend, x.extent(0), detail::PackE5m6Row<T>{as_const(x), m});
  return m;
}

}  // namespace

TEST_CASE("Two values take 3 bytes, the first in the lower 12 bits, little end first") {
  // Scale 2^-15: 1 is 2^15 of it, code 30 << 6 = 0x780; -0.5 is 0xF40; 1.984375 is 0x7BF.
  float x[] = {1, -0.5f, 1.984375f};
  Memory memory;
  EigenCpu backend;
  const auto m = pack(backend, memory, View<float, 2>(x, {1, 3}), 128);
  CHECK(m.scales(0, 0) == 0x1p-15f);
  REQUIRE(m.bytes.extent(1) == 6);
  const int bytes[] = {0x80, 0x07, 0xF4, 0xBF, 0x07, 0x00};  // 0xF40780, 0x0007BF
  for (Index i = 0; i < 6; ++i) CHECK(int(m.bytes(0, i)) == bytes[i]);
  CHECK(m.unscaled(0, 0) == 32768.0f);
  CHECK(m.unscaled(0, 1) == -16384.0f);
  CHECK(m.unscaled(0, 2) == 65024.0f);
  CHECK(m.extent(0) == 1);
  CHECK(m.extent(1) == 3);
}

TEST_CASE_TEMPLATE("Each value is that of e5m6 at its group's power-of-two scale", T, float, bf16) {
  Cpu backend(2);
  for (const Index columns : {1, 2, 127, 128, 129, 259})
    for (const Index tile : {32, 128, 3, 0}) {  // 3: pairs of two groups
      Memory memory;
      const auto x = memory.random<T>({5, columns}, 3);
      for (Index j = 0; j < columns; ++j) x(3, j) = T(0.0f);  // a row of zeros
      const auto m = pack(backend, memory, x, tile);
      const auto y = memory.empty<float>({5, columns});
      for_each_row(backend, 5, detail::DequantizeRow<PackedE5m6, float>{m, y});
      const Index width = tile ? tile : columns;
      Index wrong = 0;
      for (Index t = 0; t < 5; ++t)
        for (Index first = 0; first < columns; first += width) {
          const Index last = std::min(columns, first + width);
          float amax = 0;
          for (Index j = first; j < last; ++j) amax = std::max(amax, std::abs(float(x(t, j))));
          const float scale = amax > 0 ? std::exp2(std::ceil(std::log2(amax / 65024.0f))) : 1.0f;
          wrong += m.scales(t, first / width) != scale;
          for (Index j = first; j < last; ++j)
            wrong += y(t, j) != float(e5m6(float(x(t, j)) / scale)) * scale;
        }
      CAPTURE(columns);
      CAPTURE(tile);
      CHECK(wrong == 0);
    }
}

TEST_CASE("Columns of packed values have the bits of columns of their values") {
  Cpu backend(2);
  Memory memory(Index{1} << 23);
  const auto x = memory.random<bf16>({131, 259}, 3);
  const auto m = pack(backend, memory, x, 128);
  const auto values = memory.empty<bf16>({131, 259});  // 7 significant bits: exact
  for_each_row(backend, 131, detail::DequantizeRow<PackedE5m6, bf16>{m, values});
  const Projection<Fp8> projection;
  const auto packed = projection.input_columns(backend, {}, m, Route::dispatch, memory.arena);
  const auto plain =
      projection.columns<e4m3>(backend, {}, as_const(values), {}, Route::dispatch, memory.arena);
  CHECK(same_bits(packed.codes, plain.codes));
  for (Index g = 0; g < 2; ++g)
    for (Index j = 0; j < 259; ++j) REQUIRE(packed.scales(g, j) == plain.scales(g, j));
}

TEST_CASE("NaN and infinity make their group's values NaN where they stand") {
  Memory memory;
  Cpu backend(1);
  const auto x = memory.random<float>({2, 129});
  x(0, 5) = std::numeric_limits<float>::quiet_NaN();
  x(1, 5) = std::numeric_limits<float>::infinity();
  const auto m = pack(backend, memory, x, 128);
  CHECK(std::isnan(m.unscaled(0, 5)));
  CHECK(std::isnan(m.unscaled(1, 5)));
  CHECK(std::isfinite(m.unscaled(0, 128)));  // of another group
  CHECK(m.unscaled(0, 128) != 0.0f);
}
