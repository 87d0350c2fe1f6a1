#include <dsv3/backend/cpu.hpp>
#include <dsv3/train/trainer.hpp>

#include "infer_fixture.hpp"

using namespace infer;

namespace {

constexpr Index joint_vocab = 17;

#ifdef DSV3_SLOW_BUILD
constexpr std::uint64_t samples = 4096;
#else
constexpr std::uint64_t samples = 100'352;
#endif

// A model that has learnt a text of few tokens with a rule and some noise. Its MTP layers are then
// disturbed, so that drafts stand often, not always.
ModelConfig small_config(Index depth, Index vocab) {
  ModelConfig c = fixture::tiny_config(depth);
  c.vocab_size = vocab;
  c.hidden_size = 24;
  c.num_hidden_layers = 2;
  c.first_k_dense_replace = 1;
  return c;
}

std::vector<std::int32_t> noisy_text(Index count, Index vocab, std::uint64_t seed) {
  const Philox philox(seed, 0);
  std::vector<std::int32_t> tokens = {static_cast<std::int32_t>(seed % 5)};
  while (static_cast<Index>(tokens.size()) < count) {
    const auto word = philox(tokens.size()).word[0];
    const Index next = word % 5 == 0 ? static_cast<Index>(word / 5) : 3 * tokens.back() + 1;
    tokens.push_back(static_cast<std::int32_t>(next % vocab));
  }
  return tokens;
}

template <class P>
struct Trained {
  Cpu cpu{2};
  Model<P, Cpu> model;

  Trained(Index depth, Index vocab, int steps, double disturbance = 0.1)
      : model(cpu, small_config(depth, vocab), {.seed = 2, .init_std = 0.1}) {
    TrainOptions options;
    options.schedule = Schedule{}.scaled(Index{steps} * 4 * 32, 2e-2, 4);
    Trainer trainer(model, options);
    for (int step = 0; step < steps; ++step) {
      const auto tokens = noisy_text(4 * 33, vocab, static_cast<std::uint64_t>(step));
      trainer.step(View<const std::int32_t, 2>(tokens.data(), {4, 33}));
    }
    const std::string first_mtp = "model.layers.2.";
    std::uint64_t stream = 500;
    model.for_each_tensor([&]<class U, int Rank>(const std::string& name, View<U, Rank> view) {
      if (Rank == 1 || name < first_mtp || !name.starts_with("model.layers.")) return;
      const Philox philox(3, ++stream);
      for (Index i = 0; i < view.size(); ++i)
        view.data[i] += U(disturbance) * U(normal(philox, static_cast<std::uint64_t>(i)));
    });
    model.refresh_operands();
  }
};

GenerationRequest request(std::vector<std::int32_t> prompt, Index max_tokens,
                          SamplingOptions sampling = {}) {
  GenerationRequest r;
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.sampling = sampling;
  r.ignore_eos = true;
  return r;
}

// Accepts with the draft's own probability: plausible, and wrong.
struct WrongRule {
  SpeculationRule::Verdict operator()(const std::vector<double>& p, const std::vector<double>& q,
                                      std::int32_t draft, double u, double v) const {
    if (u < std::max(p[static_cast<std::size_t>(draft)], q[static_cast<std::size_t>(draft)]))
      return {true, draft};
    return {false, Sampler::draw(p, v)};
  }
};

// The upper tail of the chi-square distribution with n degrees of freedom, by the cube root
// approximation of Wilson and Hilferty: within 1e-4 at the probabilities that matter here.
double chi_square_tail(double x, double n) {
  const double z = (std::cbrt(x / n) - (1 - 2 / (9 * n))) / std::sqrt(2 / (9 * n));
  return 0.5 * std::erfc(z / std::sqrt(2.0));
}

// p of a chi-square test of counts against probabilities; cells that expect fewer than 5 are one.
double chi_square(const std::vector<double>& counts, const std::vector<double>& probabilities) {
  double observed = 0, statistic = 0, merged_count = 0, merged_expected = 0, cells = 0;
  for (const double count : counts) observed += count;
  const auto add = [&](double count, double expected) {
    statistic += (count - expected) * (count - expected) / expected;
    ++cells;
  };
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double expected = observed * probabilities[i];
    if (expected == 0 && counts[i] > 0) return 0;  // impossible, and it happened
    if (expected >= 5) {
      add(counts[i], expected);
    } else {
      merged_count += counts[i];
      merged_expected += expected;
    }
  }
  if (merged_expected > 0) add(merged_count, merged_expected);
  return chi_square_tail(statistic, cells - 1);
}

}  // namespace

