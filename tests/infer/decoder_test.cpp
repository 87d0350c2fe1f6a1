#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/plan.hpp>

#include "infer_fixture.hpp"

using namespace infer;

namespace {

constexpr Index length = 150;

// Spec appendix C 3: relative Frobenius norm between forms of attention.
template <class P>
constexpr double tolerance = std::is_same_v<P, Fp64>   ? 1e-12
                             : std::is_same_v<P, Fp32> ? 1e-4
                                                       : 3e-2;

}  // namespace

TEST_CASE_TEMPLATE("Prefill has the bits of the training form, whatever the chunks", P, Fp64, Fp32,
                   Bf16, Fp8) {
  Cpu cpu(2);
  Fixture<P, Cpu> f(cpu, config());
  const auto tokens = text(length);
  const auto expected = f.forward(tokens);
  using T = typename P::activation;
  const auto contiguous = CacheOptions::contiguous(1, length);
  CHECK(run<T>(f.model, tokens, length, {length}, contiguous) == expected);
  CHECK(run<T>(f.model, tokens, length, {64}, contiguous) == expected);
  CHECK(run<T>(f.model, tokens, length, {1, 7, 30, 2}, contiguous) == expected);
  CHECK(run<T>(f.model, tokens, length, {50}, CacheOptions::paged(length, 1, 9)) == expected);
}

// Without experts: a choice that flips at a near tie says nothing about attention.
TEST_CASE_TEMPLATE("Decoding agrees with the training form", P, Fp64, Fp32, Bf16) {
  Cpu cpu(2);
  Fixture<P, Cpu> f(cpu, config(0, true));
  const auto tokens = text(length);
  const auto expected = f.forward(tokens);
  using T = typename P::activation;
  const auto paged = CacheOptions::paged(length, 1, 16);
  CHECK(distance(run<T>(f.model, tokens, 100, {100, 1}, paged), expected) < tolerance<P>);
  CHECK(distance(run<T>(f.model, tokens, 0, {1}, paged), expected) < tolerance<P>);
}

TEST_CASE("Decoding agrees with the training form in a model with experts") {
  Cpu cpu(2);
  Fixture<Fp64, Cpu> f(cpu, config());
  const auto tokens = text(length);
  const auto paged = CacheOptions::paged(length, 1, 16);
  CHECK(distance(run<double>(f.model, tokens, 0, {1}, paged), f.forward(tokens)) < 1e-12);
  EigenCpu eigen;
  Fixture<Fp64, EigenCpu> g(eigen, config());
  CHECK(distance(run<double>(g.model, tokens, 90, {40, 3}, paged), f.forward(tokens)) < 1e-12);
}

TEST_CASE_TEMPLATE("Decoding has the same bits in any passes and blocks", P, Fp64, Fp32, Bf16,
                   Fp8) {
  Cpu one(1), three(3);
  Fixture<P, Cpu> f(one, config());
  Fixture<P, Cpu> g(three, config());
  const auto tokens = text(length);
  using T = typename P::activation;
  const auto expected = run<T>(f.model, tokens, 60, {60, 1}, CacheOptions::contiguous(1, length));
  const auto check = [&](std::vector<Index> sizes, const CacheOptions& options) {
    CHECK(run<T>(f.model, tokens, 60, sizes, options) == expected);
    CHECK(run<T>(g.model, tokens, 60, sizes, options) == expected);
  };
  check({33, 27, 1, 2, 5, 9}, CacheOptions::contiguous(1, length));
  check({60, 20}, CacheOptions::paged(length, 1, 7));
  check({60, 1}, CacheOptions::paged(length, 1, 64));
}

TEST_CASE_TEMPLATE("A cache of another type is read as it has rounded", C, float, bf16, e4m3) {
  Cpu cpu(2);
  Fixture<Fp32, Cpu> f(cpu, config(0, true));
  const auto tokens = text(length);
  const auto contiguous = CacheOptions::contiguous(1, length);
  const auto whole = run<C>(f.model, tokens, length, {length}, contiguous);
  // Chunks and blocks change nothing, though every chunk reads entries that were rounded before.
  CHECK(run<C>(f.model, tokens, length, {13}, CacheOptions::paged(length, 1, 8)) == whole);
  // Both forms read the same rounded entries.
  CHECK(distance(run<C>(f.model, tokens, 0, {1}, contiguous), whole) < 1e-4);
  // Rounding itself: 2^-9 of each entry in bf16, 2^-4 in e4m3.
  const double rounding = std::is_same_v<C, float> ? 1e-6 : std::is_same_v<C, bf16> ? 1e-2 : 0.1;
  CHECK(distance(whole, f.forward(tokens)) < rounding);
}

