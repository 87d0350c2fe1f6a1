// Generates from a checkpoint folder: streams text, or prints ids where the folder has no
// tokenizer. Run with --help.
#include <dsv3/io/chat_template.hpp>
#include <dsv3/plan.hpp>

#include "checkpoint_folder.hpp"
#include "text.hpp"

namespace {

using namespace example;

struct Options : CheckpointOptions {
  std::string prompt, cache = "auto";
  std::vector<std::int32_t> tokens;
  std::vector<std::string> stop;
  Index max_tokens = 128, samples = 1;
  dsv3::SamplingOptions sampling;
  bool chat = false, no_speculation = false, ignore_eos = false;
};

std::vector<std::int32_t> prompt_of(const Options& o, const CheckpointFolder& folder) {
  if (!o.tokens.empty()) return o.tokens;
  if (!folder.tokenizer)
    throw std::invalid_argument("'" + folder.path +
                                "' holds no tokenizer.json: give the prompt as --tokens");
  if (o.chat) {
    const dsv3::ChatMessage message{"user", o.prompt};
    return dsv3::ChatTemplate(*folder.tokenizer).ids({&message, 1});
  }
  std::vector<std::int32_t> ids;
  if (folder.config.bos_token_id >= 0)
    ids.push_back(static_cast<std::int32_t>(folder.config.bos_token_id));
  const auto text = folder.tokenizer->encode(o.prompt);
  ids.insert(ids.end(), text.begin(), text.end());
  return ids;
}

template <class P, class C>
int generate(const Options& o, const CheckpointFolder& folder) {
  dsv3::Cpu backend(o.thread_count());
  const auto prompt = prompt_of(o, folder);
  dsv3::GeneratorOptions options;
  options.max_sequences = o.samples;
  options.max_tokens = o.samples * (static_cast<Index>(prompt.size()) + o.max_tokens);
  if (!o.no_speculation) options.speculate = folder.config.num_nextn_predict_layers;
  dsv3::GenerationRequest request;
  request.prompt = prompt;
  request.max_tokens = o.max_tokens;
  request.sampling = o.sampling;
  request.stop_strings = o.stop;
  request.ignore_eos = o.ignore_eos;
  const bool text = folder.tokenizer.has_value();
  if (text)
    request.token_text = [&](std::int32_t id) {
      const auto& tokenizer = *folder.tokenizer;  // ids beyond it stand for no text
      return std::string(id < tokenizer.size() ? tokenizer.bytes(id) : "");
    };
  else if (!o.stop.empty())
    throw std::invalid_argument("--stop needs a tokenizer.json in '" + folder.path + "'");

  const Clock loading;
  dsv3::InferenceModel<P, dsv3::Cpu> model(backend, folder.config);
  dsv3::load_weights(model, folder.path);
  const double loaded = loading.seconds();
  dsv3::Generator<decltype(model), C> generator(model, options);

  Index count = 0, prefilled = 0;
  double first = 0;
  const Clock clock;
  request.on_token = [&](const dsv3::GeneratedToken& token) {
    if (count++ == 0) first = clock.seconds();
    if (o.samples > 1) return;
    if (text)
      std::fputs(token.text.c_str(), stdout);
    else
      std::printf("%s%d", count == 1 ? "" : ",", token.token);
    std::fflush(stdout);
  };
  for (Index i = 0; i < o.samples; ++i) {
    generator.add(request);
    prefilled += static_cast<Index>(prompt.size());
    ++request.sampling.seed;
  }
  generator.run();
  const double seconds = clock.seconds();
  for (Index i = 0; i < o.samples && o.samples > 1; ++i) {
    const auto& result = generator.result(i);
    std::printf("--- sample %td\n", i);
    if (text) {
      std::printf("%s\n", result.text.c_str());
    } else {
      for (std::size_t t = 0; t < result.tokens.size(); ++t)
        std::printf("%s%d", t ? "," : "", result.tokens[t]);
      std::printf("\n");
    }
  }
  std::printf("\n");
  std::fflush(stdout);
  const auto& statistics = generator.statistics();
  std::fprintf(stderr, "\nloaded      %s in %.2f s (%s)\n", mib(model.bytes()).c_str(), loaded,
               P::name);
  std::fprintf(stderr, "prompt      %td tokens, the first answer after %.3f s\n", prefilled, first);
  if (count > 1 && seconds > first)
    std::fprintf(stderr, "generated   %td tokens, %.1f tokens/s\n", count,
                 static_cast<double>(count - 1) / (seconds - first));
  if (options.speculate > 0) {
    std::fprintf(
        stderr, "speculation %.2f tokens a pass; drafts that stood:", statistics.tokens_per_pass());
    for (std::size_t d = 0; d < statistics.drafted.size(); ++d)
      std::fprintf(stderr, " %.1f %%", 100 * statistics.rate(d));
    std::fprintf(stderr, "\n");
  }
  std::fprintf(stderr, "cache       %s (%td bytes a token in the main layers)\n",
               mib(generator.cache().bytes()).c_str(),
               dsv3::plan::cache_bytes_per_token<C>(folder.config));
  return 0;
}

template <class P>
int generate_with(const Options& o, const CheckpointFolder& folder) {
  if (o.cache == "fp8") return generate<P, dsv3::e4m3>(o, folder);
  return generate<P, typename P::activation>(o, folder);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Generates from a checkpoint folder of the DeepSeek-V3 family.", "generate");
  o.add_to(app);
  auto* prompt = app.add_option("--prompt", o.prompt, "text to continue");
  app.add_option("--tokens", o.tokens, "prompt as token ids: 1,2,3")
      ->delimiter(',')
      ->excludes(prompt);
  app.add_flag("--chat", o.chat, "the prompt is a user's message to an assistant")->needs(prompt);
  app.add_option("--max-tokens", o.max_tokens, "new tokens, at most")
      ->check(CLI::Range(Index{1}, Index{1} << 30))
      ->capture_default_str();
  app.add_option("--samples", o.samples, "answers, with seeds that follow one another")
      ->check(CLI::Range(Index{1}, Index{1024}))
      ->capture_default_str();
  app.add_option("--temperature", o.sampling.temperature, "0: the most probable token")
      ->capture_default_str();
  app.add_option("--top-k", o.sampling.top_k, "most probable tokens to choose from; 0: all")
      ->capture_default_str();
  app.add_option("--top-p", o.sampling.top_p, "probability that the choice must reach")
      ->capture_default_str();
  app.add_option("--min-p", o.sampling.min_p, "least probability, as a share of the largest")
      ->capture_default_str();
  app.add_option("--repetition-penalty", o.sampling.repetition_penalty, "of tokens seen before")
      ->capture_default_str();
  app.add_option("--seed", o.sampling.seed, "of sampling")->capture_default_str();
  app.add_option("--stop", o.stop, "text before which the answer ends; may be repeated");
  app.add_flag("--ignore-eos", o.ignore_eos, "go on behind the model's end token");
  app.add_flag("--no-speculation", o.no_speculation, "no drafts of MTP, one token a pass");
  app.add_option("--cache", o.cache, "latents in the type of the activations, or as fp8")
      ->check(CLI::IsMember({"auto", "fp8"}))
      ->capture_default_str();
  return run_program("generate", app, argc, argv, [&] {
    if (o.prompt.empty() && o.tokens.empty())
      throw std::invalid_argument("a prompt is needed: --prompt TEXT or --tokens 1,2,3");
    o.sampling.validate();
    const CheckpointFolder folder(o.folder);
    return o.with_precision(
        folder, [&]<class P>(std::type_identity<P>) { return generate_with<P>(o, folder); });
  });
}
