// The quantised forward and backward of blocks against loops that are built from the definition of
// the quantisers alone (spec 7.2 to 7.4), bit for bit, on the backend whose inner sums are exact.
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/moe.hpp>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

struct Matrix {
  Index rows, columns;
  std::vector<float> values;

  Matrix(Index m, Index n) : rows(m), columns(n), values(static_cast<std::size_t>(m * n)) {}
  template <class T>
  explicit Matrix(const View<T, 2>& view) : Matrix(view.extent(0), view.extent(1)) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) (*this)(i, j) = float(view(i, j));
  }
  float& operator()(Index i, Index j) { return values[static_cast<std::size_t>(i * columns + j)]; }
  float operator()(Index i, Index j) const {
    return values[static_cast<std::size_t>(i * columns + j)];
  }
  // The given rows.
  Matrix gather(const std::vector<Index>& which) const {
    Matrix result(static_cast<Index>(which.size()), columns);
    for (Index i = 0; i < result.rows; ++i)
      for (Index j = 0; j < columns; ++j)
        result(i, j) = (*this)(which[static_cast<std::size_t>(i)], j);
    return result;
  }
};

// Codes and scales, one of either for each element.
struct Codes {
  Matrix code, scale;

  Codes(const Matrix& x, Index down, Index across, bool power_of_two)
      : code(x.rows, x.columns), scale(x.rows, x.columns) {
    for (Index i0 = 0; i0 < x.rows; i0 += down)
      for (Index j0 = 0; j0 < x.columns; j0 += across) {
        const Index i1 = std::min(x.rows, i0 + down), j1 = std::min(x.columns, j0 + across);
        float amax = 0;
        for (Index i = i0; i < i1; ++i)
          for (Index j = j0; j < j1; ++j) amax = std::max(amax, std::abs(x(i, j)));
        float s = amax / 448;
        if (s < 0x1p-126f) s = 1;
        if (power_of_two) {
          int exponent;
          const float m = std::frexp(s, &exponent);
          s = std::ldexp(1.0f, m == 0.5f ? exponent - 1 : exponent);
        }
        for (Index i = i0; i < i1; ++i)
          for (Index j = j0; j < j1; ++j) {
            scale(i, j) = s;
            code(i, j) = float(e4m3(x(i, j) / s));
          }
      }
  }
  Matrix values() const {
    Matrix result(code.rows, code.columns);
    for (std::size_t i = 0; i < result.values.size(); ++i)
      result.values[i] = code.values[i] * scale.values[i];
    return result;
  }
};

// sum_k left(i, k) right(j, k): exact in each 128, then float.
template <class Left, class Right>
Matrix product(Index rows, Index columns, Index depth, Left left, Right right) {
  Matrix c(rows, columns);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) {
      float total = 0;
      for (Index k0 = 0; k0 < depth; k0 += 128) {
        double sum = 0;
        for (Index k = k0; k < std::min(depth, k0 + 128); ++k)
          sum += double(left(i, k).first) * double(right(j, k).first);
        total = dsv3::fma(float(sum), left(i, k0).second * right(j, k0).second, total);
      }
      c(i, j) = total;
    }
  return c;
}
auto across(const Codes& q) {  // the sum runs along the columns
  return [&q](Index i, Index k) { return std::pair(q.code(i, k), q.scale(i, k)); };
}
auto down(const Codes& q) {  // ... along the rows
  return [&q](Index i, Index k) { return std::pair(q.code(k, i), q.scale(k, i)); };
}

Matrix rounded(Matrix x) {
  for (float& value : x.values) value = float(bf16(value));
  return x;
}
Matrix sum(const Matrix& a, const Matrix& b) {
  Matrix c = a;
  for (std::size_t i = 0; i < c.values.size(); ++i) c.values[i] += b.values[i];
  return c;
}

template <class T>
void check_same(const char* name, const View<T, 2>& ours, const Matrix& reference) {
  CAPTURE(name);
  REQUIRE(ours.extent(0) == reference.rows);
  REQUIRE(ours.extent(1) == reference.columns);
  Index differ = 0;
  double size = 0;
  for (Index i = 0; i < reference.rows; ++i)
    for (Index j = 0; j < reference.columns; ++j) {
      differ += float(ours(i, j)) != reference(i, j);
      size += std::abs(reference(i, j));
    }
  CHECK(differ == 0);
  CHECK(size > 0);
}

// SwiGLU forward and backward of stored a and b, element by element.
struct Swiglu {
  Matrix h, da, db;