TEST_CASE_TEMPLATE("Sequences of unequal length in one pass have the bits that they have alone", P,
                   Fp64, Fp32, Bf16, Fp8) {
  Cpu cpu(2);
  Fixture<P, Cpu> f(cpu, config());
  using T = typename P::activation;
  using D = Decoder<Model<P, Cpu>>;
  const Index lengths[] = {5, 90, 1, 33};
  std::vector<std::vector<std::int32_t>> texts;
  std::vector<std::vector<typename P::accumulator>> alone;
  for (std::size_t s = 0; s < 4; ++s) {
    texts.push_back(text(lengths[s] + 3, s));
    alone.push_back(
        run<T>(f.model, texts[s], lengths[s], {lengths[s], 3}, CacheOptions::contiguous(1, 100)));
  }
  LatentCache<Cpu, T> cache(cpu, config(), CacheOptions::paged(200, 4, 11));
  D decoder(f.model, cache);
  std::vector<CachePart> prompts, rest;
  for (std::size_t s = 0; s < 4; ++s) {
    prompts.push_back({cache.create(), part(texts[s], 0, lengths[s])});
    rest.push_back({prompts[s].sequence, part(texts[s], lengths[s], lengths[s] + 3)});
  }
  const auto compare = [&](const std::vector<CachePart>& parts, bool prompt, const auto& output) {
    std::int32_t row = 0;
    for (std::size_t s = 0; s < 4; ++s)
      for (Index t = 0; t < parts[s].count(); ++t, ++row) {
        const auto logits = decoder.logits(output.h, {row});
        const auto* expected = alone[s].data() + (prompt ? t : lengths[s] + t) * 43;
        CHECK(std::equal(logits.begin(), logits.end(), expected));
      }
  };
  compare(prompts, true, decoder.forward(prompts, AttentionForm::expanded));
  compare(rest, false, decoder.forward(rest, AttentionForm::absorbed));
}

