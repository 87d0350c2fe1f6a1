// Generator: many sequences at once, joining and leaving, with or without speculation.
#pragma once

#include <deque>
#include <dsv3/infer/drafter.hpp>
#include <dsv3/infer/generator_options.hpp>
#include <dsv3/infer/next_tokens.hpp>
#include <dsv3/infer/request.hpp>
#include <dsv3/infer/speculation.hpp>
#include <memory>
#include <optional>

namespace dsv3 {

/// Generates from requests. Each step() is one round: prompts first, then one pass that gives every
/// running sequence at least one token.
///
/// A sequence's tokens and log probabilities depend on its request and on `speculate`, not on its
/// neighbours, nor on when it joined: bit for bit on a backend that fixes the order of its sums.
/// With speculation, greedy tokens are those without it, and sampled ones have the same
/// distribution; Rule decides (SpeculationRule).
///
/// Model    as Decoder; C is the cache's element.
/// Errors   std::invalid_argument naming what and both values, before anything changes.
/// Source   DeepSeek-V3 section 3.4; spec 4.5 and 6.6.
template <class Model, class C = typename Model::Precision::activation,
          class Rule = SpeculationRule>
class Generator {
 public:
  using D = Decoder<Model, C>;
  using Cache = typename D::Cache;
  using A = typename D::A;

  Generator(Model& model, const GeneratorOptions& options)
      : options_((options.validate(model.config()), options)),
        cache_(model.backend(), model.config(), options_.cache()),
        decoder_(model, cache_),
        next_tokens_(decoder_),
        statistics_{std::vector<Index>(static_cast<std::size_t>(options.speculate)),
                    std::vector<Index>(static_cast<std::size_t>(options.speculate)), 0, 0} {
    if (options_.speculate)
      drafter_ = std::make_unique<Drafter<Model, C>>(
          decoder_, options_.speculate, options_.max_sequences, options_.prefill_tokens);
  }
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  const Cache& cache() const { return cache_; }
  const AcceptanceStatistics& statistics() const { return statistics_; }
  const GeneratorOptions& options() const { return options_; }
  /// Blocks that a request takes at most, of those that the cache has.
  Index blocks_for(const GenerationRequest& request) const {
    return cache_.blocks_for(static_cast<Index>(request.prompt.size()) + request.max_tokens);
  }

  /// Queues a request: its number, counting from 0.
  Index add(GenerationRequest request) {
    request.validate(model().config().vocab_size);
    check_at_most("Generator::add", "blocks of the request", blocks_for(request),
                  "blocks of the cache", options_.block_size == 0 ? 1 : cache_.blocks());
    const Index id = static_cast<Index>(sequences_.size());
    auto s = std::make_unique<Running>();
    s->tokens = request.prompt;
    s->stop_text = StopText(request.stop_strings);
    s->request = std::move(request);
    sequences_.push_back(std::move(s));
    waiting_.push_back(id);
    return id;
  }

  /// Ends a request where it stands.
  void cancel(Index id) {
    Running& s = at(id);
    if (s.result.finish != Finish::running) return;
    const auto queued = std::find(waiting_.begin(), waiting_.end(), id);
    s.result.finish = Finish::cancelled;
    if (queued != waiting_.end())
      waiting_.erase(queued);
    else
      leave(id);
  }

  /// One round. Returns whether a request is still running or waiting.
  bool step() {
    admit();
    if (!prefill()) decode();
    return !running_.empty() || !waiting_.empty();
  }

  /// Rounds until nothing is left to do.
  void run() {
    while (step()) {
    }
  }

  const GenerationResult& result(Index id) const { return at(id).result; }

  /// Forgets a request that has ended, and returns its result.
  GenerationResult take(Index id) {
    Running& s = at(id);
    if (s.result.finish == Finish::running)
      throw std::invalid_argument("Generator::take: request (" + std::to_string(id) +
                                  ") must have ended");
    GenerationResult result = std::move(s.result);
    sequences_[static_cast<std::size_t>(id)].reset();
    return result;
  }

 private:
  struct Running {
    GenerationRequest request;
    GenerationResult result;
    std::vector<std::int32_t> tokens;  // prompt, then what was generated; while drafting, drafts
    StopText stop_text;
    Index sequence = -1;  // of the cache
    std::vector<std::vector<double>> draft_distributions;
  };

  Running& at(Index id) const {
    if (id < 0 || id >= static_cast<Index>(sequences_.size()) ||
        !sequences_[static_cast<std::size_t>(id)])
      throw std::invalid_argument("Generator: request (" + std::to_string(id) +
                                  ") must be one that was added and not taken");
    return *sequences_[static_cast<std::size_t>(id)];
  }

  // Not so where on_token of a neighbour has just cancelled or taken it.
  bool is_running(Index id) const {
    const auto& s = sequences_[static_cast<std::size_t>(id)];
    return s && s->result.finish == Finish::running;
  }

