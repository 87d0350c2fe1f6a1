// Conformance of blocks and of the forms of them that a backend may fuse: EigenCpu, which has none,
// runs the composed form.
#pragma once

#include <dsv3/infer/sample_row.hpp>
#include <dsv3/nn/attention.hpp>
#include <dsv3/nn/embedding.hpp>
#include <dsv3/nn/head.hpp>
#include <dsv3/nn/latent_attention.hpp>
#include <dsv3/nn/packed_e5m6.hpp>
#include <dsv3/nn/projection.hpp>
#include <dsv3/nn/rope.hpp>
#include <dsv3/train/adamw.hpp>

#include "desk.hpp"
#include "nn/fixture.hpp"

namespace conformance {

using dsv3::as_const;
using dsv3::e4m3;
using dsv3::Output;

/// Of whole tensors of T, in the Frobenius norm. Sums of some hundred terms in another order are
/// off by some ten roundings. Values of bf16 are rounded to either neighbour here and there: 2^-8
/// of a value once, 2^-7 where intermediate values are rounded too.
template <class T>
constexpr double of_block = std::is_same_v<T, double>  ? 1e-13
                            : std::is_same_v<T, float> ? 1e-5
                                                       : 0x1p-7;

template <class Subjects>
void conform_within(double tolerance, auto&& work, Index bytes = Index{3} << 20) {
  conform<Subjects>(
      work,
      [&](const Values& ours, const Values& theirs, const Limits&) {
        check_distance(ours, theirs, tolerance);
      },
      bytes);
}

// --- Rows ---

template <class Subjects, class In, class Out, class W>
void rms_norm_agrees() {
  for (const Index tokens : {5, 130})
    for (const Index features : {37, 64, 512})
      for (const Output output : {Output::overwrite, Output::add})
        conform_within<Subjects>(of_block<Out>, [&](auto& desk) -> Results {
          const dsv3::RmsNorm<In, Out, W> norm{1e-3};
          const auto x = desk.template random<In>({tokens, features});
          const auto weight = desk.template random<W>({features});
          const auto dy = desk.template random<Out>({tokens, features});
          const auto y = desk.template empty<Out>({tokens, features});
          const auto dx = desk.template random<In>({tokens, features});
          const auto dweight = desk.template random<dsv3::accum_t<W>>({features});
          norm.forward(desk.backend, {weight}, as_const(x), y);
          norm.backward(desk.backend, {weight}, as_const(x), as_const(dy), dx, output, {dweight},
                        desk.arena);
          return {desk.read("y", y), desk.read("dx", dx), desk.read("dweight", dweight)};
        });
}

template <class Subjects, class T>
void swiglu_agrees() {
  for (const Index features : {37, 256}) {
    const auto work = [&](auto& desk) -> Results {
      const auto a = desk.template random<T>({7, features}, 6);
      const auto b = desk.template random<T>({7, features});
      const auto dh = desk.template random<T>({7, features});
      const auto h = desk.template empty<T>({7, features});
      const auto again = desk.template empty<T>({7, features});
      const auto db = desk.template empty<T>({7, features});
      dsv3::detail::swiglu_forward<T>(desk.backend, a, b, h);
      dsv3::detail::swiglu_backward<T>(desk.backend, a, b, dh, dh, db, again);
      return {desk.read("h", h), desk.read("da", dh), desk.read("db", db),
              desk.read("h again", again)};
    };
    if constexpr (std::is_same_v<T, double>)  // exp is the machine's
      conform_within<Subjects>(of_block<T>, work);
    else
      conform_exactly<Subjects>(work);
  }
}

template <class Subjects, class T>
void rope_agrees() {
  conform_exactly<Subjects>([](auto& desk) -> Results {
    const Index tokens = 5, heads = 3, width = 10, turned = 6;
    const auto x = desk.template random<T>({tokens, heads, width});
    const auto y = desk.template empty<T>({tokens, heads, width});
    const auto dx = desk.template empty<T>({tokens, heads, width});
    const auto table = desk.template random<dsv3::accum_t<T>>({9, 2, turned / 2});
    const auto at = desk.put(std::vector<std::int32_t>{8, 0, 3, 3, 1}, {tokens});
    const dsv3::Rope<T> rope;
    // y's other features are not the block's.
    const auto turn = [&](const auto& view) { return view.cols(width - turned, turned); };
    rope.forward(desk.backend, as_const(x), as_const(table), as_const(at), x);
    rope.forward(desk.backend, as_const(turn(x)), as_const(table), as_const(at), turn(y));
    rope.backward(desk.backend, as_const(turn(x)), as_const(table), as_const(at), turn(dx));
    std::vector<Values> results = {desk.read("x", x)};
    for (Index t = 0; t < tokens; ++t) {
      results.push_back(desk.read("y", turn(y)[t]));
      results.push_back(desk.read("dx", turn(dx)[t]));
    }
    return results;
  });
}

template <class Subjects, class W, class Y>
void embedding_agrees() {
  conform_within<Subjects>(of_block<Y>, [](auto& desk) -> Results {
    const auto weight = desk.template random<W>({11, 37});
    const auto tokens = desk.put(std::vector<std::int32_t>{3, 10, 3, 3, 0, 7, 10}, {7});
    const auto y = desk.template empty<Y>({7, 37});
    const auto dy = desk.template random<Y>({7, 37});
    const auto dweight = desk.template random<dsv3::accum_t<W>>({11, 37});
    const dsv3::Embedding embedding;
    embedding.forward(desk.backend, as_const(weight), as_const(tokens), y);
    embedding.backward(desk.backend, as_const(tokens), as_const(dy), dweight, desk.arena);
    return {desk.read("y", y), desk.read("dweight", dweight)};
  });
}

template <class Subjects, class P>
void head_agrees() {
  using T = typename P::activation;
  conform_within<Subjects>(of_block<T>, [](auto& desk) -> Results {
    const Index tokens = 130, features = 40, vocab = 93;
    const auto weight = desk.template random<dsv3::operand_t<P>>({vocab, features});
    const auto x = desk.template random<T>({tokens, features});
    std::vector<std::int32_t> labels;
    for (std::int32_t t = 0; t < tokens; ++t) labels.push_back(t % 7 == 0 ? -1 : t * t % 93);
    const auto at = desk.put(labels, {tokens});
    const auto nll = desk.template empty<typename P::accumulator>({tokens});
    const auto loss = desk.template empty<typename P::accumulator>({1});
    const auto dx = desk.template empty<T>({tokens, features});
    const auto dweight = desk.template random<typename P::master>({vocab, features});
    dsv3::Head<P>{}.loss_and_gradients(desk.backend, as_const(weight), as_const(x), as_const(at),
                                       0.01, 0.5, nll, loss, dx, dweight, desk.arena);
    return {desk.read("nll", nll), desk.read("loss", loss), desk.read("dx", dx),
            desk.read("dweight", dweight)};
  });
}

// --- Codes: the same bits everywhere ---

template <class Values, class C, class Backend>
void read_codes(Desk<Backend>& desk, const std::string& name, const dsv3::Quantized<C>& q,
                Values& results) {
  results.push_back(desk.read(name + " codes", q.codes));
  results.push_back(desk.read(name + " scales", q.scales));
}

template <class Subjects>
void quantising_agrees() {
  using P = dsv3::Fp8;
  const dsv3::Projection<P> projection;
  for (const Index features : {37, 256, 400})
    for (const auto route : {dsv3::Route::dense, dsv3::Route::dispatch})
      conform_exactly<Subjects>([&](auto& desk) -> Results {
        const Index rows = 150;
        Results results;
        const auto x = desk.template random<bf16>({rows, features}, 300);
        const auto input = projection.input(desk.backend, {}, as_const(x), route, desk.arena);
        read_codes(desk, "rows", input, results);
        const auto offsets = desk.put(std::vector<Index>{0, 1, 1, 130, 150}, {5});
        for (const bool segments : {false, true}) {
          const auto at = segments ? as_const(offsets) : View<const Index, 1>();
          const auto columns = projection.template columns<e4m3>(
              desk.backend, {}, View<const bf16, 2>(x), at, route, desk.arena);
          const auto again = projection.template columns<e4m3>(
              desk.backend, {}, dsv3::Quantized<const e4m3>(input), at, route, desk.arena);
          for (const auto& q : {columns, again}) {
            results.push_back(desk.read("columns", q.codes));
            // Rows of scales that belong to rows of x; the others stay unwritten.
            for (const Index row :
                 segments ? std::vector<Index>{0, 2, 3, 4} : std::vector<Index>{0, 1})
              results.push_back(desk.read("scales of columns", q.scales.rows(row, 1)));
          }
        }
        const auto weight = desk.template random<float>({rows, features});
        const auto blocks =
            dsv3::take_quantized<e4m3>(desk.arena, rows, features, P::tile, P::tile);
        dsv3::quantize_weights(desk.backend, as_const(weight), blocks, projection.rule(route));
        read_codes(desk, "weights", blocks, results);
        const auto packed = dsv3::PackedE5m6::take(desk.arena, rows, features, 128);
        for_each_row(desk.backend, rows, dsv3::detail::PackE5m6Row<bf16>{x, packed});
        results.push_back(desk.read("e5m6", packed.bytes));
        return results;
      });
}

template <class Subjects>
void quantised_swiglu_agrees() {
  using P = dsv3::Fp8;
  for (const Index features : {37, 256})
    conform_exactly<Subjects>([&](auto& desk) -> Results {
      const Index rows = 9;
      const auto a = desk.template random<bf16>({rows, features}, 6);
      const auto b = desk.template random<bf16>({rows, features});
      const auto take = [&] { return dsv3::Projection<P>::take_rows(desk.arena, rows, features); };
      const auto saved_a = take(), saved_b = take(), h = take();
      dsv3::Projection<P>{}.swiglu(desk.backend, {}, as_const(a), as_const(b), saved_a, saved_b, h,
                                   desk.arena);
      Results results;
      read_codes(desk, "a", saved_a, results);
      read_codes(desk, "b", saved_b, results);
      read_codes(desk, "h", h, results);
      return results;
    });
}

/// AdamW's update, where gradients are given: nothing is added up. Weights of codes in their
/// blocks, others in chunks.
template <class Subjects, class Moment>
void adamw_agrees() {
  conform_exactly<Subjects>([](auto& desk) -> Results {
    const Index rows = 150, columns = 200;
    const auto rule = desk.put(
        std::vector<dsv3::AdamW>{{.lr = 1e-2, .correction1 = 0.1, .correction2 = 0.05}}, {1});
    const auto norm = desk.put(std::vector<double>{3, 0.25}, {2});
    const auto gradient = desk.template random<float>({rows, columns});
    Results results;
    const auto finish = [&](const char* name, auto weight, auto m, auto v) {
      results.push_back(desk.read(name, weight));
      results.push_back(desk.read(std::string(name) + " m", m));
      results.push_back(desk.read(std::string(name) + " v", v));
    };
    {
      const auto weight = desk.template random<float>({rows * columns});
      const auto m = desk.template zeros<Moment>({rows * columns});
      const auto v = desk.template zeros<Moment>({rows * columns});
      const auto operand = desk.template empty<bf16>({rows * columns});
      const Index all =
          (rows * columns + dsv3::detail::optimizer_chunk - 1) / dsv3::detail::optimizer_chunk;
      for_each_row(desk.backend, all,
                   dsv3::detail::AdamWRow<float, Moment, bf16>{
                       rule, norm, weight, as_const(gradient.flat()), m, v, operand});
      finish("chunks", weight, m, v);
      results.push_back(desk.read("operand", operand));
    }
    const auto weight = desk.template random<float>({rows, columns});
    const auto m = desk.template zeros<Moment>({rows, columns});
    const auto v = desk.template zeros<Moment>({rows, columns});
    const auto codes = dsv3::take_quantized<e4m3>(desk.arena, rows, columns, 128, 128);
    const Index blocks = dsv3::groups_of(rows, 128) * dsv3::groups_of(columns, 128);
    dsv3::for_each_row_fused(desk.backend, blocks,
                             dsv3::detail::AdamWBlock<float, Moment, e4m3>{
                                 rule, norm, weight, as_const(gradient), m, v, codes, {}});
    finish("blocks", weight, m, v);
    read_codes(desk, "operand", codes, results);
    return results;
  });
}

// --- Attention ---

struct AttentionSizes {
  Index heads, nope, rope, value;
};

template <class Subjects, class T>
void attention_agrees() {
  // Odd sizes; and those of DeepSeek-V3's heads.
  for (const AttentionSizes s : {AttentionSizes{3, 5, 4, 3}, AttentionSizes{2, 128, 64, 128}})
    conform_within<Subjects>(
        of_block<T>,
        [&](auto& desk) -> Results {
          const fixture::Lengths lengths({1, 40, 70});
          const Index tokens = lengths.view().tokens();
          const auto list = [&](const std::vector<std::int32_t>& host) {
            return desk.put(host, {static_cast<Index>(host.size())});
          };
          const dsv3::Sequences sequences{list(lengths.position), list(lengths.begin),
                                          list(lengths.end), list(lengths.first),
                                          list(lengths.sequence)};
          const auto q = desk.template random<T>({tokens, s.heads, s.nope + s.rope});
          const auto kv = desk.template random<T>({tokens, s.heads, s.nope + s.value});
          const auto k_rope = desk.template random<T>({tokens, s.rope});
          const auto d_o = desk.template random<T>({tokens, s.heads, s.value});
          const auto o = desk.template empty<T>({tokens, s.heads, s.value});
          const auto lse = desk.template empty<dsv3::accum_t<T>>({tokens, s.heads});
          const auto dq = desk.template empty<T>({tokens, s.heads, s.nope + s.rope});
          const auto dkv = desk.template empty<T>({tokens, s.heads, s.nope + s.value});
          const auto dk_rope = desk.template empty<T>({tokens, s.rope});
          const dsv3::Attention<T> attention{.scale = 0.3};
          attention.forward(desk.backend, q, kv, k_rope, sequences, o, lse, desk.arena);
          attention.backward(desk.backend, q, kv, k_rope, sequences, o, lse, d_o, dq, dkv, dk_rope,
                             desk.arena);
          return {desk.read("o", o), desk.read("lse", lse), desk.read("dq", dq),
                  desk.read("dkv", dkv), desk.read("dk_rope", dk_rope)};
        },
        Index{8} << 20);
}

template <class Subjects, class T, class C>
void latent_attention_agrees() {
  struct Sizes {
    Index heads, latent, nope, rope;
  };
  for (const Sizes s : {Sizes{3, 37, 5, 6}, Sizes{16, 512, 128, 64}})
    conform_within<Subjects>(
        of_block<T>,
        [&](auto& desk) -> Results {
          using Element = dsv3::CacheElement<C>;
          // Three sequences of 5, 70 and 131 entries in blocks of 16 in no order; the last tokens
          // ask.
          const Index block = 16, most = 9, all = 15;
          std::vector<std::int32_t> blocks(3 * most, 0), part, position;
          std::int32_t next = all;
          const std::int32_t entries[] = {5, 70, 131}, asking[] = {1, 3, 2};
          for (std::int32_t i = 0; i < 3; ++i) {
            for (std::int32_t b = 0; b * block < entries[i]; ++b)
              blocks[static_cast<std::size_t>(i * most + b)] = --next;
            for (std::int32_t t = 0; t < asking[i]; ++t) {
              part.push_back(i);
              position.push_back(entries[i] - asking[i] + t);
            }
          }
          const Index tokens = static_cast<Index>(part.size()), slots = all * block;
          dsv3::CacheTable table;
          table.blocks = desk.put(blocks, {3, most});
          table.part = desk.put(part, {tokens});
          table.position = desk.put(position, {tokens});
          table.block_size = block;
          table.keys = 131;
          dsv3::CachePages<C> pages;
          pages.latent = desk.template random<C>({slots, s.latent}, Element::quantized ? 300 : 1);
          if constexpr (Element::quantized)
            pages.scales = desk.template random<float>({slots, Element::scales(s.latent)}, 0.003);
          pages.rope = desk.template random<typename Element::Rope>({slots, s.rope});
          const auto q_latent = desk.template random<T>({tokens, s.heads, s.latent});
          const auto q = desk.template random<T>({tokens, s.heads, s.nope + s.rope});
          const auto o = desk.template empty<T>({tokens, s.heads, s.latent});
          dsv3::LatentAttention<T, C>{.scale = 0.1}.forward(desk.backend, q_latent, q, pages, table,
                                                            o, desk.arena);
          return {desk.read("o", o)};
        },
        Index{8} << 20);
}

// --- Sampling ---

template <class Subjects, class A>
void sampling_agrees() {
  const auto work = [](auto& desk) -> Results {
    const Index V = 1000;
    const dsv3::SamplingOptions all[] = {
        {},
        {.temperature = 1},
        {.repetition_penalty = 1.5, .temperature = 0.7},
        {.temperature = 1, .top_k = 1},
        {.temperature = 1, .top_k = 40},
        {.temperature = 2, .top_p = 0.8},
        {.temperature = 1.5, .top_k = 100, .top_p = 0.5, .min_p = 0.1}};
    std::vector<dsv3::detail::SampleRule> rules;
    for (const auto& options : all)
      for (const double u : {0.01, 0.37, 0.98}) {
        rules.emplace_back(options, u);
        rules.back().seen = 334;
      }
    const Index rows = static_cast<Index>(rules.size());
    // Every other row of whole numbers: with ties, of which the first ids count.
    const dsv3::Philox philox(4, 1);
    std::vector<A> numbers;
    for (Index i = 0; i < rows * V; ++i) {
      const A x = A(5 * (2 * dsv3::uniform(philox(static_cast<std::uint64_t>(i)).word[0]) - 1));
      numbers.push_back(i / V % 2 ? x : std::round(x));
    }
    const auto logits = desk.put(numbers, {rows, V});
    std::vector<std::int32_t> third;
    for (std::int32_t i = 0; i < V; i += 3) third.push_back(i);
    const auto seen = desk.put(third, {static_cast<Index>(third.size())});
    const auto p = desk.template empty<double>({rows, V});
    const auto chosen = desk.template empty<dsv3::detail::SampledRow>({rows});
    dsv3::for_each_row_fused(
        desk.backend, rows,
        dsv3::detail::SampleRow<A>{logits, desk.put(rules, {rows}), seen, p, chosen});
    std::vector<dsv3::detail::SampledRow> host(rules.size());
    copy_to_host(desk.backend, host.data(), chosen.data,
                 rows * static_cast<Index>(sizeof(dsv3::detail::SampledRow)));
    Results results = {{"tokens", {}}, {"log probabilities", {}}, desk.read("p", p)};
    for (const auto& row : host) {
      results[0].of.push_back(row.token);
      results[1].of.push_back(row.log_probability);
    }
    return results;
  };
  conform<Subjects>(work, [](const Values& ours, const Values& theirs, const Limits&) {
    if (ours.name == "tokens") return check_equal(ours, theirs);
    check_distance(ours, theirs, 1e-13);  // 1000 terms below 1 in another order
  });
}

}  // namespace conformance