TEST_CASE("A fork continues with the bits of a sequence of its own, and so does its parent") {
  Cpu cpu(2);
  Fixture<Fp32, Cpu> f(cpu, config());
  const auto common = text(40), first = text(6, 1), second = text(6, 2);
  LatentCache<Cpu, float> cache(cpu, config(), CacheOptions::paged(100, 2, 16));
  Decoder<Model<Fp32, Cpu>> decoder(f.model, cache);
  const Index a = cache.create();
  decoder.forward({{a, common}}, AttentionForm::expanded);
  const Index b = cache.fork(a), used = cache.blocks() - cache.free_blocks();
  CHECK(used == 3);
  const auto next = [&](Index s, const std::vector<std::int32_t>& tokens) {
    std::vector<float> all;
    for (const std::int32_t token : tokens) {
      const auto output = decoder.forward({{s, {token}}}, AttentionForm::absorbed);
      const auto logits = decoder.logits(output.h, {0});
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  };
  const auto of_b = next(b, second), of_a = next(a, first);
  CHECK(cache.blocks() - cache.free_blocks() == 4);  // one block was copied
  const auto alone = [&](const std::vector<std::int32_t>& tokens) {
    const Index s = cache.create();
    decoder.forward({{s, common}}, AttentionForm::expanded);
    const auto result = next(s, tokens);
    cache.erase(s);
    return result;
  };
  cache.erase(b);
  CHECK(of_a == alone(first));
  CHECK(of_b == alone(second));
}

TEST_CASE("Truncated entries leave no trace") {
  Cpu cpu(2);
  Fixture<Fp32, Cpu> f(cpu, config());
  const auto tokens = text(20), others = text(9, 3);
  LatentCache<Cpu, float> cache(cpu, config(), CacheOptions::paged(64, 1, 8));
  Decoder<Model<Fp32, Cpu>> decoder(f.model, cache);
  const Index s = cache.create();
  decoder.forward({{s, tokens}}, AttentionForm::expanded);
  const auto once = [&] {
    const auto output = decoder.forward({{s, {7}}}, AttentionForm::absorbed);
    return decoder.logits(output.h, {0});
  };
  const auto expected = once();
  cache.truncate(s, 20);
  decoder.forward({{s, others}}, AttentionForm::absorbed);
  cache.truncate(s, 20);
  CHECK(once() == expected);
}

TEST_CASE_TEMPLATE("MTP over a cache has the bits of the training form", P, Fp64, Fp32, Bf16) {
  Cpu cpu(2);
  const ModelConfig variants[] = {config(2), [] {
                                    ModelConfig c = config(2);
                                    c.mtp_hidden = MtpHidden::pre_norm;
                                    return c;
                                  }()};
  for (const ModelConfig& c : variants) {
    Fixture<P, Cpu> f(cpu, c);
    using T = typename P::activation;
    const auto tokens = text(50);
    const Batch batch{{tokens.data(), {1, 50}}, {}, {}, {}};
    LatentCache<Cpu, T> cache(cpu, c, CacheOptions::paged(64, 1, 8, true));
    Decoder<Model<P, Cpu>> decoder(f.model, cache);
    const Index s = cache.create();
    auto output = decoder.forward({{s, tokens}}, AttentionForm::expanded);
    for (Index depth = 1; depth <= 2; ++depth) {
      const Index n = 50 - depth;
      const auto expected = f.model.mtp_logits(batch, depth);
      output = decoder.forward_mtp(depth, {{s, part(tokens, depth, 50)}}, AttentionForm::expanded,
                                   output.carried.rows(0, n));
      for (const Index t : {Index{0}, Index{17}, n - 1}) {
        const auto logits = decoder.logits(output.h, {static_cast<std::int32_t>(t)});
        CHECK(std::equal(logits.begin(), logits.end(), expected.begin() + t * 43));
      }
    }
  }
}

TEST_CASE("refresh() follows the weights of an FP8 policy") {
  Cpu cpu(1);
  Fixture<Fp8, Cpu> f(cpu, config(0, true)), g(cpu, config(0, true), 0.3);
  LatentCache<Cpu, bf16> cache(cpu, config(0, true), CacheOptions::contiguous(2, 8));
  Decoder<Model<Fp8, Cpu>> decoder(f.model, cache);
  fixture::randomize(f.model, 0.3);
  decoder.refresh();
  const auto output = decoder.forward({{cache.create(), {1, 2, 3}}}, AttentionForm::absorbed);
  const auto logits = decoder.logits(output.h, {2});
  const auto expected = run<bf16>(g.model, {1, 2, 3}, 0, {3}, CacheOptions::contiguous(1, 8));
  CHECK(std::equal(logits.begin(), logits.end(), expected.begin() + 2 * 43));
}

TEST_CASE("Mistakes name what is wrong and leave the cache as it was") {
  Cpu cpu(1);
  Fixture<Fp32, Cpu> f(cpu, config(1));
  LatentCache<Cpu, float> cache(cpu, config(1), CacheOptions::paged(16, 1, 8));
  Decoder<Model<Fp32, Cpu>> decoder(f.model, cache);
  const Index s = cache.create();
  const auto fails = [&](const std::vector<CachePart>& parts, const char* message) {
    CHECK_THROWS_WITH_AS(decoder.forward(parts, AttentionForm::expanded), message,
                         std::invalid_argument);
    CHECK(cache.length(s) == 0);
    CHECK(cache.free_blocks() == 2);
  };
  fails({}, "Decoder: one (1) must be at most parts (0)");
  fails({{s, {}}}, "Decoder: part 0: one (1) must be at most tokens (0)");
  fails({{s, {1, 43}}},
        "Decoder: part 0: token 1 (43) must be at least 0 and below vocab_size (43)");
  fails({{s, {-1}}}, "Decoder: part 0: token 0 (-1) must be at least 0 and below vocab_size (43)");
  fails({{s, {1}}, {s, {2}}}, "Decoder: part 1: sequence (0) must not be that of part 0");
  fails({{s, std::vector<std::int32_t>(17, 1)}},
        "Decoder: blocks needed (3) must be at most free blocks of the cache (2)");
  fails({{5, {1}}}, "BlockPool::blocks_needed: sequence (5) must be one that exists");
  CHECK_THROWS_WITH_AS(
      decoder.forward_mtp(1, {{s, {1}}}, AttentionForm::expanded, {}),
      "Decoder::forward_mtp: depth (1) must be at most MTP levels of the cache (0)",
      std::invalid_argument);
}

TEST_CASE("plan counts the bytes of a cache") {
  Cpu cpu(1);
  const auto check = [&](const CacheOptions& options) {
    CHECK(LatentCache<Cpu, bf16>(cpu, config(2), options).bytes() ==
          plan::cache_bytes<bf16>(config(2), options));
    CHECK(LatentCache<Cpu, e4m3>(cpu, config(2), options).bytes() ==
          plan::cache_bytes<e4m3>(config(2), options));
    CHECK(LatentCache<Cpu, double>(cpu, config(2), options).bytes() ==
          plan::cache_bytes<double>(config(2), options));
  };
  check(CacheOptions::paged(100, 3, 7));
  check(CacheOptions::paged(100, 3, 64, true));
  check(CacheOptions::contiguous(2, 33, true));
}
