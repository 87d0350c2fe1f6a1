// Whole trainings and generation whose row kernels run as blocks of threads.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "gpu/emulated.hpp"
#include "nn/fp8_variants.hpp"
#include "small_generation.hpp"

using namespace dsv3;
using emulated::Emulated;

namespace {

// Row kernels that ran in any test of this file.
std::set<std::string>& kernels_run() {
  static std::set<std::string> names;
  return names;
}

void expect_sound(const Emulated& backend) {
  for (const auto& fault : backend.faults()) FAIL_CHECK(fault);
  for (const auto& [name, launches] : backend.launches()) kernels_run().insert(name);
}

// The largest difference of two trainings' figures, relative to their size.
double difference(const small::Outcome& a, const small::Outcome& b) {
  double worst = a.figures.size() == b.figures.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < a.figures.size(); ++i)
    worst = std::fmax(worst, std::fabs(a.figures[i] - b.figures[i]) / std::fabs(b.figures[i]));
  return worst;
}

// Three steps of training, verified. Not verified, with the threads in another order, they have the
// same bits.
template <class P>
small::Outcome train(bool again = false) {
  Emulated verified(1, true);
  const auto outcome = small::train<P>(verified);
  expect_sound(verified);
  if (again) {
    Emulated plain(2);
    CHECK(small::train<P>(plain) == outcome);
  }
  MESSAGE(std::string(P::name) << ": " << verified.launches().size() << " row kernels, "
                               << verified.compared().size()
                               << " of them compared with Cpu bit for bit; largest error of a sum: "
                               << verified.largest_error() << " units");
  return outcome;
}

}  // namespace

TEST_CASE("training in double on blocks of threads agrees with Cpu to 1e-9") {
  Cpu cpu(1);
  CHECK(difference(train<Fp64>(true), small::train<Fp64>(cpu)) < 1e-9);
}

// Sums in another order, then roundings and codes the other way: see gpu/main.cpp.
TEST_CASE("training in narrower types on blocks of threads agrees with Cpu") {
  Cpu cpu(1);
  CHECK(difference(train<Fp32>(), small::train<Fp32>(cpu)) < 1e-4);
  CHECK(difference(train<Bf16>(true), small::train<Bf16>(cpu)) < 3e-2);
  CHECK(difference(train<Fp8>(), small::train<Fp8>(cpu)) < 1e-1);
}

TEST_CASE("studies of FP8 run on blocks of threads") {
  train<fixture::Studies>(true);
  train<fixture::MoreStudies>();
}

TEST_CASE("generation on blocks of threads is that of Cpu") {
  Cpu cpu(1);
  Emulated backend(1, true);
  const auto ours = small::generate<Fp64, e4m3>(backend), theirs = small::generate<Fp64, e4m3>(cpu);
  for (std::size_t i = 0; i < 3; ++i) CHECK(ours[i].tokens == theirs[i].tokens);
  expect_sound(backend);
}

TEST_CASE("rows are copied by blocks of threads") {
  Emulated backend(1);
  std::vector<float> x(3 * 200), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  for_each_row(backend, 3, detail::CopyRow<float>{{x.data(), {3, 200}}, {y.data(), {3, 200}}});
  CHECK(x == y);
  expect_sound(backend);
}

// After the others.
TEST_CASE("every row kernel of nn/, train/ and infer/ has run on blocks of threads") {
  int kernels = 0;
  for (const std::string folder : {"nn", "train", "infer"})
    for (const auto& entry : std::filesystem::directory_iterator(std::string(DSV3_TEST_DATA) +
                                                                 "/../include/dsv3/" + folder)) {
      std::ifstream file(entry.path());
      std::string line, name;
      while (std::getline(file, line)) {
        const auto at = line.find("struct ");
        if (at != std::string::npos && line.ends_with(" {"))
          name = line.substr(at + 7, line.size() - at - 9);
        if (line.find("void operator()(auto team, Index") == std::string::npos) continue;
        ++kernels;
        bool ran = false;
        for (const auto& full : kernels_run()) {
          const auto found = full.find("dsv3::detail::" + name);
          if (found != 0) continue;
          const auto end = full.size() > 14 + name.size() ? full[14 + name.size()] : '<';
          ran = ran || end == '<';
        }
        CHECK_MESSAGE(ran, name);
      }
    }
  CHECK(kernels > 60);
}