  Model& model() const { return decoder_.model(); }

  // Lets requests in, in their order, while there are places, and blocks for all that they may ask.
  void admit() {
    while (!waiting_.empty() && static_cast<Index>(running_.size()) < options_.max_sequences) {
      Running& s = at(waiting_.front());
      if (promised_ + blocks_for(s.request) > cache_.blocks()) return;
      promised_ += blocks_for(s.request);
      s.sequence = cache_.create();
      running_.push_back(waiting_.front());
      waiting_.pop_front();
    }
  }

  void leave(Index id) {
    Running& s = at(id);
    cache_.erase(s.sequence);
    promised_ -= blocks_for(s.request);
    running_.erase(std::find(running_.begin(), running_.end(), id));
  }

  // One pass over the next tokens of prompts, where there are any: returns whether there were.
  bool prefill() {
    std::vector<CachePart> parts;
    std::vector<Index> starts, ids;
    Index room = options_.prefill_tokens;
    for (const Index id : running_) {
      const Running& s = at(id);
      const Index done = cache_.length(s.sequence),
                  size = static_cast<Index>(s.request.prompt.size());
      const Index count = std::min(room, size - done);
      if (count <= 0) continue;
      parts.push_back({s.sequence, {s.tokens.begin() + done, s.tokens.begin() + done + count}});
      starts.push_back(done);
      ids.push_back(id);
      room -= count;
    }
    if (parts.empty()) return false;
    const auto output = decoder_.forward(parts, AttentionForm::expanded);
    if (drafter_) {
      drafter_->keep(parts, starts, output);
      std::vector<typename Drafter<Model, C>::Sequence> tokens;
      for (const Index id : ids) tokens.push_back({at(id).sequence, &at(id).tokens});
      typename D::Output ignored;
      for (Index k = 1; k <= options_.speculate; ++k)
        drafter_->run(k, tokens, AttentionForm::expanded, ignored);
    }
    std::vector<Index> ready;  // whose prompts end in this pass
    std::vector<std::int32_t> rows;
    std::int32_t row = -1;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      row += static_cast<std::int32_t>(parts[i].count());
      if (starts[i] + parts[i].count() < static_cast<Index>(at(ids[i]).request.prompt.size()))
        continue;
      ready.push_back(ids[i]);
      rows.push_back(row);
    }
    if (ready.empty()) return true;
    sample(ready, output.h, rows);
    return true;
  }

