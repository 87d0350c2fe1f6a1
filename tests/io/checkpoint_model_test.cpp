#include <doctest/doctest.h>

#include <dsv3/io/checkpoint.hpp>
#include <dsv3/model.hpp>

#include "folder.hpp"

using namespace dsv3;

TEST_CASE("A model takes published weights and gives them back byte for byte") {
  TestFolder folder;
  for (const std::string name : {"v3_mtp2", "moonlight", "v2", "dense", "variants"}) {
    const std::string golden = DSV3_TEST_DATA "/golden/" + name;
    EigenCpu backend;
    Model<Fp32, EigenCpu> model(backend, load_config(golden + "/config.json"));
    load_weights(model, golden);
    save_weights(model, folder.path("x"));
    CHECK_MESSAGE(TestFolder::read(folder.path("x/model.safetensors")) ==
                      TestFolder::read(golden + "/model.safetensors"),
                  name);
  }
}

TEST_CASE("A model without MTP is loaded from a checkpoint with it") {
  const std::string golden = DSV3_TEST_DATA "/golden/v3";
  ModelConfig config = load_config(golden + "/config.json");
  config.num_nextn_predict_layers = 0;
  EigenCpu backend;
  Model<Fp32, EigenCpu> model(backend, config);
  load_weights(model, golden);
  const SafetensorsFile file(golden + "/model.safetensors");
  CHECK(model.masters().lm_head(0, 0) == file.at("lm_head.weight").values<float>()[0]);
}
