// NextTokens: from what the head reads to the tokens that follow.
#pragma once

#include <algorithm>
#include <bit>
#include <dsv3/infer/decoder.hpp>
#include <dsv3/infer/sample_row.hpp>

namespace dsv3 {

/// What decides the token that follows one row.
struct Draw {
  const SamplingOptions* options;
  const std::vector<std::int32_t>* history;  ///< every token of the sequence so far
  double u;                                  ///< a random number in [0, 1)
};

/// Chooses tokens from rows of a decoder's output. A backend with a fused SampleRow chooses where
/// the logits are, and only the choices come to the host; else Sampler chooses from logits there.
template <class D>
class NextTokens {
 public:
  using T = typename D::T;
  using A = typename D::A;
  using P = typename D::P;

  explicit NextTokens(D& decoder) : decoder_(&decoder) {}

  /// The tokens that follow some rows of h: returns [rows].
  /// Errors   as Sampler::distribution.
  std::vector<Choice> operator()(View<const T, 2> h, const std::vector<std::int32_t>& rows,
                                 const std::vector<Draw>& draws) {
    check_equal("NextTokens", "draws", static_cast<Index>(draws.size()), "rows",
                static_cast<Index>(rows.size()));
    if constexpr (chooses_there)
      return on_backend(h, rows, draws);
    else
      return on_host(h, rows, draws);
  }

 private:
  // Not written where it is asked: nvcc 13.0 would take a call of backend() inside for invalid when
  // it compiles for the device, and for valid on the host.
  static constexpr bool chooses_there =
      requires(typename D::Backend & b, const detail::SampleRow<A>& row) {
    fused_rows(b, Index{}, row);
  };

  auto& backend() const { return decoder_->model().backend(); }
  Index vocab() const { return decoder_->model().config().vocab_size; }

  std::vector<Choice> on_host(View<const T, 2> h, const std::vector<std::int32_t>& rows,
                              const std::vector<Draw>& draws) {
    const std::vector<A> logits = decoder_->logits(h, rows);
    const A* z = logits.data();
    std::vector<Choice> choices;
    for (const Draw& draw : draws) {
      sampler_.distribution(z, vocab(), *draw.options, *draw.history, probabilities_);
      const std::int32_t token = Sampler::draw(probabilities_, draw.u);
      choices.push_back({token, log_probability(z, vocab(), token)});
      z += vocab();
    }
    return choices;
  }

  std::vector<Choice> on_backend(View<const T, 2> h, const std::vector<std::int32_t>& rows,
                                 const std::vector<Draw>& draws) {
    constexpr Index at_once = 64;  // rows whose probabilities are held: 8 vocab_size bytes each
    const Index most = Head<P>::chunk_tokens(vocab(), logits_at_once(backend()));
    std::vector<std::int32_t> seen;
    const std::vector<detail::SampleRule> rules = rules_of(draws, seen);
    // The memory that decoding works in grows seldom, and recorded passes go when it does.
    if (!seen.empty()) seen.resize(std::bit_ceil(seen.size()));
    std::vector<detail::SampledRow> sampled(rows.size());
    const auto take = [&](Arena& arena, Index each) {
      return std::tuple(arena.take<detail::SampleRule>({each}),
                        PassLayout::upload(backend(), seen, arena),
                        arena.take<double>({each < at_once ? each : at_once, vocab()}),
                        arena.take<detail::SampledRow>({each}));
    };
    decoder_->for_each_logits(
        h, rows, most, take, [&](Index first, View<A, 2> logits, const auto& taken) {
          const auto& [rule, tokens, p, chosen] = taken;
          const Index count = logits.extent(0);
          copy_to_backend(backend(), rule.data, rules.data() + first,
                          count * static_cast<Index>(sizeof(detail::SampleRule)));
          for (Index i = 0; i < count; i += at_once) {
            const Index n = count - i < at_once ? count - i : at_once;
            fused_rows(backend(), n,
                       detail::SampleRow<A>{logits.rows(i, n), rule.rows(i, n), tokens,
                                            p.rows(0, n), chosen.rows(i, n)});
          }
          copy_to_host(backend(), sampled.data() + first, chosen.data,
                       count * static_cast<Index>(sizeof(detail::SampledRow)));
        });
    std::vector<Choice> choices;
    for (const detail::SampledRow& row : sampled) {
      Sampler::require_finite(row.first_nan, row.largest);
      choices.push_back({row.token, row.log_probability});
    }
    return choices;
  }

  // The rules, and in `seen` the tokens that each penalises.
  static std::vector<detail::SampleRule> rules_of(const std::vector<Draw>& draws,
                                                  std::vector<std::int32_t>& seen) {
    std::vector<detail::SampleRule> rules;
    for (const Draw& draw : draws) {
      detail::SampleRule& rule = rules.emplace_back(*draw.options, draw.u);
      if (rule.repetition_penalty == 1) continue;
      rule.first_seen = static_cast<Index>(seen.size());
      seen.insert(seen.end(), draw.history->begin(), draw.history->end());
      const auto begin = seen.begin() + rule.first_seen;
      std::sort(begin, seen.end());
      seen.erase(std::unique(begin, seen.end()), seen.end());
      rule.seen = static_cast<Index>(seen.size()) - rule.first_seen;
    }
    return rules;
  }

  D* decoder_;
  Sampler sampler_;
  std::vector<double> probabilities_;
};

}  // namespace dsv3