  Swiglu(const Matrix& a, const Matrix& b, const Matrix& dh, const std::vector<float>& weight)
      : h(a), da(a), db(a) {
    for (Index i = 0; i < a.rows; ++i)
      for (Index j = 0; j < a.columns; ++j) {
        const float gate = a(i, j), up = b(i, j), s = sigmoid(gate);
        const float d = dh(i, j) * weight[static_cast<std::size_t>(i)];
        h(i, j) = float(bf16(gate * s * up));
        db(i, j) = float(bf16(d * (gate * s)));
        da(i, j) = float(bf16(d * up * s * dsv3::fma(gate, 1 - s, 1.0f)));
      }
  }
};

Matrix silu_product(const Matrix& a, const Matrix& b) {
  Matrix h = a;
  for (std::size_t i = 0; i < h.values.size(); ++i)
    h.values[i] = float(bf16(a.values[i] * sigmoid(a.values[i]) * b.values[i]));
  return h;
}

// One expert, or one MLP, on its rows: x as codes, dy as codes for dX, and dy as it enters dW.
struct Expert {
  Matrix y, dx, d_gate, d_up, d_down;

  Expert(const Codes& x, const Matrix& gate, const Matrix& up, const Matrix& down_proj,
         const Codes& dy, const Codes& dy_columns, const std::vector<float>& weight,
         bool dispatched)
      : y(1, 1), dx(1, 1), d_gate(1, 1), d_up(1, 1), d_down(1, 1) {
    const Codes g(gate, 128, 128, false), u(up, 128, 128, false), d(down_proj, 128, 128, false);
    const Index tokens = x.code.rows, hidden = x.code.columns, inter = gate.rows;
    const Matrix a = rounded(product(tokens, inter, hidden, across(x), across(g)));
    const Matrix b = rounded(product(tokens, inter, hidden, across(x), across(u)));
    const Codes h(silu_product(a, b), 1, 128, false);
    y = rounded(product(tokens, hidden, inter, across(h), across(d)));

    const Matrix dh = rounded(product(tokens, inter, hidden, across(dy), down(d)));
    const Swiglu back(Codes(a, 1, 128, false).values(), Codes(b, 1, 128, false).values(), dh,
                      weight);
    const Codes h_columns(back.h, 128, 1, false), x_columns(x.values(), 128, 1, dispatched);
    const Codes da_columns(back.da, 128, 1, false), db_columns(back.db, 128, 1, false);
    d_down = product(hidden, inter, tokens, down(dy_columns), down(h_columns));
    d_gate = product(inter, hidden, tokens, down(da_columns), down(x_columns));
    d_up = product(inter, hidden, tokens, down(db_columns), down(x_columns));
    const Codes da(back.da, 1, 128, false), db(back.db, 1, 128, false);
    const Matrix first = rounded(product(tokens, hidden, inter, across(da), down(g)));
    dx = rounded(sum(first, product(tokens, hidden, inter, across(db), down(u))));
  }
};

}  // namespace

TEST_CASE("Mlp in FP8 has every bit of the quantisers' definition, forward and backward") {
  using Mlp8 = Mlp<Fp8>;
  constexpr Index tokens = 131, hidden = 150, inter = 140;  // a ragged last group everywhere
  EigenCpu backend;
  Memory memory(Index{1} << 24);
  const auto masters = Mlp8::make_tensors<float>(hidden, inter, memory.arena);
  const auto grads = Mlp8::make_tensors<float>(hidden, inter, memory.arena);
  const auto codes = Mlp8::make_tensors<operand_t<Fp8>>(hidden, inter, memory.arena);
  const auto operands =
      Mlp8::Tensors<const operand_t<Fp8>>{codes.gate_proj, codes.up_proj, codes.down_proj};
  Mlp8::for_each_tensor(
      [&](const char*, auto master, auto gradient, auto code) {
        fill(master, ++memory.stream, 0.1);
        fill(gradient, 0, 0);
        quantize_weights(backend, as_const(master), Quantized<e4m3>(code), {});
      },
      masters, grads, codes);
  const auto x = memory.random<bf16>({tokens, hidden}, 2),
             dy = memory.random<bf16>({tokens, hidden});
  const auto y = memory.empty<bf16>({tokens, hidden}), dx = memory.empty<bf16>({tokens, hidden});
  auto saved = Mlp8::make_saved(memory.arena, tokens, inter);
  const auto input = Projection<Fp8>{}.input(backend, "x", as_const(x), Route::dense, memory.arena);
  Mlp8{}.forward(backend, operands, input, y, saved, memory.arena);
  Mlp8{}.backward(backend, operands, input, saved, as_const(dy), dx, grads, memory.arena);

  const Matrix gradient{dy};
  const Expert expected(Codes(Matrix(x), 1, 128, false), Matrix(masters.gate_proj),
                        Matrix(masters.up_proj), Matrix(masters.down_proj),
                        Codes(gradient, 1, 128, false), Codes(gradient, 128, 1, false),
                        std::vector<float>(tokens, 1.0f), false);
  check_same("y", y, expected.y);
  check_same("dx", dx, expected.dx);
  check_same("gate_proj", grads.gate_proj, expected.d_gate);
  check_same("up_proj", grads.up_proj, expected.d_up);
  check_same("down_proj", grads.down_proj, expected.d_down);
}

