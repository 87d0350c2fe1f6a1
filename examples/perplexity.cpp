// How well a checkpoint predicts a text: nats a token, perplexity, bits a byte. Run with --help.
#include <unistd.h>

#include "checkpoint_folder.hpp"
#include "text.hpp"

namespace {

using namespace example;

struct Options : CheckpointOptions {
  std::string text;
  Index context = 512, stride = 0, limit = 0;
};

std::string read_file(const std::string& path) {
  const dsv3::MappedFile file(path);
  return {static_cast<const char*>(static_cast<const void*>(file.data())), file.size()};
}

template <class P>
int run(const Options& o, const CheckpointFolder& folder) {
  if (!folder.tokenizer)
    throw std::invalid_argument("'" + folder.path + "' holds no tokenizer.json");
  const std::string text = read_file(o.text);
  std::vector<std::int32_t> tokens = folder.tokenizer->encode(text);
  if (o.limit > 0 && static_cast<Index>(tokens.size()) > o.limit)
    tokens.resize(static_cast<std::size_t>(o.limit));
  const Index n = static_cast<Index>(tokens.size());
  if (n < 2)
    throw std::invalid_argument("'" + o.text + "': tokens (" + std::to_string(n) +
                                ") must be at least 2");
  const std::size_t bytes = folder.tokenizer->decode(std::span(tokens).subspan(1)).size();
  const Index stride = o.stride > 0 ? o.stride : o.context / 2;
  dsv3::Cpu backend(o.thread_count());
  using Model = dsv3::InferenceModel<P, dsv3::Cpu>;
  Model model(backend, folder.config);
  dsv3::load_weights(model, folder.path);
  using T = typename P::activation;
  dsv3::LatentCache<dsv3::Cpu, T> cache(backend, folder.config,
                                        dsv3::CacheOptions::contiguous(1, std::min(o.context, n)));
  dsv3::Decoder<Model> decoder(model, cache);

  // Windows of `context` tokens, `stride` apart; each token is judged once, behind as much as its
  // window holds before it.
  const bool live = ::isatty(STDERR_FILENO);
  const Clock clock;
  double sum = 0;
  Index judged = 0;
  for (Index begin = 0; judged < n - 1; begin += stride) {
    const Index end = std::min(n, begin + o.context);
    const Index sequence = cache.create();
    const auto output =
        decoder.forward({{sequence, {tokens.begin() + begin, tokens.begin() + end - 1}}},
                        dsv3::AttentionForm::expanded);
    std::vector<std::int32_t> labels(tokens.begin() + begin + 1, tokens.begin() + end);
    for (Index t = begin; t < judged; ++t) labels[static_cast<std::size_t>(t - begin)] = -1;
    for (const double log_p : decoder.log_probs(output.h, labels)) sum += log_p;
    judged = end - 1;
    cache.erase(sequence);
    const double share = static_cast<double>(judged) / static_cast<double>(n - 1);
    if (live || end == n)
      std::fprintf(stderr, "%s%3.0f %%  %td of %td tokens  %.3f nats/token  ETA %s%s",
                   live ? "\r\033[K" : "", 100 * share, judged, n - 1,
                   -sum / static_cast<double>(judged),
                   minutes(clock.seconds() * (1 / share - 1)).c_str(), end == n ? "\n" : "");
  }
  const double nats = -sum / static_cast<double>(judged);
  std::printf("tokens         %td of %zu bytes\n", judged, bytes);
  std::printf("nats/token     %.5f\n", nats);
  std::printf("perplexity     %.4f\n", std::exp(nats));
  std::printf("bits/byte      %.5f\n",
              nats * static_cast<double>(judged) / static_cast<double>(bytes) / std::log(2.0));
  std::printf("tokens/s       %.0f\n", static_cast<double>(judged) / clock.seconds());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("How well a checkpoint predicts a text.", "perplexity");
  o.add_to(app);
  app.add_option("text", o.text, "file of text")->required();
  app.add_option("--context", o.context, "tokens of a window")
      ->check(CLI::Range(Index{2}, Index{1} << 24))
      ->capture_default_str();
  app.add_option("--stride", o.stride, "tokens between windows; 0: half a window")
      ->check(CLI::Range(Index{0}, Index{1} << 24))
      ->capture_default_str();
  app.add_option("--limit", o.limit, "tokens of the text to read; 0: all")
      ->check(CLI::Range(Index{0}, Index{1} << 40))
      ->capture_default_str();
  return run_program("perplexity", app, argc, argv, [&] {
    if (o.stride >= o.context)
      throw std::invalid_argument("--stride (" + std::to_string(o.stride) +
                                  ") must be below --context (" + std::to_string(o.context) + ")");
    const CheckpointFolder folder(o.folder);
    return o.with_precision(folder,
                            [&]<class P>(std::type_identity<P>) { return run<P>(o, folder); });
  });
}
