#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/batch.hpp>
#include <stdexcept>

#include "model_fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

using List = std::vector<std::int32_t>;

BatchLayout layout_of(const Text& text, Index depth) {
  BatchLayout layout;
  layout.assign(text.batch(), tiny_config(depth));
  return layout;
}

// Two rows of three tokens: 1 2 3 and 4 5 6, each label ten above its token's.
Text two_rows() { return {2, 3, {1, 2, 3, 4, 5, 6}, {11, 12, 13, 14, 15, 16}}; }

}  // namespace

TEST_CASE("BatchLayout: each row is a sequence; level k pairs hidden state i with token i + k") {
  const BatchLayout layout = layout_of(two_rows(), 2);
  REQUIRE(layout.levels.size() == 3);
  CHECK(layout.sequences == 2);
  CHECK(layout.targets == 6);
  CHECK(layout.source == List{0, 1, 2, 3, 4, 5});
  const auto& main = layout.levels[0];
  CHECK(main.row.empty());
  CHECK(main.token == List{1, 2, 3, 4, 5, 6});
  CHECK(main.label == List{11, 12, 13, 14, 15, 16});
  CHECK(main.position == List{0, 1, 2, 0, 1, 2});
  CHECK(main.begin == List{0, 0, 0, 3, 3, 3});
  CHECK(main.end == List{3, 3, 3, 6, 6, 6});
  CHECK(main.sequence == List{0, 0, 0, 1, 1, 1});
  CHECK(main.first == List{0, 3, 6});
  const auto& one = layout.levels[1];
  CHECK(one.row == List{0, 1, 3, 4});  // hidden states 0 and 1 of each row
  CHECK(one.token == List{2, 3, 5, 6});
  CHECK(one.label == List{12, 13, 15, 16});
  CHECK(one.position == List{0, 1, 0, 1});
  CHECK(one.begin == List{0, 0, 2, 2});
  CHECK(one.end == List{2, 2, 4, 4});
  CHECK(one.first == List{0, 2, 4});
  const auto& two = layout.levels[2];
  CHECK(two.row == List{0, 2});  // of level 1
  CHECK(two.token == List{3, 6});
  CHECK(two.label == List{13, 16});
  CHECK(two.first == List{0, 1, 2});
  CHECK(layout.tokens(2) == 2);
}

TEST_CASE("BatchLayout drops padding wherever it stands, and keeps positions") {
  Text text = two_rows();
  text.mask = {0, 1, 1, 1, 0, 1};
  const BatchLayout layout = layout_of(text, 1);
  CHECK(layout.source == List{1, 2, 3, 5});
  CHECK(layout.targets == 4);
  const auto& main = layout.levels[0];
  CHECK(main.token == List{2, 3, 4, 6});
  CHECK(main.position == List{1, 2, 0, 2});
  CHECK(main.first == List{0, 2, 4});
  CHECK(layout.levels[1].token == List{3, 6});
  CHECK(layout.levels[1].row == List{0, 2});
  CHECK(layout.levels[1].label == List{13, 16});
}

TEST_CASE("BatchLayout: a row of nothing but padding is no sequence") {
  Text text = two_rows();
  text.mask = {0, 0, 0, 1, 1, 1};
  const BatchLayout layout = layout_of(text, 1);
  CHECK(layout.sequences == 1);
  CHECK(layout.levels[0].first == List{0, 3});
  CHECK(layout.levels[0].sequence == List{0, 0, 0});
  text.mask.assign(6, 0);
  const BatchLayout none = layout_of(text, 1);
  CHECK(none.sequences == 0);
  CHECK(none.tokens(0) == 0);
  CHECK(none.levels[0].first == List{0});
}

TEST_CASE("BatchLayout: documents are sequences with positions of their own") {
  Text text = two_rows();
  text.cu = {0, 1, 1, 3, 6};  // one token; nothing; two; a whole row
  const BatchLayout layout = layout_of(text, 2);
  CHECK(layout.sequences == 3);
  const auto& main = layout.levels[0];
  CHECK(main.position == List{0, 0, 1, 0, 1, 2});
  CHECK(main.begin == List{0, 1, 1, 3, 3, 3});
  CHECK(main.end == List{1, 3, 3, 6, 6, 6});
  CHECK(main.first == List{0, 1, 3, 6});
  // MTP does not leave a document: the one-token document has no pair at level 1.
  CHECK(layout.levels[1].row == List{1, 3, 4});
  CHECK(layout.levels[1].token == List{3, 5, 6});
  CHECK(layout.levels[1].first == List{0, 0, 1, 3});
  CHECK(layout.levels[1].sequence == List{1, 2, 2});
  CHECK(layout.levels[2].row == List{1});
  CHECK(layout.levels[2].first == List{0, 0, 0, 1});
}

TEST_CASE("BatchLayout counts labels that are not ignored, and needs none at all") {
  Text text = two_rows();
  text.labels = {-100, 12, -1, 14, 15, -7};
  const BatchLayout layout = layout_of(text, 1);
  CHECK(layout.targets == 3);
  CHECK(layout.levels[0].label == List{-1, 12, -1, 14, 15, -1});
  CHECK(layout.levels[1].label == List{12, -1, 15, -1});
  Batch batch = text.batch();
  batch.labels = {};
  BatchLayout bare;
  bare.assign(batch, tiny_config(1));
  CHECK(bare.targets == 0);
  CHECK(bare.levels[0].label == List(6, -1));
}