  // One pass that gives each sequence its next tokens.
  void decode() {
    if (running_.empty()) return;
    const std::vector<Index> ids = running_;
    const std::vector<Index> drafts = drafter_ ? draft(ids) : std::vector<Index>(ids.size(), 0);
    std::vector<CachePart> parts;
    std::vector<Index> starts;
    std::vector<std::int32_t> rows;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const Running& s = at(ids[i]);
      starts.push_back(cache_.length(s.sequence));
      parts.push_back({s.sequence, {s.tokens.begin() + starts[i], s.tokens.end()}});
      for (Index t = 0; t < parts[i].count(); ++t)
        rows.push_back(static_cast<std::int32_t>(rows.size()));
    }
    const auto output = decoder_.forward(parts, AttentionForm::absorbed);
    if (drafter_) drafter_->keep(parts, starts, output);
    if (!drafter_) {
      statistics_.passes += static_cast<Index>(ids.size());
      statistics_.tokens += static_cast<Index>(ids.size());
      sample(ids, output.h, rows);
      return;
    }
    const auto logits = decoder_.logits(output.h, rows);
    std::size_t first = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (is_running(ids[i])) {
        ++statistics_.passes;
        verify(ids[i], drafts[i], logits, first);
      }
      first += static_cast<std::size_t>(parts[i].count());
    }
  }

  // Appends drafts to the tokens of each sequence: their numbers.
  std::vector<Index> draft(const std::vector<Index>& ids) {
    std::vector<Index> counts(ids.size(), 0);
    for (Index k = 1; k <= options_.speculate; ++k) {
      std::vector<typename Drafter<Model, C>::Sequence> sequences;
      std::vector<std::size_t> which;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        Running& s = at(ids[i]);
        if (k == 1) s.draft_distributions.clear();
        // The pass that verifies gives one token more than drafts that stand.
        if (left(s) - counts[i] < 2) continue;
        sequences.push_back({s.sequence, &s.tokens});
        which.push_back(i);
      }
      if (sequences.empty()) break;
      typename D::Output output;
      const auto last = drafter_->run(k, sequences, AttentionForm::absorbed, output);
      std::vector<std::int32_t> rows;
      for (const std::int32_t row : last)
        if (row >= 0) rows.push_back(row);
      if (rows.empty()) continue;
      const auto logits = decoder_.logits(output.h, rows);
      std::size_t next = 0;
      for (std::size_t j = 0; j < which.size(); ++j) {
        if (last[j] < 0) continue;
        Running& s = at(ids[which[j]]);
        auto& q = s.draft_distributions.emplace_back();
        sampler_.distribution(logits_at(logits, next++), vocab(), s.request.sampling, s.tokens, q);
        s.tokens.push_back(Sampler::draw(q, random(s, "draft")));
        ++counts[which[j]];
      }
    }
    return counts;
  }

  // Keeps the drafts that stand, and one token of the main model's own.
  void verify(Index id, Index drafts, const std::vector<A>& logits, std::size_t row) {
    Running& s = at(id);
    const std::vector<std::int32_t> drafted(s.tokens.end() - drafts, s.tokens.end());
    s.tokens.resize(s.tokens.size() - static_cast<std::size_t>(drafts));
    const Index certain = static_cast<Index>(s.tokens.size());
    Index stand = 0;
    for (; stand < drafts; ++stand) {
      const auto depth = static_cast<std::size_t>(stand);
      const A* z = logits_at(logits, row + depth);
      sampler_.distribution(z, vocab(), s.request.sampling, s.tokens, probabilities_);
      const auto verdict = Rule{}(probabilities_, s.draft_distributions[depth], drafted[depth],
                                  random(s, "accept"), random(s, "residual"));
      ++statistics_.drafted[depth];
      statistics_.accepted[depth] += verdict.accepted;
      ++statistics_.tokens;
      const bool ended = append(id, {verdict.token, log_probability(z, vocab(), verdict.token)});
      if (!verdict.accepted || ended) break;
    }
    if (stand == drafts && s.result.finish == Finish::running) {
      ++statistics_.tokens;
      sample(id, logits_at(logits, row + static_cast<std::size_t>(drafts)));
    }
    if (s.result.finish != Finish::running) return;
    cache_.truncate(s.sequence, certain + stand);
    if (drafter_) drafter_->truncate(s.sequence, certain + stand);
  }

  // One token for each request, from a row of h.
  void sample(const std::vector<Index>& ids, View<const typename D::T, 2> h,
              const std::vector<std::int32_t>& rows) {
    std::vector<Draw> draws;
    for (const Index id : ids) {
      const Running& s = at(id);
      draws.push_back({&s.request.sampling, &s.tokens, random(s, "token")});
    }
    const auto choices = next_tokens_(h, rows, draws);
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (is_running(ids[i])) append(ids[i], choices[i]);
  }
  void sample(Index id, const A* logits) {
    Running& s = at(id);
    sampler_.distribution(logits, vocab(), s.request.sampling, s.tokens, probabilities_);
    const std::int32_t token = Sampler::draw(probabilities_, random(s, "token"));
    append(id, {token, log_probability(logits, vocab(), token)});
  }

  // Adds a token that is certain: returns whether it is the last.
  bool append(Index id, const Choice& choice) {
    Running& s = at(id);
    const std::int32_t token = choice.token;
    GenerationResult& result = s.result;
    s.tokens.push_back(token);
    result.tokens.push_back(token);
    result.log_probabilities.push_back(choice.log_probability);
    std::string text;
    const auto& stops = s.request.stop_tokens;
    const bool eos = !s.request.ignore_eos && token == model().config().eos_token_id;
    if (eos || std::find(stops.begin(), stops.end(), token) != stops.end()) {
      result.finish = Finish::stop_token;
    } else {
      bool stopped = false;
      if (s.request.token_text) text = s.stop_text.add(s.request.token_text(token), stopped);
      if (stopped)
        result.finish = Finish::stop_string;
      else if (left(s) == 0)
        result.finish = Finish::max_tokens;
    }
    const bool ended = result.finish != Finish::running;
    if (ended) text += s.stop_text.rest();
    result.text += text;
    if (s.request.on_token)
      s.request.on_token({id, token, result.log_probabilities.back(), text, result.finish});
    if (ended) leave(id);
    return ended;
  }

  // Tokens that a request may still have.
  static Index left(const Running& s) {
    return s.request.max_tokens - static_cast<Index>(s.result.tokens.size());
  }

  Index vocab() const { return model().config().vocab_size; }

  const A* logits_at(const std::vector<A>& logits, std::size_t row) const {
    return logits.data() + row * static_cast<std::size_t>(vocab());
  }

  // Of the token that comes next.
  static double random(const Running& s, std::string_view stream) {
    return Sampler::random(s.request.sampling.seed, stream, static_cast<Index>(s.tokens.size()));
  }

  GeneratorOptions options_;
  Cache cache_;
  D decoder_;
  NextTokens<D> next_tokens_;
  std::unique_ptr<Drafter<Model, C>> drafter_;
  Sampler sampler_;
  std::vector<double> probabilities_;
  std::vector<std::unique_ptr<Running>> sequences_;  // by request
  std::deque<Index> waiting_;
  std::vector<Index> running_;
  Index promised_ = 0;  // blocks of running sequences
  AcceptanceStatistics statistics_;
};

}  // namespace dsv3
