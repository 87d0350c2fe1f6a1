#include <dsv3/backend/cpu.hpp>

#include "infer_fixture.hpp"

using namespace infer;

namespace {

using TheModel = Model<Fp32, Cpu>;

GenerationRequest request(std::vector<std::int32_t> prompt, Index max_tokens,
                          SamplingOptions sampling = {}) {
  GenerationRequest r;
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.sampling = sampling;
  r.ignore_eos = true;
  return r;
}

// The result of one request alone.
GenerationResult alone(TheModel& model, const GenerationRequest& r) {
  Generator generator(model, {.max_sequences = 1, .max_tokens = 200, .block_size = 0});
  const Index id = generator.add(r);
  generator.run();
  return generator.take(id);
}

// Requests of many lengths and all options.
std::vector<GenerationRequest> many_requests() {
  std::vector<GenerationRequest> requests;
  for (std::uint64_t i = 0; i < 9; ++i) {
    SamplingOptions sampling;
    sampling.seed = i;
    if (i % 3) sampling.temperature = 0.9;
    if (i % 4 == 1) sampling.top_k = 7;
    if (i % 4 == 2) sampling.top_p = 0.8;
    if (i % 4 == 3) sampling.min_p = 0.05;
    if (i % 2) sampling.repetition_penalty = 1.2;
    requests.push_back(request(text(static_cast<Index>(1 + i * i), i),
                               static_cast<Index>(3 + i * 5 % 11), sampling));
  }
  return requests;
}

std::string letter(std::int32_t token) {
  return std::string(1, static_cast<char>('a' + token % 26));
}

}  // namespace

TEST_CASE("Greedy generation follows the largest logit of the training form") {
  Cpu cpu(2);
  Fixture<Fp64, Cpu> f(cpu, config());
  auto tokens = text(12);
  const auto generated = generate(f.model, tokens, {.max_tokens = 10, .ignore_eos = true});
  REQUIRE(generated.size() == 10);
  for (const std::int32_t token : generated) {
    const auto logits = f.forward(tokens);
    const auto* last = logits.data() + (tokens.size() - 1) * 43;
    CHECK(token == std::max_element(last, last + 43) - last);
    tokens.push_back(token);
  }
}

TEST_CASE("A sequence has the same tokens and probabilities whatever runs beside it") {
  Cpu cpu(2);
  Fixture<Fp32, Cpu> f(cpu, config());
  const auto requests = many_requests();
  std::vector<GenerationResult> expected;
  for (const auto& r : requests) expected.push_back(alone(f.model, r));
  for (const Index block_size : {Index{0}, Index{5}, Index{64}})
    for (const Index prefill : {Index{4}, Index{512}}) {
      Generator generator(f.model, {.max_sequences = 4,
                                    .max_tokens = 400,
                                    .block_size = block_size,
                                    .prefill_tokens = prefill});
      // Half of them join while others run.
      for (std::size_t i = 0; i < 5; ++i) generator.add(requests[i]);
      for (int round = 0; round < 4; ++round) generator.step();
      for (std::size_t i = 5; i < requests.size(); ++i) generator.add(requests[i]);
      generator.run();
      for (std::size_t i = 0; i < requests.size(); ++i) {
        const auto result = generator.take(static_cast<Index>(i));
        CHECK(result.tokens == expected[i].tokens);
        CHECK(result.log_probabilities == expected[i].log_probabilities);
        CHECK(result.finish == Finish::max_tokens);
      }
      CHECK(generator.cache().free_blocks() == generator.cache().blocks());
    }
}

TEST_CASE("Seeds make sequences different, and repeat them") {
  Cpu cpu(1);
  Fixture<Fp32, Cpu> f(cpu, config());
  const auto sampled = [&](std::uint64_t seed) {
    return alone(f.model, request({1, 2, 3}, 20, {.temperature = 1, .seed = seed})).tokens;
  };
  CHECK(sampled(1) == sampled(1));
  CHECK(sampled(1) != sampled(2));
}

