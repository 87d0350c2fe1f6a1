#include "guarded/guarded.hpp"

#include "small_model.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <csignal>

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

TEST_CASE("three training steps on Guarded have the bits of Cpu") {
  Cpu cpu(1);
  Guarded guarded(2);
  CHECK(small::train<Fp32>(guarded) == small::train<Fp32>(cpu));
  CHECK(small::train<Bf16>(guarded) == small::train<Bf16>(cpu));
  CHECK(small::train<Fp8>(guarded) == small::train<Fp8>(cpu));
}