TEST_CASE("The rule leaves p as it is: the example of the specification") {
  const std::vector<double> p = {.5, .2, .2, .1}, q = {.1, .6, .2, .1};
  const Index samples = 200000;
  std::vector<double> counts(4);
  double accepted = 0;
  for (Index i = 0; i < samples; ++i) {
    const std::int32_t draft = Sampler::draw(q, Sampler::random(1, "draft", i));
    const auto verdict = SpeculationRule{}(p, q, draft, Sampler::random(1, "accept", i),
                                           Sampler::random(1, "residual", i));
    accepted += verdict.accepted;
    ++counts[static_cast<std::size_t>(verdict.token)];
  }
  // sum of min(p, q) = .6, whose standard deviation here is 0.0011.
  CHECK(accepted / static_cast<double>(samples) == doctest::Approx(0.6).epsilon(0.01));
  CHECK(chi_square(counts, p) > 0.001);
}

TEST_CASE("A greedy draft stands where it is the largest, and falls elsewhere") {
  const SpeculationRule rule;
  const std::vector<double> zero = {0, 1, 0}, other = {0, 0, 1};
  CHECK(rule(zero, zero, 1, 0.999999, 0).accepted);
  const auto verdict = rule(zero, other, 2, 0, 0.5);
  CHECK(!verdict.accepted);
  CHECK(verdict.token == 1);
}

TEST_CASE("chi_square_tail agrees with tables") {
  CHECK(chi_square_tail(18.307, 10) == doctest::Approx(0.05).epsilon(0.02));
  CHECK(chi_square_tail(29.588, 10) == doctest::Approx(0.001).epsilon(0.05));
  CHECK(chi_square_tail(124.342, 100) == doctest::Approx(0.05).epsilon(0.02));
}

TEST_CASE_TEMPLATE("Greedy tokens are those without speculation", P, Fp32, Bf16, Fp8) {
  for (Index depth = 1; depth <= 2; ++depth) {
    Trained<P> t(depth, 29, 30, 0.2);
    const Index prompts = samples < 100'000 ? 10 : std::is_same_v<P, Fp32> ? 200 : 40;
    std::vector<GenerationRequest> requests;
    std::vector<std::vector<std::int32_t>> expected;
    for (Index i = 0; i < prompts; ++i) {
      const auto seed = static_cast<std::uint64_t>(i + 1000);
      requests.push_back(request(noisy_text(1 + i * 7 % 23, 29, seed), 1 + i * 5 % 24));
      expected.push_back(generate(t.model, requests.back().prompt,
                                  {.max_tokens = requests.back().max_tokens, .ignore_eos = true}));
    }
    double drafted = 0, accepted = 0;
    for (Index batch = 1; batch <= 7; ++batch) {
      Generator generator(t.model, {.max_sequences = batch,
                                    .max_tokens = 50 * batch,
                                    .block_size = batch % 2 ? 8 : 0,
                                    .prefill_tokens = 5 * batch,
                                    .speculate = depth});
      for (const auto& r : requests) generator.add(r);
      generator.run();
      Index different = 0;
      for (Index i = 0; i < prompts; ++i)
        different += generator.result(i).tokens != expected[static_cast<std::size_t>(i)];
      CHECK(different == 0);
      drafted += static_cast<double>(generator.statistics().drafted[0]);
      accepted += static_cast<double>(generator.statistics().accepted[0]);
      CHECK(generator.cache().free_blocks() == generator.cache().blocks());
    }
    // The test means something: drafts stand, and fall.
    MESSAGE("drafts that stood: " << accepted / drafted);
    CHECK(accepted / drafted > 0.1);
    CHECK(accepted / drafted < 0.98);
  }
}

TEST_CASE("log_probabilities are those without speculation") {
  Trained<Fp32> t(1, 29, 150);
  const auto r = request(noisy_text(9, 29, 1), 20);
  Generator plain(t.model, {}), speculative(t.model, {.speculate = 1});
  plain.add(r);
  speculative.add(r);
  plain.run();
  speculative.run();
  CHECK(plain.result(0).log_probabilities == speculative.result(0).log_probabilities);
  const auto& statistics = speculative.statistics();
  CHECK(statistics.tokens == 19);  // the first one is the prompt's
  CHECK(statistics.passes < 19);
  CHECK(statistics.tokens_per_pass() > 1);
  CHECK(statistics.rate(0) > 0);
}

TEST_CASE("Sampled sequences do not depend on their neighbours under speculation") {
  Trained<Fp32> t(2, 29, 150);
  const auto sampled = [&](Index sequences, std::uint64_t seed) {
    Generator generator(t.model, {.max_sequences = sequences, .max_tokens = 300, .speculate = 2});
    for (Index i = 0; i < sequences; ++i)
      generator.add(request(
          noisy_text(3 + i, 29, static_cast<std::uint64_t>(i)), 15,
          {.temperature = 0.8, .top_p = 0.95, .seed = seed + static_cast<std::uint64_t>(i)}));
    generator.run();
    return generator.take(0).tokens;
  };
  CHECK(sampled(1, 7) == sampled(6, 7));
  CHECK(sampled(1, 7) != sampled(1, 8));
}

