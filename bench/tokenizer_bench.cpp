// The tokenizer on one thread, in bytes of text a second, beside what bounds it: cutting the text
// into words without encoding them, and copying the bytes.
//
//     DSV3_TOKENIZER=tokenizer.json DSV3_TOKENIZER_TEXT=text build/bench/tokenizer_bench
//
// Without these: the small tokenizer of the tests, and a text made of that file.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <dsv3/io/stream_decoder.hpp>
#include <fstream>
#include <iterator>

namespace {

using namespace dsv3;

std::string from_environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

std::string tokenizer_path() {
  return from_environment("DSV3_TOKENIZER", DSV3_GOLDEN "/tokenizer/tokenizer.json");
}

// The first megabyte.
const std::string& text() {
  static const std::string first = [] {
    std::ifstream in(
        from_environment("DSV3_TOKENIZER_TEXT", DSV3_GOLDEN "/tokenizer/cases_deepseek_v3.json"),
        std::ios::binary);
    std::string file{std::istreambuf_iterator<char>(in), {}};
    if (file.empty()) throw std::runtime_error("tokenizer_bench: no text");
    std::string text;
    while (text.size() < 1'000'000) text += file;
    text.resize(1'000'000);
    while (detail::first_malformed(text) != text.npos) text.pop_back();
    return text;
  }();
  return first;
}

const Tokenizer& tokenizer() {
  static const Tokenizer tokenizer(tokenizer_path());
  return tokenizer;
}

void count(benchmark::State& state) {
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text().size()));
}

void encode(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer().encode(text()));
  count(state);
}

// Texts too short for words to be remembered: what a text without repetition costs.
void encode_in_short_texts(benchmark::State& state) {
  for (auto _ : state)
    for (std::size_t at = 0; at < text().size();) {
      std::size_t end = std::min(at + 4000, text().size());
      while (end < text().size() && (static_cast<unsigned char>(text()[end]) & 0xC0u) == 0x80u)
        --end;
      benchmark::DoNotOptimize(tokenizer().encode(std::string_view(text()).substr(at, end - at)));
      at = end;
    }
  count(state);
}

// The floor of encoding: DeepSeek-V3's expressions alone.
void cut_into_words(benchmark::State& state) {
  const detail::PreTokenizer words(
      {R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
       R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
       R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"});
  for (auto _ : state) {
    detail::ExpressionSearch search(10'000'000);
    std::size_t n = 0;
    words.split(search, text(), [&](std::string_view) { ++n; });
    benchmark::DoNotOptimize(n);
  }
  count(state);
}

void decode(benchmark::State& state) {
  const auto ids = tokenizer().encode(text());
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer().decode(ids));
  count(state);
}

void decode_as_stream(benchmark::State& state) {
  const auto ids = tokenizer().encode(text());
  for (auto _ : state) {
    StreamDecoder stream(tokenizer());
    for (const std::int32_t id : ids) benchmark::DoNotOptimize(stream.push(id));
  }
  count(state);
}

// The floor of decoding.
void copy(benchmark::State& state) {
  std::string to(text().size(), ' ');
  for (auto _ : state) {
    std::memcpy(to.data(), text().data(), to.size());
    benchmark::ClobberMemory();
  }
  count(state);
}

void load(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer(tokenizer_path()).size());
}

BENCHMARK(encode)->Unit(benchmark::kMillisecond);
BENCHMARK(encode_in_short_texts)->Unit(benchmark::kMillisecond);
BENCHMARK(cut_into_words)->Unit(benchmark::kMillisecond);
BENCHMARK(decode)->Unit(benchmark::kMillisecond);
BENCHMARK(decode_as_stream)->Unit(benchmark::kMillisecond);
BENCHMARK(copy)->Unit(benchmark::kMillisecond);
BENCHMARK(load)->Unit(benchmark::kMillisecond);

}  // namespace
