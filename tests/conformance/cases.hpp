// The conformance test: a backend's file includes it behind its own struct Subjects, so that the
// same cases, under the same names, judge every backend.
#pragma once

#include "blocks.hpp"
#include "primitives.hpp"

namespace {

using conformance::Subjects;
using dsv3::bf16;
using dsv3::e4m3;
using dsv3::e5m2;

}  // namespace

// --- Primitives ---

TEST_CASE("memory keeps what is copied into it") {
  conformance::memory_keeps_what_is_copied<Subjects>();
}

TEST_CASE("teams add, and find the largest and its place") {
  conformance::teams_agree<Subjects, float>();
  conformance::teams_agree<Subjects, double>();
}

TEST_CASE("for_each_row calls the body once for every row") {
  conformance::rows_are_visited_once<Subjects>();
}

TEST_CASE("sort_by_expert gives the order of the reference") {
  conformance::sorting_agrees<Subjects>();
}

TEST_CASE("gemm agrees with EigenCpu's") {
  SUBCASE("in double") { conformance::products_agree<Subjects, double, double, double>(); }
  SUBCASE("in float") { conformance::products_agree<Subjects, float, float, float>(); }
  SUBCASE("in bf16") { conformance::products_agree<Subjects, bf16, bf16, bf16>(); }
  SUBCASE("from bf16 to float") { conformance::products_agree<Subjects, bf16, bf16, float>(); }
  SUBCASE("from float and bf16 to float") {
    conformance::products_agree<Subjects, float, bf16, float>();
  }
  SUBCASE("from bf16 and float to float") {
    conformance::products_agree<Subjects, bf16, float, float>();
  }
}

TEST_CASE("batched_gemm agrees with EigenCpu's") {
  using dsv3::Product;
  conformance::batched_product_agrees<Subjects, Product::nt, float, float>();
  conformance::batched_product_agrees<Subjects, Product::nn, bf16, bf16>();
  conformance::batched_product_agrees<Subjects, Product::tn, double, double>();
}

TEST_CASE("grouped_gemm agrees with EigenCpu's") {
  conformance::grouped_products_agree<Subjects, double, double>();
  conformance::grouped_products_agree<Subjects, float, float>();
  conformance::grouped_products_agree<Subjects, bf16, bf16>();
  conformance::grouped_products_agree<Subjects, bf16, float>();
}

TEST_CASE("products refuse extents that disagree, before they write") {
  conformance::products_refuse_what_does_not_fit<Subjects>();
}

TEST_CASE("gemm of codes agrees with EigenCpu's") {
  SUBCASE("to bf16") { conformance::products_of_codes_agree<Subjects, e4m3, e4m3, bf16>(); }
  SUBCASE("to float") { conformance::products_of_codes_agree<Subjects, e4m3, e4m3, float>(); }
  SUBCASE("of gradients in e5m2") {
    conformance::products_of_codes_agree<Subjects, e5m2, e4m3, bf16>();
  }
}

TEST_CASE("grouped_gemm of codes agrees with EigenCpu's") {
  conformance::grouped_products_of_codes_agree<Subjects>();
}

// --- Blocks, and their fused forms ---

TEST_CASE("RmsNorm agrees with its composed form") {
  conformance::rms_norm_agrees<Subjects, double, double, double>();
  conformance::rms_norm_agrees<Subjects, float, float, float>();
  conformance::rms_norm_agrees<Subjects, bf16, bf16, bf16>();
}

TEST_CASE("SwiGLU has the bits of its composed form") {
  conformance::swiglu_agrees<Subjects, double>();
  conformance::swiglu_agrees<Subjects, float>();
  conformance::swiglu_agrees<Subjects, bf16>();
}

TEST_CASE("Rope has the same bits everywhere") {
  conformance::rope_agrees<Subjects, double>();
  conformance::rope_agrees<Subjects, float>();
  conformance::rope_agrees<Subjects, bf16>();
}

TEST_CASE("Embedding agrees") {
  conformance::embedding_agrees<Subjects, double, double>();
  conformance::embedding_agrees<Subjects, bf16, bf16>();
}

TEST_CASE("Head agrees") {
  conformance::head_agrees<Subjects, dsv3::Fp64>();
  conformance::head_agrees<Subjects, dsv3::Fp32>();
  conformance::head_agrees<Subjects, dsv3::Bf16>();
}

TEST_CASE("quantising gives the same codes and scales everywhere") {
  conformance::quantising_agrees<Subjects>();
  conformance::quantised_swiglu_agrees<Subjects>();
}

TEST_CASE("AdamW gives the same weights, moments and codes everywhere") {
  conformance::adamw_agrees<Subjects, float>();
  conformance::adamw_agrees<Subjects, bf16>();
}

TEST_CASE("Attention agrees with its composed form") {
  SUBCASE("in double") { conformance::attention_agrees<Subjects, double>(); }
  SUBCASE("in float") { conformance::attention_agrees<Subjects, float>(); }
  SUBCASE("in bf16") { conformance::attention_agrees<Subjects, bf16>(); }
}

TEST_CASE("LatentAttention agrees with its composed form") {
  conformance::latent_attention_agrees<Subjects, double, double>();
  conformance::latent_attention_agrees<Subjects, float, float>();
  conformance::latent_attention_agrees<Subjects, bf16, bf16>();
  conformance::latent_attention_agrees<Subjects, bf16, e4m3>();
}

TEST_CASE("tokens are chosen alike where the logits are") {
  conformance::sampling_agrees<Subjects, float>();
  conformance::sampling_agrees<Subjects, double>();
}
