// A user's program: his matrices, one product of ours, and the version that he compiled against.
#include <cstdio>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/config.hpp>
#include <dsv3/version.hpp>

static_assert(DSV3_VERSION >= 100);

constexpr dsv3::ModelConfig config = [] {
  auto c = dsv3::presets::deepseek_v3;
  c.hidden_size = 256;
  return c;
}();
static_assert((dsv3::validate(config), true));

int main() {
  dsv3::RowMajor<float> x(2, 3), w(4, 3), y(2, 4);
  x << 1, 2, 3, 4, 5, 6;
  w << 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1;
  dsv3::EigenCpu backend;
  dsv3::gemm(backend, dsv3::nt, dsv3::view_of(x), dsv3::view_of(w), dsv3::view_of(y),
             dsv3::Output::overwrite);
  std::printf("y(1, 3) = %g\n", static_cast<double>(y(1, 3)));
  return y(1, 3) == 15.0f ? 0 : 1;
}
