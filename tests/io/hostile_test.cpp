#include <doctest/doctest.h>

#include <dsv3/io/config_json.hpp>
#include <dsv3/io/safetensors.hpp>

#include "folder.hpp"

using namespace dsv3;

namespace {

// A file: the header with its length before it, then bytes of data.
std::string file_of(const std::string& header, std::size_t data = 0) {
  std::string text(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(text.data(), &length, 8);
  return text + header + std::string(data, 'x');
}

// A header with one tensor, a U8 of 4 bytes but for what is given.
std::string tensor(const std::string& fields) { return R"({"a":{)" + fields + "}}"; }
std::string shaped(const std::string& shape, const std::string& offsets = "[0,4]") {
  return tensor(R"("dtype":"U8","shape":)" + shape + R"(,"data_offsets":)" + offsets);
}

struct Bad {
  std::string content, message;  // the message after "...: 'path': "
};

// Every content gives exactly its message, and the folder stays as it is.
void check_all(const std::vector<Bad>& table, const std::string& who, auto read) {
  TestFolder folder;
  const std::string path = folder.path("file");
  for (const Bad& bad : table) {
    folder.write("file", bad.content);
    std::string message = "accepted";
    try {
      read(path);
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message == who + ": '" + path + "': " + bad.message);
    CHECK(folder.content() == std::map<std::string, std::string>{{"file", bad.content}});
  }
}

}  // namespace

TEST_CASE("Malformed safetensors files are refused, each with its message") {
  const std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  const auto two = [&](const std::string& second) {
    return file_of("{" + a + "," + second + "}", 8);
  };
  std::string huge = file_of("{}"), beyond = huge, limit = huge;
  std::memset(huge.data(), 0xFF, 8);
  const std::uint64_t three = 3, most = 100'000'001;
  std::memcpy(beyond.data(), &three, 8);
  std::memcpy(limit.data(), &most, 8);
  std::string deep(100'000, '['), dimensions = "[1", entries = "\"k\":\"\"";
  for (int i = 0; i < 100'000; ++i) entries += ",\"" + std::to_string(i) + "\":\"\"";
  for (int i = 0; i < 32; ++i) dimensions += ",1";

  const std::vector<Bad> table = {
      // The frame.
      {"", "file size (0) must be at least 8"},
      {"1234567", "file size (7) must be at least 8"},
      {huge, "header length (18446744073709551615) must be at most the limit (100000000)"},
      {limit, "header length (100000001) must be at most the limit (100000000)"},
      {beyond, "header length (3) must be at most the bytes that follow (2)"},
      {file_of(""), "header must begin with '{'"},
      {file_of(" {}"), "header must begin with '{'"},
      {file_of("\xEF\xBB\xBF{}"), "header must begin with '{'"},
      {file_of("[]"), "header must begin with '{'"},
      // JSON.
      {file_of("{"), "not valid JSON at byte 2"},
      {file_of("{}}"), "not valid JSON at byte 3"},
      {file_of("{'a':1}"), "not valid JSON at byte 2"},
      {file_of(std::string("{}\0 ", 4)), "not valid JSON at byte 3"},
      {file_of("{\"\xff\":1}"), "not valid JSON at byte 3"},
      {file_of("{\"a\x01\":1}"), "not valid JSON at byte 4"},
      {file_of("{\"a\":NaN}"), "not valid JSON at byte 6"},
      {file_of("{" + a + ",}", 4), "not valid JSON at byte 54"},
      {file_of("{/* a */}"), "not valid JSON at byte 2"},
      {file_of(tensor(R"("dtype":1e999)")), "number out of range at byte 19"},
      // The wrong kind of value.
      {file_of("{\"a\":" + deep), "tensor 'a' must be an object, found an array"},
      {file_of("{\"a\":7}"), "tensor 'a' must be an object, found an integer"},
      {file_of("{\"a\":null}"), "tensor 'a' must be an object, found null"},
      {file_of("{\"__metadata__\":\"x\"}"), "__metadata__ must be an object, found a string"},
      {file_of("{\"__metadata__\":{\"k\":1}}"),
       "__metadata__ 'k' must be a string, found an integer"},
      {file_of("{\"__metadata__\":{\"k\":{\"l\":\"m\"}}}"),
       "__metadata__ 'k' must be a string, found an object"},
      {file_of(tensor(R"("dtype":8)")), "tensor 'a': dtype must be a string, found an integer"},
      {file_of(tensor(R"("dtype":["U8"])")), "tensor 'a': dtype must be a string, found an array"},
      {file_of(tensor(R"("shape":"4")")), "tensor 'a': shape must be an array, found a string"},
      {file_of(tensor(R"("data_offsets":{})")),
       "tensor 'a': data_offsets must be an array, found an object"},
      {file_of(shaped("[[4]]"), 4), "tensor 'a': shape[0] must be an integer, found an array"},
      {file_of(shaped("[4,1.0]"), 4),
       "tensor 'a': shape[1] must be an integer, found a real number"},
      {file_of(shaped("[true]"), 4), "tensor 'a': shape[0] must be an integer, found a boolean"},
      {file_of(shaped("[4]", "[0,\"4\"]"), 4),
       "tensor 'a': data_offsets[1] must be an integer, found a string"},
      // Names and keys.
      {file_of("{" + a + "," + a + "}", 4), "duplicate tensor 'a'"},
      {file_of("{\"__metadata__\":{},\"__metadata__\":{}}"), "duplicate key '__metadata__'"},
      {file_of("{\"__metadata__\":{\"k\":\"1\",\"k\":\"1\"}}"), "__metadata__: duplicate key 'k'"},
      {file_of("{\"__metadata__\":{" + entries + "}}"),
       "__metadata__: entries must be at most 100000"},
      {file_of(tensor(R"("dtype":"U8","dtype":"U8")")), "tensor 'a': duplicate key 'dtype'"},
      {file_of(tensor(R"("type":"U8")")), "tensor 'a': unknown key 'type'"},
      {file_of("{\"a\":{}}"), "tensor 'a': missing key 'dtype'"},
      {file_of(tensor(R"("dtype":"U8")")), "tensor 'a': missing key 'shape'"},
      {file_of(tensor(R"("dtype":"U8","shape":[])")), "tensor 'a': missing key 'data_offsets'"},
      {file_of(tensor(R"("dtype":"F4")")), "tensor 'a': unknown dtype 'F4'"},
      {file_of("{\"a\\n\\u0000\":{\"dtype\":\"\\u001b[2J\"}}"),
       "tensor 'a\\x0a\\x00': unknown dtype '\\x1b[2J'"},
      {file_of("{\"" + std::string(200, 'n') + "\":{\"dtype\":\"\"}}"),
       "tensor '" + std::string(120, 'n') + "...': unknown dtype ''"},
      // Shapes.
      {file_of(shaped("[-4]"), 4),
       "tensor 'a': shape[0] (-4) must be from 0 to 9223372036854775807"},
      {file_of(shaped("[9223372036854775808]"), 4),
       "tensor 'a': shape[0] (9223372036854775808) must be from 0 to 9223372036854775807"},
      {file_of(shaped("[18446744073709551616]"), 4),
       "tensor 'a': shape[0] must be an integer, found a real number"},
      {file_of(shaped("[4294967296,4294967296]"), 4),
       "tensor 'a': shape ([4294967296, 4294967296]) has too many elements"},
      {file_of(shaped("[0,4294967296,4294967296]", "[0,0]")),
       "tensor 'a': shape ([0, 4294967296, 4294967296]) has too many elements"},
      {file_of(tensor(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])")),
       "tensor 'a': shape ([2305843009213693952]) has too many elements"},
      {file_of(shaped(dimensions + "]"), 4), "tensor 'a': shape must have at most 32 dimensions"},
      // Offsets.
      {file_of(shaped("[4]", "[4]"), 4), "tensor 'a': data_offsets must hold 2 numbers, found 1"},
      {file_of(shaped("[4]", "[]"), 4), "tensor 'a': data_offsets must hold 2 numbers, found 0"},
      {file_of(shaped("[4]", "[0,4,4]"), 4),
       "tensor 'a': data_offsets must hold 2 numbers, found more"},
      {file_of(shaped("[4]", "[4,0]"), 4), "tensor 'a': begin (4) must be at most end (0)"},
      {file_of(shaped("[4]", "[-4,0]"), 4),
       "tensor 'a': data_offsets[0] (-4) must be from 0 to 9223372036854775807"},
      {file_of(shaped("[5]"), 4), "tensor 'a': bytes (4) must equal those of shape [5] of U8 (5)"},
      {file_of(shaped("[0]"), 4), "tensor 'a': bytes (4) must equal those of shape [0] of U8 (0)"},
      {file_of(shaped("[4]"), 3), "tensor 'a': end (4) must be at most the data's bytes (3)"},
      {file_of(shaped("[4]"), 5), "data's bytes (5) must equal the end of 'a' (4)"},
      {file_of("{}", 1), "data's bytes (1) must equal the start of the data (0)"},
      {file_of(shaped("[4]", "[1,5]"), 5),
       "tensor 'a': begin (1) must equal the start of the data (0): gap"},
      {two(R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]})"),
       "tensor 'b': begin (3) must equal the end of 'a' (4): overlap"},
      {two(R"("b":{"dtype":"U8","shape":[3],"data_offsets":[5,8]})"),
       "tensor 'b': begin (5) must equal the end of 'a' (4): gap"},
      {two(R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})"),
       "tensor 'b': begin (0) must equal the end of 'a' (4): overlap"},
      {two(R"("b":{"dtype":"U8","shape":[0],"data_offsets":[8,8]})"),
       "tensor 'b': begin (8) must equal the end of 'a' (4): gap"},
  };
  CHECK(table.size() >= 60);
  check_all(table, "SafetensorsFile", [](const std::string& path) { SafetensorsFile{path}; });
}

TEST_CASE("What looks odd but follows the format is read") {
  TestFolder folder;
  const auto tensors = [&](const std::string& content) {
    return SafetensorsFile(folder.write("file", content)).tensors().size();
  };
  CHECK(tensors(file_of("{}")) == 0);
  CHECK(tensors(file_of("{}  \n")) == 0);
  CHECK(tensors(file_of(R"({"":{"data_offsets":[0,1],"shape":[],"dtype":"U8"}})", 1)) == 1);
  CHECK(tensors(file_of(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("a":{"dtype":"I64","shape":[0,9],"data_offsets":[1,1]},)"
                        R"("c":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                        5)) == 3);
}

TEST_CASE("Malformed or unsupported config.json files are refused, each with its message") {
  const auto with = [](const std::string& key, const std::string& value) {
    auto json = nlohmann::ordered_json::parse(config_to_json(presets::deepseek_v3));
    json[key] = nlohmann::ordered_json::parse(value);
    return json.dump();
  };
  const auto yarn = [&](const std::string& key, const std::string& value) {
    auto json = nlohmann::ordered_json::parse(config_to_json(presets::deepseek_v3));
    json["rope_scaling"][key] = nlohmann::ordered_json::parse(value);
    return json.dump();
  };
  const std::string deep(40, '[');
  std::string many_values = "{\"a\":[0";
  for (int i = 0; i < 300'000; ++i) many_values += ",0";
  const std::vector<Bad> table = {
      {"", "not valid JSON at byte 1"},
      {"{\"vocab_size\": 3,}", "not valid JSON at byte 18"},
      {std::string("{}\0", 3), "not valid JSON at byte 3"},
      {"{\"\xc3\x28\":1}", "not valid JSON at byte 4"},
      {"{} {}", "not valid JSON at byte 4"},
      {"[]", "must hold an object, found an array"},
      {"3", "must hold an object, found an integer"},
      {"{\"a\":" + deep, "nested deeper than 32 levels"},
      {"{\"a\":" + std::string(4097, '1'), "number at byte 6 must have at most 4096 bytes"},
      {many_values + "]}", "values must be at most 206000"},
      {"{\"a\":1,\"a\":1}", "duplicate key 'a'"},
      {"{\"a\":[{\"b\":1,\"b\":1}]}", "duplicate key 'b'"},
      {"{}", "missing key 'model_type'"},
      {"{\"model_type\":null}", "missing key 'model_type'"},
      {with("model_type", "3"), "model_type must be a string, found an integer"},
      {with("model_type", "\"llama\""),
       "model_type ('llama') is unsupported; known: deepseek_v2, deepseek_v3"},
      {with("hidden_size", "\"7168\""), "hidden_size must be an integer, found a string"},
      {with("hidden_size", "7168.0"), "hidden_size must be an integer, found a real number"},
      {with("hidden_size", "null"), "hidden_size must be an integer, found null"},
      {with("hidden_size", "18446744073709551615"),
       "hidden_size (18446744073709551615) is too large"},
      {with("hidden_size", "0"), "ModelConfig: hidden_size (0) must be at least 1"},
      {with("num_hidden_layers", "9223372036854775807"),
       "ModelConfig: num_hidden_layers (9223372036854775807) must be at most 65536"},
      {with("num_hidden_layers", "-9223372036854775808"),
       "ModelConfig: num_hidden_layers (-9223372036854775808) must be at least 1"},
      {with("moe_layer_freq", "[1]"), "moe_layer_freq must be an integer, found an array"},
      {with("moe_layer_freq", "0"), "ModelConfig: moe_layer_freq (0) must be at least 1"},
      {with("qk_rope_head_dim", "63"),
       "ModelConfig: qk_rope_head_dim (63) must be even: it rotates pairs"},
      {with("qk_head_dim", "191"),
       "qk_head_dim (191) must equal qk_nope_head_dim + qk_rope_head_dim (192)"},
      {with("num_key_value_heads", "8"),
       "ModelConfig: num_key_value_heads (8) must equal num_attention_heads (128)"},
      {with("n_group", "7"), "ModelConfig: n_group (7) must divide n_routed_experts (256)"},
      {with("topk_group", "9"), "ModelConfig: topk_group (9) must be at most n_group (8)"},
      {with("n_group", "null"), "n_group must be an integer, found null"},
      {with("topk_method", "\"top_p\""),
       "topk_method ('top_p') is unsupported; known: noaux_tc, group_limited_greedy, greedy"},
      {with("scoring_func", "\"relu\""),
       "scoring_func ('relu') is unsupported; known: sigmoid, softmax"},
      {with("norm_topk_prob", "1"), "norm_topk_prob must be a boolean, found an integer"},
      {with("routed_scaling_factor", "\"2.5\""),
       "routed_scaling_factor must be a number, found a string"},
      {with("rms_norm_eps", "-1"), "ModelConfig: rms_norm_eps (-1.000000) must be in [0, 1)"},
      {with("hidden_act", "\"gelu\""), "hidden_act ('gelu') is unsupported"},
      {with("attention_bias", "true"), "attention_bias (true) is unsupported"},
      {with("attention_bias", "0"), "attention_bias must be a boolean, found an integer"},
      {with("mlp_bias", "true"), "mlp_bias (true) is unsupported"},
      {with("tie_word_embeddings", "true"), "tie_word_embeddings (true) is unsupported"},
      {with("attention_dropout", "0.1"), "attention_dropout (0.1) is unsupported"},
      {with("rope_interleave", "false"), "rope_interleave (false) is unsupported"},
      {with("mtp_hidden", "\"both\""),
       "mtp_hidden ('both') is unsupported; known: post_norm, pre_norm"},
      {with("rope_scaling", "40"), "rope_scaling must be an object, found an integer"},
      {with("rope_scaling", "{\"type\":\"linear\",\"factor\":2}"),
       "rope_scaling.type ('linear') is unsupported; known: yarn, default"},
      {with("rope_scaling", "{\"rope_type\":\"yarn\"}"), "missing key 'rope_scaling.factor'"},
      {yarn("rope_type", "\"default\""),
       "rope_scaling.type ('yarn') must equal rope_scaling.rope_type ('default')"},
      {yarn("factor", "\"40\""), "rope_scaling.factor must be a number, found a string"},
      {yarn("factor", "0.5"), "ModelConfig: rope_scaling.factor (0.500000) must be at least 1"},
      {yarn("original_max_position_embeddings", "4096.5"),
       "rope_scaling.original_max_position_embeddings must be an integer, found a real number"},
      {yarn("attention_factor", "1.2"), "rope_scaling.attention_factor (given) is unsupported"},
      {yarn("truncate", "false"), "rope_scaling.truncate (false) is unsupported"},
      {with("rope_parameters", "{\"rope_type\":\"default\"}"),
       "rope_scaling and rope_parameters must agree where both are given"},
      {with("rope_parameters", "[]"), "rope_parameters must be an object, found an array"},
      {with("quantization_config", "\"fp8\""),
       "quantization_config must be an object, found a string"},
      {with("quantization_config", "{}"),
       "quantization_config.quant_method ('') is unsupported; known: fp8"},
      {with("quantization_config", "{\"quant_method\":\"gptq\"}"),
       "quantization_config.quant_method ('gptq') is unsupported; known: fp8"},
      {with("quantization_config", "{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}"),
       "quantization_config.fmt ('e5m2') is unsupported; known: e4m3"},
      {with("quantization_config", "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,64]}"),
       "quantization_config.weight_block_size ('[128,64]') must equal [128,128]"},
  };
  CHECK(table.size() >= 50);
  check_all(table, "load_config", [](const std::string& path) { load_config(path); });
}

TEST_CASE("A file too large for a config.json is refused before it is parsed") {
  TestFolder folder;
  const std::string path = folder.write("file", "");
  std::filesystem::resize_file(path, 17u << 20);  // a hole: no memory, no disk
  CHECK_THROWS_WITH_AS(
      load_config(path),
      ("load_config: '" + path + "': bytes (17825792) must be at most 16777216").c_str(),
      std::invalid_argument);
}

TEST_CASE("Random damage to a good file is read or refused, never worse") {
  TestFolder folder;
  const std::string good = TestFolder::read(DSV3_TEST_DATA "/golden/adamw/expected.safetensors");
  std::uint32_t state = 1;
  const auto random = [&](std::size_t n) {  // xorshift: the same damage on every machine
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return static_cast<std::size_t>(state) % n;
  };
  constexpr char likely[] = "{}[]\",:0123456789-.eE\\\0\xff";
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bad = good;
    for (std::size_t n = 1 + random(3); n > 0; --n)
      bad[8 + random(1768)] = likely[random(sizeof(likely))];
    if (random(4) == 0) bad.resize(random(bad.size()));
    try {
      const SafetensorsFile file(folder.write("file", bad));
      for (const SafetensorsTensor& t : file.tensors())
        if (!is_integer(t.dtype)) t.values<double>();
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  CHECK(refused > 1000);
}