TEST_CASE("BatchLayout forgets the batch before") {
  BatchLayout layout = layout_of(Text(3, 9, 23), 2);
  layout.assign(two_rows().batch(), tiny_config(1));
  const BatchLayout fresh = layout_of(two_rows(), 1);
  CHECK(layout.levels.size() == 2);
  CHECK(layout.source == fresh.source);
  CHECK(layout.levels[1].token == fresh.levels[1].token);
  CHECK(layout.levels[1].first == fresh.levels[1].first);
}

TEST_CASE("next_token_batch: columns 0 ... T - 1 in, columns 1 ... T as labels") {
  const std::int32_t rows[] = {1, 2, 3, 4, 5, 6};
  const Batch batch = next_token_batch({rows, {2, 3}});
  CHECK(batch.tokens.extent(1) == 2);
  CHECK(batch.tokens(1, 0) == 4);
  CHECK(batch.labels(0, 1) == 3);
  CHECK(batch.labels(1, 1) == 6);
  CHECK_THROWS_WITH_AS(next_token_batch({rows, {6, 1}}),
                       "next_token_batch: columns needed (2) must be at most columns of tokens (1)",
                       std::invalid_argument);
}

TEST_CASE("DeviceLevel::upload counts what it would take") {
  EigenCpu backend;
  const BatchLayout layout = layout_of(two_rows(), 1);
  Arena counting;
  const DeviceLevel nothing = DeviceLevel::upload(backend, layout.levels[1], counting);
  CHECK(nothing.token.data == nullptr);
  CHECK(nothing.sequences.count() == 2);
  Memory memory;
  const DeviceLevel level = DeviceLevel::upload(backend, layout.levels[1], memory.arena);
  CHECK(memory.arena.used() == counting.used());
  CHECK(level.token(3) == 6);
  CHECK(level.sequences.tokens() == 4);
  CHECK(level.sequences.first(2) == 4);
}

TEST_CASE("A bad batch is named with its place and both values") {
  Text text = two_rows();
  Batch batch;
  const char* message = nullptr;
  SUBCASE("no rows") {
    batch = text.batch();
    batch.tokens = batch.tokens.rows(0, 0);
    message = "Batch: rows needed (1) must be at most rows of tokens (0)";
  }
  SUBCASE("no columns") {
    batch = text.batch();
    batch.tokens = batch.tokens.cols(0, 0);
    message = "Batch: columns needed (1) must be at most columns of tokens (0)";
  }
  SUBCASE("a token beyond the vocabulary") {
    text.tokens[4] = 23;
    batch = text.batch();
    message = "Batch: tokens[1, 1] (23) must be at least 0 and below vocab_size (23)";
  }
  SUBCASE("a negative token") {
    text.tokens[2] = -5;
    batch = text.batch();
    message = "Batch: tokens[0, 2] (-5) must be at least 0 and below vocab_size (23)";
  }
  SUBCASE("a label beyond the vocabulary") {
    text.labels[3] = 1000;
    batch = text.batch();
    message = "Batch: labels[1, 0] (1000) must be below vocab_size (23)";
  }
  SUBCASE("labels of another shape") {
    batch = text.batch();
    batch.labels = batch.labels.cols(0, 2);
    message = "Batch: columns of labels (2) must equal columns of tokens (3)";
  }
  SUBCASE("a mask of another shape") {
    text.mask.assign(6, 1);
    batch = text.batch();
    batch.mask = batch.mask.rows(0, 1);
    message = "Batch: rows of mask (1) must equal rows of tokens (2)";
  }
  SUBCASE("documents that do not start at 0") {
    text.cu = {1, 3, 6};
    message = "Batch: cu_seqlens[0] (1) must equal first token (0)";
  }
  SUBCASE("documents that end too early") {
    text.cu = {0, 3, 5};
    message = "Batch: last of cu_seqlens (5) must equal tokens (6)";
  }
  SUBCASE("documents that run backwards") {
    text.cu = {0, 2, 1, 3, 6};
    message = "Batch: cu_seqlens[1] (2) must be at most cu_seqlens[2] (1)";
  }
  SUBCASE("a document across two rows") {
    text.cu = {0, 2, 6};
    message =
        "Batch: row of the last token before cu_seqlens[2] (1) must equal row of cu_seqlens[1] (0)";
  }
  SUBCASE("no document") {
    text.cu = {0};
    message = "Batch: documents needed (1) must be at most documents of cu_seqlens (0)";
  }
  if (!batch.tokens.data) batch = text.batch();
  BatchLayout layout;
  CHECK_THROWS_WITH_AS(layout.assign(batch, tiny_config()), message, std::invalid_argument);
}

TEST_CASE("A padded token may hold anything") {
  Text text = two_rows();
  text.mask = {1, 1, 0, 1, 1, 1};
  text.tokens[2] = -1;
  text.labels[2] = 99999;
  CHECK(layout_of(text, 0).levels[0].token == List{1, 2, 4, 5, 6});
}
