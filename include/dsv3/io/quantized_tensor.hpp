// FP8 tensors of checkpoints made from real values, a band of rows at a time.
#pragma once

#include <dsv3/backend/host.hpp>
#include <dsv3/io/checkpoint_layout.hpp>
#include <dsv3/io/safetensors_writer.hpp>
#include <dsv3/nn/quantize.hpp>
#include <functional>
#include <memory>

namespace dsv3::detail {

// Writes elements [first, first + n) of a matrix, in row-major order, to host memory.
using ReadFloats = std::function<void(Index first, float* to, Index n)>;

// The codes and scales of one band of 128 rows; all tensors of a file share the memory.
struct QuantizedBand {
  std::vector<float> values, scales;
  std::vector<e4m3> codes;
  const void* owner = nullptr;  // whose band it is
  Index band = -1;
};

// A matrix of which any band can be quantised: the codes that an Fp8 model makes of it, bit for
// bit, because the same function makes them (spec 7.2: scale = amax / 448).
class BandQuantizer {
 public:
  BandQuantizer(std::vector<Index> shape, ReadFloats read, std::shared_ptr<QuantizedBand> memory)
      : rows_(shape[0]), columns_(shape[1]), read_(std::move(read)), memory_(std::move(memory)) {}

  // The bytes [offset, offset + bytes) of the codes.
  void codes(std::byte* to, Index offset, Index bytes) {
    const Index band_bytes = scale_block * columns_;
    for (Index done = 0; done < bytes;) {
      const Index band = (offset + done) / band_bytes, at = (offset + done) % band_bytes;
      const Index n = std::min(bytes - done, band_bytes - at);
      if (memory_->owner != this || memory_->band != band) quantize(band);
      std::memcpy(to + done, memory_->codes.data() + at, static_cast<std::size_t>(n));
      done += n;
    }
  }

  // The bytes [offset, offset + bytes) of the scales. A band's codes are not made for them.
  void scales(std::byte* to, Index offset, Index bytes) {
    const Index across = groups_of(columns_, scale_block);
    constexpr auto unit = static_cast<Index>(sizeof(float));
    for (Index done = 0; done < bytes;) {
      const Index element = (offset + done) / unit, at = element % across;
      const Index n = std::min((bytes - done) / unit, across - at);
      const auto q = read_band(element / across);
      const View<const float, 2> x(memory_->values.data(), {q.extent(0), columns_});
      for (Index j = at; j < at + n; ++j)
        memory_->scales[static_cast<std::size_t>(j)] =
            block_scale(SerialTeam{}, x, q, 0, j, ScaleRule{});
      std::memcpy(to + done, memory_->scales.data() + at, static_cast<std::size_t>(n * unit));
      done += n * unit;
    }
  }

 private:
  Quantized<e4m3> read_band(Index band) {
    QuantizedBand& m = *memory_;
    m.owner = nullptr;
    const Index rows = std::min(scale_block, rows_ - band * scale_block), n = rows * columns_;
    const Index across = groups_of(columns_, scale_block);
    if (static_cast<Index>(m.values.size()) < n) m.values.resize(static_cast<std::size_t>(n));
    if (static_cast<Index>(m.codes.size()) < n) m.codes.resize(static_cast<std::size_t>(n));
    if (static_cast<Index>(m.scales.size()) < across)
      m.scales.resize(static_cast<std::size_t>(across));
    read_(band * scale_block * columns_, m.values.data(), n);
    return {
        {m.codes.data(), {rows, columns_}}, {m.scales.data(), 1, across}, scale_block, scale_block};
  }

  void quantize(Index band) {
    const auto q = read_band(band);
    const View<const float, 2> x(memory_->values.data(), {q.extent(0), columns_});
    for (Index j = 0; j < q.scales.extents[1]; ++j)
      quantize_block(SerialTeam{}, x, q, 0, j, ScaleRule{});
    memory_->owner = this;
    memory_->band = band;
  }

  Index rows_, columns_;
  ReadFloats read_;
  std::shared_ptr<QuantizedBand> memory_;
};

// Calls add(entry) for the codes of a matrix and for their scales.
inline void add_quantized(const std::string& name, const std::vector<Index>& shape, ReadFloats read,
                          const std::shared_ptr<QuantizedBand>& memory, auto&& add) {
  const auto q = std::make_shared<BandQuantizer>(shape, std::move(read), memory);
  add(SafetensorsEntry{name, DType::f8_e4m3, shape, [q](std::byte* to, Index offset, Index bytes) {
                         q->codes(to, offset, bytes);
                       }});
  add(SafetensorsEntry{
      scales_name(name), DType::f32, scales_shape(shape),
      [q](std::byte* to, Index offset, Index bytes) { q->scales(to, offset, bytes); }});
}

}  // namespace dsv3::detail
