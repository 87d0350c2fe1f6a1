#include <dsv3/backend/cpu.hpp>
#include <dsv3/infer/drafter.hpp>

#include "infer_fixture.hpp"

using namespace infer;

namespace {

using TheModel = Model<Fp32, Cpu>;
constexpr Index depths = 2;

// A sequence behind its prompt, with MTP's entries beside the main model's.
struct Run {
  LatentCache<Cpu, float> cache;
  Decoder<TheModel> decoder;
  Drafter<TheModel, float> drafter;
  std::vector<std::int32_t> tokens;  // certain ones
  Index sequence;

  Run(TheModel& model, const std::vector<std::int32_t>& prompt)
      : cache(model.backend(), model.config(), CacheOptions::paged(64, 1, 8, true)),
        decoder(model, cache),
        drafter(decoder, depths, 1, 64),
        tokens(prompt),
        sequence(cache.create()) {
    pass(tokens, AttentionForm::expanded);
    for (Index k = 1; k <= depths; ++k) draft(k, tokens, AttentionForm::expanded);
  }

  // The main model on what it has not seen of `all`.
  void pass(const std::vector<std::int32_t>& all, AttentionForm form) {
    const Index start = cache.length(sequence);
    const std::vector<CachePart> parts = {{sequence, {all.begin() + start, all.end()}}};
    drafter.keep(parts, {start}, decoder.forward(parts, form));
  }

  // Logits of depth k behind `all`; empty where it had nothing to run.
  std::vector<float> draft(Index k, const std::vector<std::int32_t>& all,
                           AttentionForm form = AttentionForm::absorbed) {
    Decoder<TheModel>::Output output;
    const auto last = drafter.run(k, {{sequence, &all}}, form, output);
    return last[0] < 0 ? std::vector<float>() : decoder.logits(output.h, {last[0]});
  }

  // What both depths say behind the certain tokens and one more.
  std::vector<std::vector<float>> both(std::int32_t more) {
    auto longer = tokens;
    const auto first = draft(1, longer);
    longer.push_back(more);
    return {first, draft(2, longer)};
  }
};

}  // namespace

TEST_CASE("Depth k says what the training form says") {
  Cpu cpu(1);
  Fixture<Fp64, Cpu> f(cpu, config(depths));
  LatentCache<Cpu, double> cache(cpu, f.model.config(), CacheOptions::paged(64, 1, 8, true));
  Decoder<Model<Fp64, Cpu>> decoder(f.model, cache);
  Drafter<Model<Fp64, Cpu>, double> drafter(decoder, depths, 1, 64);
  const auto tokens = text(30);
  const Index s = cache.create();
  // One token a pass: every depth runs one entry when it can.
  Decoder<Model<Fp64, Cpu>>::Output output;
  for (Index t = 0; t + 1 < 30; ++t) {
    const std::vector<CachePart> parts = {{s, {tokens[static_cast<std::size_t>(t)]}}};
    drafter.keep(parts, {t}, decoder.forward(parts, AttentionForm::absorbed));
    const auto known = part(tokens, 0, t + 2);
    for (Index k = 1; k <= depths; ++k) {
      const auto last = drafter.run(k, {{s, &known}}, AttentionForm::absorbed, output);
      if (t + 2 - k <= 0) {
        CHECK(last[0] == -1);
        continue;
      }
      const auto expected = f.model.mtp_logits({{tokens.data(), {1, t + 2}}, {}, {}, {}}, k);
      const auto* row = expected.data() + (t + 1 - k) * 43;
      CHECK(distance(decoder.logits(output.h, {last[0]}), std::vector<double>(row, row + 43)) <
            1e-12);
    }
  }
}

TEST_CASE("Drafts that fell leave no trace") {
  Cpu cpu(1);
  Fixture<Fp32, Cpu> f(cpu, config(depths));
  const auto prompt = text(20);
  for (Index stood = 0; stood <= 2; ++stood) {
    Run drafted(f.model, prompt), plain(f.model, prompt);
    const std::int32_t next = 5;
    const std::vector<std::int32_t> drafts = {7, 9};
    for (Run* run : {&drafted, &plain}) run->tokens.push_back(next);
    auto longer = drafted.tokens;
    for (Index k = 1; k <= depths; ++k) {
      drafted.draft(k, longer);
      longer.push_back(drafts[static_cast<std::size_t>(k - 1)]);
    }
    drafted.pass(longer, AttentionForm::absorbed);  // verifies
    const Index certain = 21 + stood;
    drafted.cache.truncate(drafted.sequence, certain);
    drafted.drafter.truncate(drafted.sequence, certain);
    drafted.tokens = part(longer, 0, certain);
    plain.tokens = drafted.tokens;
    plain.pass(plain.tokens, AttentionForm::absorbed);
    for (Run* run : {&drafted, &plain}) run->tokens.push_back(3);  // the main model's own
    CHECK(drafted.both(11) == plain.both(11));
  }
}
