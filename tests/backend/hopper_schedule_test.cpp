// Index arithmetic of the products of codes on Hopper, where no GPU is needed.
// Rows, lanes and bytes are ints, as in the kernels, and index small arrays here.
#pragma GCC diagnostic ignored "-Wsign-conversion"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <dsv3/backend/cuda/hopper_stripes.hpp>
#include <set>
#include <vector>

namespace {

using namespace dsv3;
using namespace dsv3::detail;

// What the kernel's prologue makes of offsets.
struct Groups {
  std::vector<int> first, tiles;

  template <Product p>
  Groups(ProductTag<p>, std::vector<int> offsets, int rows, int height) : first(offsets) {
    tiles.push_back(0);
    for (std::size_t g = 0; g + 1 < first.size(); ++g) {
      const int here = p == Product::tn ? rows : first[g + 1] - first[g];
      tiles.push_back(tiles.back() + (here + height - 1) / height);
    }
  }
};

template <Product p, int waves, int width = 128>
using Form = HopperForm<p, false, waves, width>;

// Every element of c that belongs to a group is stored once, whatever the cut.
template <class F>
void check_cover(const std::vector<int>& offsets, int rows, int columns, int blocks) {
  constexpr Product p = F::product;
  const Groups found(ProductTag<p>{}, offsets, rows, F::height);
  const HopperGroups groups{found.first.data(), found.tiles.data()};
  const int count = static_cast<int>(offsets.size()) - 1;
  const int tiles = (columns + F::width - 1) / F::width;
  std::set<std::array<int, 3>> stored;  // group, row, tile of columns
  for (int block = 0; block < blocks; ++block) {
    int group = 0;
    for (int i = block; i < groups.tiles[count] * tiles; i += blocks) {
      const auto t = hopper_tile_of<F>(groups, i, group, tiles, rows, 300);
      REQUIRE(t.group >= 0);
      REQUIRE(t.group < count);
      REQUIRE(t.column % F::width == 0);
      REQUIRE(t.column < columns);
      if constexpr (p == Product::tn) {
        CHECK(t.first == offsets[t.group]);
        CHECK(t.length == offsets[t.group + 1] - offsets[t.group]);
        CHECK(t.blocks == (t.length + 127) / 128);
      } else {
        CHECK(t.blocks == 3);
        CHECK(t.row_end == offsets[t.group + 1]);
      }
      for (int r = t.row; r < t.row + F::height && r < t.row_end; ++r)
        CHECK(stored.insert({t.group, r, t.column / F::width}).second);
    }
  }
  const int all = p == Product::tn ? count * rows : offsets.back() - offsets.front();
  CHECK(static_cast<int>(stored.size()) == all * tiles);
}

const std::vector<std::vector<int>> ragged = {
    {0, 1}, {0, 300}, {0, 0, 5, 5, 133, 389, 389, 700}, {0, 128, 256, 257, 257}, {0, 4000, 4001}};

TEST_CASE("Hopper's tiles cover every row of every group once") {
  for (const auto& offsets : ragged)
    for (int columns : {1, 128, 130, 700})
      for (int blocks : {1, 3, 66}) {
        check_cover<Form<Product::nt, 1>>(offsets, offsets.back(), columns, blocks);
        check_cover<Form<Product::nt, 1, 64>>(offsets, offsets.back(), columns, blocks);
        check_cover<Form<Product::nn, 2>>(offsets, offsets.back(), columns, blocks);
        check_cover<Form<Product::tn, 1>>(offsets, 300, columns, blocks);
        check_cover<Form<Product::tn, 2>>(offsets, 37, columns, blocks);
      }
}

TEST_CASE("Each block of turned tokens is of one segment, and tokens come in their order") {
  for (const auto& offsets : ragged) {
    const int groups = static_cast<int>(offsets.size()) - 1, tokens = offsets.back();
    const int blocks = static_cast<int>(hopper_turned_tokens(tokens, groups)) / 128;
    std::vector<int> seen(static_cast<std::size_t>(tokens));
    for (int block = 0; block < blocks; ++block) {
      int owners = 0;
      for (int g = 0; g < groups; ++g) {
        const auto rows = hopper_turn_rows(block, g, offsets[g], offsets[g + 1]);
        if (rows.count <= 0) continue;
        ++owners;
        CHECK(block == hopper_segment(g, offsets[g]) + (rows.row - offsets[g]) / 128);
        for (int i = 0; i < rows.count && i < 128; ++i) ++seen[rows.row + i];
      }
      CHECK(owners <= 1);
    }
    for (int count : seen) CHECK(count == 1);
    for (int g = 0; g < groups; ++g)  // what the kernel reads is there
      CHECK(hopper_segment(g, offsets[g]) + (offsets[g + 1] - offsets[g] + 127) / 128 <= blocks);
  }
}

TEST_CASE("Turned stripes fit into the workspace and are about equal") {
  const Index workspace = Index{128} << 20;
  CHECK(hopper_stripe(1, 7168, 4096, workspace) == 7168);       // whole
  CHECK(hopper_stripe(32, 7168, 2048, workspace) == 14 * 128);  // four
  CHECK(hopper_stripe(1, 100, 100, workspace) == 128);
  CHECK(hopper_stripe(512, 7168, 18432, workspace) == 0);  // not 128 columns
  for (Index groups : {1, 8, 32, 500})
    for (Index columns : {1, 2048, 7168, 16384})
      for (Index depth : {1, 2048, 7200, 18432}) {
        const Index stripe = hopper_stripe(groups, columns, depth, workspace);
        CHECK(stripe % 128 == 0);
        CHECK(groups * stripe * hopper_whole_tiles(depth) <= workspace);
      }
  const auto whole = hopper_turns(1, 4096, 7168, 4096, workspace);
  CHECK(whole.a == 4096);
  CHECK(whole.b == 7168);
  CHECK(whole.turned == 4096 + 7168);
  const auto some = hopper_turns(8, 2048, 7168, 32768, workspace);
  CHECK(some.a == 2048);
  CHECK(some.b == 14 * 128);
  CHECK(some.turned == 2048 + 7168);
  CHECK(some.stripes == 4);
  const auto wide = hopper_turns(8, 7168, 2048, 32768, workspace);
  CHECK(wide.a_inside);
  CHECK(wide.turned == 2048 + 7168);
  CHECK(hopper_turns(8, 7168, 2048, Index{1} << 20, workspace).a == 0);
  for (Index groups : {1, 8, 300})
    for (Index rows : {1, 2048, 7168})
      for (Index columns : {1, 4096, 16384})
        for (Index tokens : {1, 300, 4096, 40000}) {
          const auto t = hopper_turns(groups, rows, columns, tokens, workspace);
          CHECK((t.a + t.b) * hopper_turned_tokens(tokens, groups) <= workspace);
          CHECK(t.stripes == (t.a ? groups_of(rows, t.a) * groups_of(columns, t.b) : 0));
        }
}

TEST_CASE("Codes are turned where that is done first") {
  const Index workspace = Index{128} << 20;
  const auto nn = [&](Index groups, Index rows, Index columns, Index depth) {
    return hopper_nn_turns(groups, rows, columns, depth,
                           hopper_stripe(groups, columns, depth, workspace));
  };
  CHECK(nn(1, 4096, 7168, 4096));
  CHECK(nn(8, 32768, 7168, 2048));
  CHECK(nn(32, 32768, 7168, 4096));
  CHECK_FALSE(nn(256, 32768, 7168, 4096));  // 128 rows for each weight
  CHECK_FALSE(nn(1, 128, 7168, 16384));
  CHECK_FALSE(nn(1, 512, 512, 512));
  const auto tn = [&](Index groups, Index rows, Index columns, Index tokens) {
    return hopper_tn_turns(rows, columns, tokens,
                           hopper_turns(groups, rows, columns, tokens, workspace));
  };
  CHECK(tn(1, 4096, 7168, 4096));
  CHECK(tn(32, 2048, 7168, 32768));
  CHECK_FALSE(tn(1, 256, 7168, 4096));
  CHECK_FALSE(tn(1, 512, 512, 512));
}

TEST_CASE("A band of tiles is walked column by column") {
  CHECK(hopper_place(0, 5, 3, 2).row == 0);
  CHECK(hopper_place(1, 5, 3, 2).row == 1);
  CHECK(hopper_place(2, 5, 3, 2).column == 1);
  CHECK(hopper_place(6, 5, 3, 2).row == 2);
  CHECK(hopper_place(12, 5, 3, 2).row == 4);  // the last band has one row
  CHECK(hopper_place(13, 5, 3, 2).column == 1);
}

template <class F>
void check_stages() {
  using S = HopperStages<F>;
  CHECK(S::a_bytes % 1024 == 0);
  CHECK(S::b % 1024 == 0);
  CHECK(S::b_bytes % 1024 == 0);
  CHECK(S::b == S::count * S::a_bytes);
  CHECK(S::scales == S::b + S::count * S::b_bytes);
  CHECK(S::scale_bytes % 128 == 0);  // TMA writes to multiples of 128
  CHECK(S::a_scales * 4 % 128 == 0);
  CHECK(S::barriers % 8 == 0);
  CHECK(S::groups == S::barriers + 3 * S::count * 8);
  CHECK(S::bytes <= 227 * 1024);
}
TEST_CASE("Hopper's stages lie one behind the other in a block's shared memory") {
  check_stages<Form<Product::nt, 1>>();
  check_stages<Form<Product::nt, 1, 64>>();
  check_stages<Form<Product::nt, 2>>();
  check_stages<Form<Product::nn, 2>>();
  check_stages<Form<Product::tn, 1>>();
  check_stages<HopperForm<Product::tn, true, 2, 128>>();
}

TEST_CASE("Swizzle and descriptor are those of 128-byte rows") {
  for (int row = 0; row < 128; ++row)
    for (int chunk = 0; chunk < 8; ++chunk) {
      const std::uint32_t plain = static_cast<std::uint32_t>(row * 128 + chunk * 16);
      CHECK(hopper_swizzled(row, chunk) == (plain ^ ((plain >> 7 & 7) << 4)));
    }
  const std::uint64_t d = hopper_descriptor(0x12400);
  CHECK((d & 0x3FFF) == 0x1240);
  CHECK((d >> 16 & 0x3FFF) == 1);
  CHECK((d >> 32 & 0x3FFF) == 64);
  CHECK((d >> 49 & 7) == 0);
  CHECK((d >> 62) == 1);
  CHECK(hopper_descriptor(0x12400 + 32) == d + hopper_descriptor_step);
  CHECK(hopper_descriptor(227 * 1024 - 1024 + 96) == hopper_descriptor(227 * 1024 - 1024) + 6);
}

TEST_CASE("The fragments of 128 threads are 64 x 128 elements") {
  std::set<std::array<int, 2>> seen;
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < 64; ++i)
      seen.insert({hopper_fragment_row(thread, i), hopper_fragment_column(thread, i)});
  CHECK(seen.size() == 64 * 128);
  CHECK(seen.begin()->front() == 0);
  CHECK(seen.rbegin()->front() == 63);
  CHECK(hopper_fragment_row(37, 6) == 16 + 1 + 8);
  CHECK(hopper_fragment_column(37, 6) == 8 + 2);
}

