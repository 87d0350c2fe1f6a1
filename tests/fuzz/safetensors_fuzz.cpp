// The input is a safetensors file: it is refused, or every tensor's values can be read.
#include <dsv3/io/safetensors.hpp>

#include "fuzz.hpp"

int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  static const fuzz::Folder folder;
  const std::string path = folder.write("file", fuzz::text(data, size));
  fuzz::run(fuzz::text(data, size), [&] {
    const dsv3::SafetensorsFile file(path);
    for (const dsv3::SafetensorsTensor& tensor : file.tensors()) {
      fuzz::require(file.find(tensor.name) == &tensor, "a tensor is not found by its name");
      // In pieces: values of a wider type may take eight times the file.
      for (dsv3::Index i = 0; i < tensor.size(); i += 64) {
        const dsv3::Index n = std::min<dsv3::Index>(64, tensor.size() - i);
        double reals[64];
        std::int64_t integers[64];
        if (is_integer(tensor.dtype))
          tensor.read(i, integers, n);
        else
          tensor.read(i, reals, n);
      }
    }
  });
  return 0;
}
