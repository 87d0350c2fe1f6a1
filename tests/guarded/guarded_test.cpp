#include "guarded/guarded.hpp"

#include "small_model.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/philox.hpp>
#include <dsv3/nn/attention.hpp>
#include <dsv3/nn/rms_norm.hpp>
#include <vector>

using namespace dsv3;
using guarded::Guarded;

namespace {

// True where `action` dies of an access to protected memory.
bool faults(auto&& action) {
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);  // neither doctest's handler nor a sanitizer's
    action();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

// A backend with an arena of its memory; views are filled from the host and read back.
template <class Backend>
struct Device {
  Backend backend;
  Buffer<Backend> memory{backend, Index{1} << 20};
  Arena arena{memory.data(), Index{1} << 20};
  std::uint64_t stream = 0;

  template <class T, int Rank>
  View<T, Rank> random(const Index (&shape)[Rank]) {
    const auto view = arena.template take<T>(shape);
    std::vector<T> host(static_cast<std::size_t>(view.size()));
    const Philox philox(1, stream++);
    for (std::size_t i = 0; i < host.size(); ++i) host[i] = T(normal(philox, i));
    put(view, host);
    return view;
  }

  template <class T, int Rank>
  void put(View<T, Rank> view, const std::vector<T>& host) {
    copy_to_backend(backend, view.data, host.data(), view.size() * Index{sizeof(T)});
  }

  template <class T, int Rank>
  std::vector<unsigned char> bits(View<T, Rank> view) {
    std::vector<unsigned char> host(static_cast<std::size_t>(view.size()) * sizeof(T));
    copy_to_host(backend, host.data(), view.data, static_cast<Index>(host.size()));
    return host;
  }
};

// What run(device) returns is the same on both backends.
void check_equal_bits(auto run) {
  Device<Cpu> cpu;
  Device<Guarded> guarded;
  const auto expected = run(cpu);
  CHECK(!expected.empty());
  CHECK(run(guarded) == expected);
}

}  // namespace

TEST_CASE("the host can neither read nor write the memory of Guarded, nor beyond its end") {
  Guarded backend;
  const Buffer<Guarded> buffer(backend, 100);
  auto* bytes = static_cast<volatile unsigned char*>(buffer.data());
  CHECK(faults([&] { bytes[0] = 1; }));
  CHECK(faults([&] { return static_cast<int>(bytes[99]); }));
  CHECK_FALSE(faults([&] { Guarded::Open{backend}, void(); }));
  SUBCASE("not even after a primitive") {
    fill_zero(backend, buffer.data(), 100);
    CHECK(faults([&] { bytes[0] = 1; }));
  }
  SUBCASE("a primitive may, to the end rounded up to 64") {
    CHECK_FALSE(faults([&] {
      Guarded::Open open(backend);
      bytes[127] = 1;
    }));
    CHECK(faults([&] {
      Guarded::Open open(backend);
      bytes[128] = 1;
    }));
  }
}

TEST_CASE("Guarded refuses host memory where its own belongs, and the reverse") {
  Guarded backend;
  const Buffer<Guarded> buffer(backend, 64);
  float host[16] = {};
  const View<float, 2> own(static_cast<float*>(buffer.data()), {2, 2}), foreign(host, {2, 2});
  CHECK_THROWS_WITH(copy_to_backend(backend, host, host, 4),
                    "copy_to_backend: goes from the host's memory to the backend's");
  CHECK_THROWS_WITH(copy_to_backend(backend, buffer.data(), buffer.data(), 4),
                    "copy_to_backend: goes from the host's memory to the backend's");
  CHECK_THROWS_WITH(copy_to_host(backend, buffer.data(), buffer.data(), 4),
                    "copy_to_host: goes from the backend's memory to the host's");
  CHECK_THROWS_WITH(copy_to_host(backend, host, buffer.data(), 65),
                    "copy_to_host: goes from the backend's memory to the host's");
  CHECK_THROWS_WITH(fill_zero(backend, host, 4), "fill_zero: memory is not the backend's");
  CHECK_THROWS_WITH(gemm(backend, nn, own, foreign, own, Output::add),
                    "gemm: a view is not in the backend's memory");
  CHECK_NOTHROW(copy_to_backend(backend, buffer.data(), host, 64));
  const auto codes = [&](void* values, void* scales) {
    return Quantized<const e4m3>{{static_cast<const e4m3*>(values), {2, 2}},
                                 {static_cast<const float*>(scales), 2, 1},
                                 1,
                                 2};
  };
  CHECK_NOTHROW(gemm(backend, nt, codes(buffer.data(), buffer.data()),
                     codes(buffer.data(), buffer.data()), own, Output::overwrite));
  CHECK_THROWS_WITH(gemm(backend, nt, codes(buffer.data(), buffer.data()),
                         codes(host, buffer.data()), own, Output::overwrite),
                    "gemm: a view is not in the backend's memory");
  CHECK_THROWS_WITH(gemm(backend, nt, codes(buffer.data(), host),
                         codes(buffer.data(), buffer.data()), own, Output::overwrite),
                    "gemm: scales are not in the backend's memory");
}