// The instructions of a warp on a tile of bytes, as the PTX manual has them.
struct Warp {
  std::vector<std::uint8_t>& memory;
  bool conflict = false;

  using Registers = std::array<std::array<std::uint32_t, 4>, 32>;

  void check_banks(const std::array<std::uint32_t, 32>& address) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::set<std::uint32_t> banks;
      for (int i = 0; i < 8; ++i) banks.insert(address[8 * matrix + i] / 16 % 8);
      conflict |= banks.size() != 8;
    }
  }
  Registers load_transposed(const std::array<std::uint32_t, 32>& address) {
    check_banks(address);
    Registers r;
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::uint32_t word = 0;
        for (int element = 0; element < 2;
             ++element) {  // row 2 (lane % 4) + element, column lane / 4
          const auto row = address[8 * matrix + lane % 4 * 2 + element];
          const auto at = row + static_cast<std::uint32_t>(lane / 4 * 2);
          word |= static_cast<std::uint32_t>(memory[at] | memory[at + 1] << 8) << (16 * element);
        }
        r[lane][matrix] = word;
      }
    return r;
  }
  void store(const std::array<std::uint32_t, 32>& address, const Registers& r) {
    check_banks(address);
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix)
        for (int byte = 0; byte < 4; ++byte)
          memory[address[8 * matrix + lane / 4] + static_cast<std::uint32_t>(lane % 4 * 4 + byte)] =
              static_cast<std::uint8_t>(r[lane][matrix] >> (8 * byte));
  }
};

