// The input is a safetensors file: it is refused, or its tensors are the input's bytes behind the
// header, all of them, and every value can be read. (Reading beyond the file would go unseen: the
// system fills its last page.)
#include <cstring>
#include <dsv3/io/safetensors.hpp>

#include "fuzz.hpp"

int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  static const fuzz::Folder folder;
  const std::string path = folder.write("file", fuzz::text(data, size));
  fuzz::run(fuzz::text(data, size), [&] {
    const dsv3::SafetensorsFile file(path);
    std::uint64_t at = 0;
    std::memcpy(&at, data, 8);
    at += 8;
    for (const dsv3::SafetensorsTensor& tensor : file.tensors()) {
      const auto bytes = static_cast<std::size_t>(tensor.bytes);
      fuzz::require(at <= size && bytes <= size - at, "a tensor ends behind the file");
      fuzz::require(bytes == 0 || std::memcmp(tensor.data, data + at, bytes) == 0,
                    "a tensor has other bytes than the file");
      at += bytes;
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
    fuzz::require(at == size, "bytes of the file belong to no tensor");
  });
  return 0;
}