TEST_CASE("Experts in FP8 have every bit of it: dispatched codes, ragged segments, slot weights") {
  constexpr Index tokens = 150, hidden = 140, inter = 70, experts = 3;
  ModelConfig config;
  config.hidden_size = hidden;
  config.moe_intermediate_size = inter;
  config.n_routed_experts = experts;
  config.n_shared_experts = 0;
  config.num_experts_per_tok = config.n_group = config.topk_group = 1;
  config.norm_topk_prob = false;  // else every weight is the scaling factor
  using Moe8 = Moe<Fp8>;
  const Moe8 moe(config);
  EigenCpu backend;
  Memory memory(Index{1} << 24);
  const auto masters = Moe8::make_tensors<float>(config, memory.arena);
  const auto grads = Moe8::make_tensors<float>(config, memory.arena);
  const auto codes = Moe8::make_tensors<operand_t<Fp8>>(config, memory.arena);
  Moe8::for_each_tensor(
      [&](const std::string&, auto master, auto gradient, auto code) {
        fill(master, ++memory.stream, 0.1);
        fill(gradient, 0, 0);
        if constexpr (requires { code.scales; })
          quantize_weights(backend, as_const(master), Quantized<e4m3>(code), {});
        else
          for (Index i = 0; i < master.size(); ++i) code.data[i] = bf16(master.data[i]);
      },
      masters, grads, codes);
  const Moe8::Tensors<const operand_t<Fp8>> operands{
      codes.gate, codes.gate_proj, codes.up_proj, codes.down_proj, {}};
  const auto x = memory.random<bf16>({tokens, hidden}, 2),
             dy = memory.random<bf16>({tokens, hidden});
  const auto y = memory.empty<bf16>({tokens, hidden}), dx = memory.empty<bf16>({tokens, hidden});
  const auto choice = memory.empty<std::int32_t>({tokens, 1});
  std::vector<Index> rows[experts];  // 139 rows, none, and 11
  for (Index t = 0; t < tokens; ++t) {
    const Index e = t % 13 == 5 ? 2 : 0;
    choice(t, 0) = static_cast<std::int32_t>(e);
    rows[e].push_back(t);
  }
  const Lengths lengths({150});
  auto saved = moe.make_saved(memory.arena, tokens, 1);
  const Projection<Fp8> projection;
  const auto input = Moe8::input_of(
      as_const(x), projection.input(backend, "x", as_const(x), Route::dispatch, memory.arena));
  moe.forward(backend, operands, {}, as_const(choice), input, lengths.view(), 1, y, saved,
              memory.arena);
  moe.backward(backend, operands, input, saved, lengths.view(), 0, as_const(dy), dx, grads,
               memory.arena);

  const Matrix gradient{dy};
  for (const Index e : {0, 2}) {
    CAPTURE(e);
    std::vector<float> weight;
    for (const Index t : rows[e]) weight.push_back(saved.routing.topk_weights(t, 0));
    const Matrix part = gradient.gather(rows[e]);
    const Codes dispatched(part, 1, 128, true);
    Matrix weighted = part;  // the weight multiplies the scale
    for (Index i = 0; i < part.rows; ++i)
      for (Index j = 0; j < part.columns; ++j)
        weighted(i, j) =
            dispatched.code(i, j) * (dispatched.scale(i, j) * weight[static_cast<std::size_t>(i)]);
    const Expert expected(Codes(Matrix(x).gather(rows[e]), 1, 128, true),
                          Matrix(masters.gate_proj[e]), Matrix(masters.up_proj[e]),
                          Matrix(masters.down_proj[e]), dispatched, Codes(weighted, 128, 1, true),
                          weight, true);
    check_same("gate_proj", grads.gate_proj[e], expected.d_gate);
    check_same("up_proj", grads.up_proj[e], expected.d_up);
    check_same("down_proj", grads.down_proj[e], expected.d_down);
    Matrix combined = expected.y;
    for (Index i = 0; i < combined.rows; ++i)
      for (Index j = 0; j < combined.columns; ++j)
        combined(i, j) = float(bf16(weight[static_cast<std::size_t>(i)] * combined(i, j)));
    const auto ours = memory.empty<bf16>({combined.rows, hidden});
    for (Index i = 0; i < combined.rows; ++i)
      for (Index j = 0; j < hidden; ++j) ours(i, j) = y(rows[e][static_cast<std::size_t>(i)], j);
    check_same("y", ours, combined);
  }
  for (Index i = 0; i < grads.gate_proj[1].size(); ++i) CHECK(grads.gate_proj[1].data[i] == 0);
}
