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

namespace {

// Losses and gradient norms of seven steps, each of two micro-batches with tokens of its own; from
// the fifth step on lambda and gamma are others.
std::vector<double> changing_steps(auto& backend) {
  Model<Fp32, std::remove_reference_t<decltype(backend)>> model(backend, small::config(),
                                                                {.seed = 3, .init_std = 0.1});
  TrainOptions options;
  options.schedule = Schedule{}.scaled(7 * 68, 1e-2, 2);
  options.schedule->mtp_lambda_until = options.schedule->bias_until = 4 * 68;
  options.ema_decay = 0.75;
  options.groups = {{.pattern = "layernorm", .weight_decay = 0.0},
                    {.pattern = "lm_head", .lr_factor = 0.5}};
  Trainer trainer(model, options);
  std::vector<double> figures;
  for (Index step = 0; step < 7; ++step) {
    std::vector<std::int32_t> tokens(4 * 18);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>((i * i + 7 * static_cast<std::size_t>(step)) % 53);
    const Batch halves[] = {next_token_batch(View<const std::int32_t, 2>(tokens.data(), {2, 18})),
                            next_token_batch(View<const std::int32_t, 2>(&tokens[36], {2, 18}))};
    const auto report = trainer.step(halves);
    figures.insert(figures.end(), {report.loss, report.grad_norm, report.max_violation});
  }
  return figures;
}

}  // namespace

TEST_CASE("recorded steps take new tokens and learning rates, and go on when lambda changes") {
  Cpu cpu(1);
  Guarded guarded;
  CHECK(changing_steps(guarded) == changing_steps(cpu));
  // The first two passes with a lambda and the first two updates with a gamma run as they are asked
  // for, the second of them being recorded.
  CHECK(guarded.repeated() == (8 - 2) + (6 - 2) + (4 - 2) + (3 - 2));
}