// The conditional distributions of a model behind a prompt, by plain decoding.
class Conditionals {
 public:
  Conditionals(Model<Fp32, Cpu>& model, const std::vector<std::int32_t>& prompt,
               const SamplingOptions& sampling)
      : cache_(model.backend(), model.config(), CacheOptions::contiguous(1, 32)),
        decoder_(model, cache_),
        tokens_(prompt),
        sampling_(sampling),
        sequence_(cache_.create()) {
    const auto output = decoder_.forward({{sequence_, prompt}}, AttentionForm::expanded);
    start_ = distribution(output, static_cast<std::int32_t>(prompt.size()) - 1);
  }

  const std::vector<double>& start() const { return start_; }

  // Calls f(p) with the distribution behind one more token, which then goes again.
  void behind(Index token, auto f) {
    tokens_.push_back(static_cast<std::int32_t>(token));
    const auto output = decoder_.forward({{sequence_, {tokens_.back()}}}, AttentionForm::absorbed);
    f(distribution(output, 0));
    tokens_.pop_back();
    cache_.truncate(sequence_, static_cast<Index>(tokens_.size()));
  }

 private:
  using D = Decoder<Model<Fp32, Cpu>>;

  std::vector<double> distribution(const D::Output& output, std::int32_t row) {
    std::vector<double> p;
    const auto logits = decoder_.logits(output.h, {row});
    Sampler().distribution(logits.data(), static_cast<Index>(logits.size()), sampling_, tokens_, p);
    return p;
  }

  LatentCache<Cpu, float> cache_;
  D decoder_;
  std::vector<std::int32_t> tokens_;
  SamplingOptions sampling_;
  Index sequence_;
  std::vector<double> start_;
};

// What the second and the third token behind a prompt are together: those that speculation gives.
// (Prefill gives the first.)
std::vector<double> joint_distribution(Model<Fp32, Cpu>& model,
                                       const std::vector<std::int32_t>& prompt,
                                       const SamplingOptions& sampling) {
  std::vector<double> joint(joint_vocab * joint_vocab);
  Conditionals behind(model, prompt, sampling);
  for (Index a = 0; a < joint_vocab; ++a) {
    const double p0 = behind.start()[static_cast<std::size_t>(a)];
    if (p0 == 0) continue;
    behind.behind(a, [&](const std::vector<double>& p1) {
      for (Index b = 0; b < joint_vocab; ++b) {
        const double p01 = p0 * p1[static_cast<std::size_t>(b)];
        if (p01 == 0) continue;
        behind.behind(b, [&](const std::vector<double>& p2) {
          for (Index c = 0; c < joint_vocab; ++c)
            joint[static_cast<std::size_t>(b * joint_vocab + c)] +=
                p01 * p2[static_cast<std::size_t>(c)];
        });
      }
    });
  }
  return joint;
}

// p of the chi-square test of so many sampled pairs.
template <class Rule>
double joint_p(Model<Fp32, Cpu>& model, SamplingOptions sampling, std::uint64_t seed) {
  const std::uint64_t round = 512;
  const auto prompt = noisy_text(6, joint_vocab, 3);
  const auto joint = joint_distribution(model, prompt, sampling);
  std::vector<double> counts(joint.size());
  Generator<Model<Fp32, Cpu>, float, Rule> generator(
      model, {.max_sequences = 128,
              .max_tokens = 128 * 16,
              .block_size = 0,
              .prefill_tokens = 1024,
              .speculate = model.config().num_nextn_predict_layers});
  for (std::uint64_t i = 0; i < samples; i += round) {
    std::vector<Index> ids;
    for (std::uint64_t n = 0; n < round; ++n) {
      sampling.seed = (seed << 32) + i + n;
      ids.push_back(generator.add(request(prompt, 3, sampling)));
    }
    generator.run();
    for (const Index id : ids) {
      const auto tokens = generator.take(id).tokens;
      ++counts[static_cast<std::size_t>(tokens[1] * joint_vocab + tokens[2])];
    }
  }
  const double p = chi_square(counts, joint);
  MESSAGE("p = " << p << ", drafts that stood: " << generator.statistics().rate(0));
  return p;
}

TEST_CASE("Sampled pairs of tokens have the distribution without speculation") {
  const SamplingOptions all = {.temperature = 0.9, .top_k = 11, .top_p = 0.93};
  {
    Trained<Fp32> t(1, joint_vocab, 60);
    for (const std::uint64_t seed : {1, 2, 3})
      CHECK(joint_p<SpeculationRule>(t.model, all, seed) > 0.001);
    CHECK(joint_p<SpeculationRule>(t.model, {.temperature = 1.4}, 4) > 0.001);
    CHECK(joint_p<WrongRule>(t.model, all, 1) < 0.001);
  }
  Trained<Fp32> t(2, joint_vocab, 60);
  CHECK(joint_p<SpeculationRule>(t.model, all, 1) > 0.001);
}
