// What a model's type refuses.
#include <dsv3/model.hpp>

inline constexpr dsv3::ModelConfig good = [] {
  auto c = dsv3::presets::deepseek_v3;
  c.hidden_size = 256;
  return c;
}();
inline constexpr dsv3::ModelConfig bad = [] {
  auto c = good;
  c.n_group = 7;
  return c;
}();
using Good = dsv3::Model<dsv3::Fp32, dsv3::Cpu, good>;
inline Good make(dsv3::Cpu& backend) { return Good(backend); }

// case: n_group must divide n_routed_experts
inline auto broken_rule(dsv3::Cpu& backend) {
  return dsv3::Model<dsv3::Fp32, dsv3::Cpu, bad>(backend);
}
// case: is_static
inline auto no_sizes(dsv3::Cpu& backend) { return dsv3::Model<dsv3::Fp32, dsv3::Cpu>(backend); }