TEST_CASE("a failing primitive closes the memory again") {
  Guarded backend;
  const Buffer<Guarded> buffer(backend, 64);
  const View<float, 2> a(static_cast<float*>(buffer.data()), {2, 2});
  CHECK_THROWS(gemm(backend, nn, a, a, a.rows(0, 1), Output::overwrite));
  CHECK(faults([&] { static_cast<volatile float*>(a.data)[0] = 1; }));
}

TEST_CASE("products on Guarded have the bits of Cpu") {
  check_equal_bits([](auto& d) {
    const auto a = d.template random<bf16>({7, 37});
    const auto b = d.template random<float>({5, 37});
    const auto c = d.template random<float>({7, 5});
    gemm(d.backend, nt, a, b, c, Output::add);
    return d.bits(c);
  });
  check_equal_bits([](auto& d) {
    const auto a = d.template random<double>({3, 7, 6});
    const auto b = d.template random<double>({3, 6, 5});
    const auto c = d.template random<double>({3, 7, 5});
    batched_gemm(d.backend, nn, a, b, c, Output::overwrite);
    return d.bits(c);
  });
  check_equal_bits([](auto& d) {
    const auto a = d.template random<float>({9, 6});
    const auto b = d.template random<float>({9, 5});
    const auto c = d.template random<float>({3, 6, 5});
    const auto offsets = d.arena.template take<Index>({4});
    d.put(offsets, std::vector<Index>{0, 4, 4, 9});
    grouped_gemm(d.backend, tn, a, b, c, as_const(offsets), Output::overwrite);
    return d.bits(c);
  });
}

TEST_CASE("sorting by expert on Guarded has the order of Cpu") {
  check_equal_bits([](auto& d) {
    const auto idx = d.arena.template take<std::int32_t>({3, 2});
    d.put(idx, std::vector<std::int32_t>{1, 3, 0, 1, 1, 2});
    const auto offsets = d.arena.template take<Index>({5});
    const auto pair_of_slot = d.arena.template take<std::int32_t>({6});
    const auto slot_of_pair = d.arena.template take<std::int32_t>({3, 2});
    sort_by_expert(d.backend, as_const(idx), offsets, pair_of_slot, slot_of_pair);
    return d.bits(pair_of_slot);
  });
}

TEST_CASE("a block that knows nothing of Guarded has the bits of Cpu") {
  check_equal_bits([](auto& d) {
    const auto x = d.template random<bf16>({5, 37});
    const auto weight = d.template random<bf16>({37});
    const auto dy = d.template random<bf16>({5, 37});
    const auto dx = d.template random<bf16>({5, 37});
    const auto dweight = d.template random<float>({37});
    RmsNorm<bf16>{}.backward(d.backend, {weight}, x, dy, dx, Output::add, {dweight}, d.arena);
    auto all = d.bits(dx);
    const auto more = d.bits(dweight);
    all.insert(all.end(), more.begin(), more.end());
    return all;
  });
  check_equal_bits([](auto& d) {
    const auto q = d.template random<float>({5, 2, 6});
    const auto kv = d.template random<float>({5, 2, 7});
    const auto k_rope = d.template random<float>({5, 2});
    const auto o = d.template random<float>({5, 2, 3});
    const auto lse = d.template random<float>({5, 2});
    const auto begin = d.arena.template take<std::int32_t>({5});
    const auto end = d.arena.template take<std::int32_t>({5});
    d.put(begin, std::vector<std::int32_t>{0, 0, 0, 3, 3});
    d.put(end, std::vector<std::int32_t>{3, 3, 3, 5, 5});
    Sequences sequences;
    sequences.position = sequences.begin = begin;
    sequences.end = end;
    Attention<float>{.scale = 0.5}.forward(d.backend, q, kv, k_rope, sequences, o, lse, d.arena);
    return d.bits(o);
  });
}

TEST_CASE("three training steps on Guarded have the bits of Cpu") {
  Cpu cpu(1);
  Guarded guarded(2);
  CHECK(small::train<Fp32>(guarded) == small::train<Fp32>(cpu));
  CHECK(small::train<Bf16>(guarded) == small::train<Bf16>(cpu));
  CHECK(small::train<Fp8>(guarded) == small::train<Fp8>(cpu));
}
