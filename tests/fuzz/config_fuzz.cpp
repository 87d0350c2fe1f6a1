// The input is a config.json: it is refused, or what is written for it reads as the same.
#include <dsv3/io/config_json.hpp>

#include "fuzz.hpp"

int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  fuzz::run(fuzz::text(data, size), [&] {
    const dsv3::ModelConfig config = dsv3::config_from_json(fuzz::text(data, size), "input");
    const std::string text = dsv3::config_to_json(config);
    try {
      fuzz::require(dsv3::config_from_json(text, "output") == config,
                    "a configuration changes when it is written and read");
    } catch (const std::exception& error) {
      fuzz::fail(error.what());
    }
  });
  return 0;
}