std::uint32_t byte_perm(std::uint32_t x, std::uint32_t y, std::uint32_t selector) {
  const std::uint64_t both = static_cast<std::uint64_t>(y) << 32 | x;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<std::uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 0xFF) << (8 * i);
  return result;
}

TEST_CASE("A tile of codes is transposed in place, without conflicts of banks") {
  for (int count : {128, 127, 64, 37, 1}) {
    std::vector<std::uint8_t> memory(hopper_tile_bytes);
    const auto at = [](int row, int column) {
      return hopper_swizzled(row, column / 16) + static_cast<std::uint32_t>(column % 16);
    };
    const auto code = [](int row, int column) {
      return static_cast<std::uint8_t>((row * 131 + column * 31 + row * column % 7) % 251);
    };
    for (int row = 0; row < 128; ++row)
      for (int column = 0; column < 128; ++column) memory[at(row, column)] = code(row, column);
    Warp warp{memory};
    std::array<std::uint32_t, 32> from, to;
    for (int task = 0; task < 32; ++task) {  // as transpose_tile
      for (int lane = 0; lane < 32; ++lane) {
        const auto square = hopper_square(task / 4, task % 4, lane / 16);
        from[lane] =
            hopper_swizzled(16 * square.row + hopper_transpose_load_row(lane), square.column);
        to[lane] =
            hopper_swizzled(16 * square.column + hopper_transpose_store_row(lane), square.row);
      }
      const auto pairs = warp.load_transposed(from);
      Warp::Registers words;
      for (int lane = 0; lane < 32; ++lane)
        for (int word = 0; word < 4; ++word) {
          const int half = word / 2, row = 16 * hopper_square(task / 4, task % 4, half).row;
          words[lane][word] = byte_perm(pairs[lane][2 * half], pairs[lane][2 * half + 1],
                                        hopper_transpose_selector(lane, word % 2)) &
                              hopper_first_codes(count, row + lane % 4 * 4);
        }
      warp.store(to, words);
    }
    CHECK_FALSE(warp.conflict);
    int wrong = 0;
    for (int row = 0; row < 128; ++row)
      for (int column = 0; column < 128; ++column)
        wrong += memory[at(column, row)] != (row < count ? code(row, column) : 0);
    CHECK(wrong == 0);
  }
}

TEST_CASE("A product is cut into the tiles that are done first") {
  constexpr auto nt = Product::nt;
  CHECK(hopper_cut(nt, 1, 4096, 7168, 132).waves == 2);
  CHECK(hopper_cut(nt, 8, 4096, 7168, 132).waves == 2);
  CHECK(hopper_cut(nt, 1, 128, 7168, 132).waves == 1);
  CHECK(hopper_cut(nt, 1, 128, 7168, 132).width == 64);
  CHECK(hopper_cut(Product::nn, 1, 128, 7168, 132).width == 128);
  CHECK(hopper_cut(nt, 256, 128, 4096, 132).waves == 1);
  CHECK(hopper_cut(nt, 256, 128, 4096, 132).width == 128);
}

}  // namespace