TEST_CASE("log_probabilities are those of the training form") {
  Cpu cpu(1);
  Fixture<Fp64, Cpu> f(cpu, config());
  Generator generator(f.model, {.max_sequences = 1, .max_tokens = 64});
  generator.add(request({4, 8}, 6, {.temperature = 1, .top_k = 5, .seed = 3}));
  generator.run();
  const auto result = generator.take(0);
  std::vector<std::int32_t> tokens = {4, 8}, labels = {8};
  tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
  labels.assign(tokens.begin() + 1, tokens.end());
  tokens.pop_back();
  const Index n = static_cast<Index>(tokens.size());
  const auto expected =
      f.model.log_probs({{tokens.data(), {1, n}}, {labels.data(), {1, n}}, {}, {}});
  for (std::size_t i = 0; i < 6; ++i)
    CHECK(result.log_probabilities[i] == doctest::Approx(expected[i + 1]).epsilon(1e-11));
}

TEST_CASE("A stop token is the last token; eos_token_id is one unless it is ignored") {
  Cpu cpu(1);
  ModelConfig c = config();
  Fixture<Fp32, Cpu> f(cpu, c);
  const auto tokens = alone(f.model, request({1, 2, 3}, 12)).tokens;
  auto r = request({1, 2, 3}, 12);
  r.stop_tokens = {tokens[4]};
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[4]) - tokens.begin();
  const auto stopped = alone(f.model, r);
  CHECK(stopped.finish == Finish::stop_token);
  CHECK(stopped.tokens == part(tokens, 0, first + 1));
  c.eos_token_id = tokens[4];
  Fixture<Fp32, Cpu> g(cpu, c);
  r.stop_tokens.clear();
  CHECK(alone(g.model, r).tokens == tokens);
  r.ignore_eos = false;
  CHECK(alone(g.model, r).tokens == part(tokens, 0, first + 1));
}

TEST_CASE("Text ends before a stop string, and streams no byte that may begin one") {
  StopText stop({"END", "NEVER"});
  bool stopped = false;
  CHECK(stop.add("abcE", stopped) == "abc");
  CHECK(stop.add("N", stopped) == "");
  CHECK(stop.add("dNEVE", stopped) == "ENd");
  CHECK(!stopped);
  CHECK(stop.add("rEND tail", stopped) == "NEVEr");
  CHECK(stopped);
  StopText held({"xyz"});
  CHECK(held.add("..xy", stopped) == "..");
  CHECK(held.rest() == "xy");
  // Four bytes of one character, the first of which come alone.
  StopText characters;
  CHECK(characters.add("a\xF0\x9F", stopped) == "a");
  CHECK(characters.add("\x98", stopped) == "");
  CHECK(characters.add("\x80\xC3", stopped) == "\xF0\x9F\x98\x80");
  CHECK(characters.rest() == "\xC3");
}

TEST_CASE("A stop string ends a sequence; its bytes are not part of the text") {
  Cpu cpu(1);
  Fixture<Fp32, Cpu> f(cpu, config());
  auto r = request({1, 2, 3}, 12);
  r.token_text = letter;
  std::string streamed;
  Index calls = 0;
  r.on_token = [&](const GeneratedToken& t) {
    streamed += t.text;
    ++calls;
    CHECK(t.request == 0);
    CHECK((t.finish == Finish::running) == (calls < 12));
  };
  const auto all = alone(f.model, r);
  CHECK(all.text.size() == 12);
  CHECK(streamed == all.text);
  CHECK(calls == 12);
  const std::string stop = all.text.substr(5, 2);
  r.stop_strings = {"zzzzzz", stop};
  streamed.clear();
  r.on_token = [&](const GeneratedToken& t) { streamed += t.text; };
  const auto result = alone(f.model, r);
  CHECK(result.finish == Finish::stop_string);
  CHECK(result.text == all.text.substr(0, all.text.find(stop)));
  CHECK(streamed == result.text);
}

TEST_CASE("A request that was cancelled ends where it stands, and gives its blocks back") {
  Cpu cpu(1);
  Fixture<Fp32, Cpu> f(cpu, config());
  Generator generator(f.model, {.max_sequences = 1, .max_tokens = 64});
  const Index a = generator.add(request({1}, 30)), b = generator.add(request({2}, 5));
  const Index c = generator.add(request({3}, 5));
  for (int round = 0; round < 4; ++round) generator.step();
  generator.cancel(a);
  generator.cancel(c);  // still waiting
  generator.run();
  CHECK(generator.result(a).finish == Finish::cancelled);
  CHECK(generator.result(a).tokens.size() == 4);
  CHECK(generator.result(b).tokens.size() == 5);
  CHECK(generator.result(c).tokens.empty());
  CHECK(generator.cache().free_blocks() == generator.cache().blocks());
}

TEST_CASE("A request may be cancelled by its neighbour's callback in the round that both run in") {
  Cpu cpu(1);
  Fixture<Fp32, Cpu> f(cpu, config(1));
  for (const Index speculate : {0, 1}) {
    Generator generator(f.model, {.max_sequences = 2, .max_tokens = 64, .speculate = speculate});
    GenerationRequest first = request({1}, 6);
    first.on_token = [&](const GeneratedToken& token) {
      if (generator.result(token.request).tokens.size() == 3) generator.cancel(1);
    };
    const Index a = generator.add(first), b = generator.add(request({2}, 6));
    generator.run();
    CHECK(generator.result(a).tokens.size() == 6);
    CHECK(generator.result(b).finish == Finish::cancelled);
    CHECK(generator.result(b).tokens.size() < 6);
    CHECK(generator.cache().free_blocks() == generator.cache().blocks());
  }
}

TEST_CASE("Requests wait for blocks, and none is left waiting") {
  Cpu cpu(1);
  Fixture<Fp32, Cpu> f(cpu, config());
  // Room for one of these at a time.
  Generator generator(f.model, {.max_sequences = 3, .max_tokens = 24, .block_size = 8});
  for (int i = 0; i < 5; ++i) generator.add(request(text(10), 9));
  generator.run();
  for (Index i = 0; i < 5; ++i) CHECK(generator.result(i).tokens == generator.result(0).tokens);
}

TEST_CASE("Mistakes name what is wrong and both values") {
  Cpu cpu(1);
  Fixture<Fp32, Cpu> f(cpu, config(1));
  const auto options = [&](GeneratorOptions o, const char* message) {
    CHECK_THROWS_WITH_AS(Generator(f.model, o), message, std::invalid_argument);
  };
  options({.max_sequences = 0}, "Generator: one (1) must be at most max_sequences (0)");
  options({.max_sequences = 9, .max_tokens = 8},
          "Generator: max_sequences (9) must be at most max_tokens (8)");
  options({.prefill_tokens = 0}, "Generator: one (1) must be at most prefill_tokens (0)");
  options({.speculate = 2},
          "Generator: speculate (2) must be at most num_nextn_predict_layers (1)");
  Generator generator(f.model, {.max_sequences = 1, .max_tokens = 16, .block_size = 8});
  const auto adds = [&](GenerationRequest r, const char* message) {
    CHECK_THROWS_WITH_AS(generator.add(r), message, std::invalid_argument);
  };
  adds(request({}, 3), "Generator::add: one (1) must be at most tokens of the prompt (0)");
  adds(request({1}, 0), "Generator::add: one (1) must be at most max_tokens of the request (0)");
  adds(request({1, 99}, 3),
       "Generator::add: token 1 of the prompt (99) must be at least 0 and below vocab_size (43)");
  adds(request({1}, 16),
       "Generator::add: blocks of the request (3) must be at most blocks of the cache (2)");
  adds(request({1}, 3, {.temperature = -2}),
       "SamplingOptions: temperature (-2.000000) must be 0, or a positive float");
  auto r = request({1}, 3);
  r.stop_strings = {"x"};
  adds(r, "Generator::add: stop_strings need token_text");
  r.token_text = letter;
  r.stop_strings = {""};
  adds(r, "Generator::add: a stop string must not be empty");
  CHECK_THROWS_WITH_AS(generator.result(0),
                       "Generator: request (0) must be one that was added and not taken",
                       std::invalid_argument);
  const Index id = generator.add(request({1}, 3));
  CHECK_THROWS_WITH_AS(generator.take(id), "Generator::take: request (0) must have ended",
                       std::invalid_argument);
}
