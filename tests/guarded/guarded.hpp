// Guarded: a backend whose memory the host cannot touch. It stands for a device where there is
// none.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/recorded.hpp>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace guarded {

using dsv3::Index;

/// Every page of its memory is protected except while one of its primitives runs, which a Cpu of
/// its own carries out. A block ends at a page that is never open, so that overruns fault too. A
/// host pointer where backend memory belongs, or the reverse, is std::invalid_argument; row kernels
/// must be trivially copyable, as a launch on a device copies them. Work that comes with the same
/// key is recorded the second time, arguments by value, and from then on only repeated, as a graph
/// is: what changed on the host since then goes unseen.
///
/// Nothing here derives from the library's backends, and it lives in a namespace of its own: code
/// that works with it finds its primitives by the type of the backend argument alone.
class Guarded {
 public:
  explicit Guarded(int threads = 1) : cpu_(threads) {}
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    for (const auto& [begin, block] : blocks_) munmap(block.pages, block.page_bytes);
  }

  void* take(Index bytes) {
    forbid_recording("allocate");
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t used = round_up(static_cast<std::size_t>(bytes), 64);
    const std::size_t open = round_up(used == 0 ? 64 : used, page);
    void* pages = mmap(nullptr, open + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    auto* begin = static_cast<std::byte*>(pages) + open - used;
    blocks_[begin] = {pages, open + page, open, begin + used};
    return begin;
  }

  void give_back(void* begin) noexcept {
    recordings_.clear();
    const auto found = blocks_.find(static_cast<std::byte*>(begin));
    munmap(found->second.pages, found->second.page_bytes);
    blocks_.erase(found);
  }

  /// True where [begin, begin + bytes) lies in one block.
  bool owns(const void* begin, Index bytes) const {
    const auto* at = static_cast<const std::byte*>(begin);
    const auto after = blocks_.upper_bound(const_cast<std::byte*>(at));
    if (after == blocks_.begin()) return false;
    return at + bytes <= std::prev(after)->second.end;
  }

  /// The Cpu, while its memory is open.
  class Open {
   public:
    explicit Open(Guarded& guarded) : guarded_(guarded) {
      guarded_.protect(PROT_READ | PROT_WRITE);
    }
    ~Open() { guarded_.protect(PROT_NONE); }
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;
    dsv3::Cpu& cpu() { return guarded_.cpu_; }

   private:
    Guarded& guarded_;
  };

  /// Runs f(cpu, args...) with the memory open or, while work is recorded, keeps it for later.
  void launch(auto f, auto&... args) {
    if (recording_) {
      recording_->push_back(
          [f, ... kept = keep(args)](dsv3::Cpu& cpu) mutable { f(cpu, kept.get()...); });
    } else {
      Open open(*this);
      f(open.cpu(), args...);
    }
  }

  /// What run_recorded promises.
  void repeat(const std::string& key, auto&& work) {
    Recording& recording = recordings_[key];
    if (++recording.runs == 1) return work();
    if (recording.runs == 2) {
      recording_ = &recording.launches;
      try {
        work();
      } catch (...) {
        recording_ = nullptr;
        recordings_.erase(key);
        throw;
      }
      recording_ = nullptr;
    } else {
      ++repeated_;
    }
    Open open(*this);
    for (auto& launch : recording.launches) launch(open.cpu());
  }

  void forbid_recording(const char* caller) const {
    if (recording_)
      throw std::logic_error(std::string(caller) + ": cannot be part of work that is recorded");
  }

  /// How often work was repeated without being asked for.
  int repeated() const { return repeated_; }

  /// The Cpu, for what needs none of its memory.
  const dsv3::Cpu& closed_cpu() const { return cpu_; }

  /// Throws unless the view, or codes and scales, lie in this backend's memory; other arguments are
  /// not looked at.
  template <class T, int Rank>
  void require_own(const char* caller, const dsv3::View<T, Rank>& view) const {
    if (view.size() == 0) return;
    Index last = 0;
    for (int d = 0; d < Rank; ++d) last += (view.extent(d) - 1) * view.strides[d];
    if (!owns(view.data, (last + 1) * static_cast<Index>(sizeof(T))))
      throw std::invalid_argument(std::string(caller) + ": a view is not in the backend's memory");
  }
  template <class C>
  void require_own(const char* caller, const dsv3::Quantized<C>& q) const {
    require_own(caller, q.codes);
    require_own(caller, q.scales);
  }
  template <class C>
  void require_own(const char* caller, const dsv3::QuantizedStack<C>& q) const {
    require_own(caller, q.codes);
    require_own(caller, q.scales);
  }
  template <class S>
  void require_own(const char* caller, const dsv3::Scales<S>& s) const {
    const Index n = s.extents[0], m = s.extents[1];
    if (n * m == 0) return;
    const Index last = (n - 1) * s.strides[0] + (m - 1) * s.strides[1];
    if (!owns(s.data, (last + 1) * static_cast<Index>(sizeof(S))))
      throw std::invalid_argument(std::string(caller) + ": scales are not in the backend's memory");
  }
  template <class C>
  void require_own(const char* caller, const dsv3::CachePages<C>& pages) const {
    require_own(caller, pages.latent);
    require_own(caller, pages.scales);
    require_own(caller, pages.rope);
  }
  void require_own(const char* caller, const dsv3::CacheTable& table) const {
    require_own(caller, table.blocks);
    require_own(caller, table.part);
    require_own(caller, table.position);
  }
  void require_own(const char*, const auto&) const {}

 private:
  struct Block {
    void* pages;
    std::size_t page_bytes, open_bytes;
    std::byte* end;
  };

  struct Recording {
    int runs = 0;
    std::vector<std::function<void(dsv3::Cpu&)>> launches;
  };

  // An argument by value; of an arena what is free of it.
  template <class T>
  struct Kept {
    T value;
    T& get() { return value; }
  };
  struct KeptArena {
    std::shared_ptr<dsv3::Arena> value;
    dsv3::Arena& get() { return *value; }
  };
  template <class T>
  Kept<std::remove_const_t<T>> keep(T& value) const {
    return {value};
  }
  KeptArena keep(dsv3::Arena& arena) const {
    std::byte* first = arena.take<std::byte>({0}).data;
    const Index left = std::prev(blocks_.upper_bound(first))->second.end - first;
    return {std::make_shared<dsv3::Arena>(first, left)};
  }

  static std::size_t round_up(std::size_t n, std::size_t unit) {
    return (n + unit - 1) / unit * unit;
  }

  void protect(int protection) {
    for (const auto& [begin, block] : blocks_)
      if (mprotect(block.pages, block.open_bytes, protection) != 0)
        throw std::system_error(errno, std::generic_category(), "mprotect");
  }

  dsv3::Cpu cpu_;
  std::map<std::byte*, Block> blocks_;
  std::map<std::string, Recording> recordings_;
  std::vector<std::function<void(dsv3::Cpu&)>>* recording_ = nullptr;
  int repeated_ = 0;
};

inline void run_recorded(Guarded& guarded, const dsv3::RecordKey& key, auto&& work) {
  guarded.repeat(key.bytes(), work);
}
inline Index recorded_keys(const Guarded&) { return 16; }

inline void* allocate(Guarded& guarded, Index bytes) { return guarded.take(bytes); }
inline void deallocate(Guarded& guarded, void* memory, Index) noexcept {
  guarded.give_back(memory);
}

inline void copy_to_backend(Guarded& guarded, void* to, const void* from, Index bytes) {
  guarded.forbid_recording("copy_to_backend");
  if (bytes == 0) return;
  if (!guarded.owns(to, bytes) || guarded.owns(from, 1))
    throw std::invalid_argument("copy_to_backend: goes from the host's memory to the backend's");
  Guarded::Open open(guarded);
  copy_to_backend(open.cpu(), to, from, bytes);
}

inline void copy_to_host(Guarded& guarded, void* to, const void* from, Index bytes) {
  guarded.forbid_recording("copy_to_host");
  if (bytes == 0) return;
  if (!guarded.owns(from, bytes) || guarded.owns(to, 1))
    throw std::invalid_argument("copy_to_host: goes from the backend's memory to the host's");
  Guarded::Open open(guarded);
  copy_to_host(open.cpu(), to, from, bytes);
}

inline void fill_zero(Guarded& guarded, void* memory, Index bytes) {
  if (bytes == 0) return;
  if (!guarded.owns(memory, bytes))
    throw std::invalid_argument("fill_zero: memory is not the backend's");
  guarded.launch([](dsv3::Cpu& cpu, void* m, Index n) { fill_zero(cpu, m, n); }, memory, bytes);
}

inline void synchronize(Guarded& guarded) {
  guarded.forbid_recording("synchronize");
  Guarded::Open open(guarded);
  synchronize(open.cpu());
}

template <class Body>
void for_each_row(Guarded& guarded, Index rows, Body body) {
  static_assert(std::is_trivially_copyable_v<Body>, "a launch on a device copies the row kernel");
  guarded.launch([](dsv3::Cpu& cpu, Index n, Body& b) { for_each_row(cpu, n, b); }, rows, body);
}

template <class... Args>
void gemm(Guarded& guarded, Args... args) {
  (guarded.require_own("gemm", args), ...);
  guarded.launch([](dsv3::Cpu& cpu, auto&... a) { gemm(cpu, a...); }, args...);
}

template <class... Args>
void batched_gemm(Guarded& guarded, Args... args) {
  (guarded.require_own("batched_gemm", args), ...);
  guarded.launch([](dsv3::Cpu& cpu, auto&... a) { batched_gemm(cpu, a...); }, args...);
}

template <class... Args>
void grouped_gemm(Guarded& guarded, Args... args) {
  (guarded.require_own("grouped_gemm", args), ...);
  guarded.launch([](dsv3::Cpu& cpu, auto&... a) { grouped_gemm(cpu, a...); }, args...);
}

template <class... Args>
void sort_by_expert(Guarded& guarded, Args... args) {
  (guarded.require_own("sort_by_expert", args), ...);
  guarded.launch([](dsv3::Cpu& cpu, auto&... a) { sort_by_expert(cpu, a...); }, args...);
}

// The optional overloads, where Cpu offers them for these arguments, and what they take.
template <class... Args>
requires requires(dsv3::Cpu& cpu, Args&... args) { fused_attention_forward(cpu, args...); }
void fused_attention_forward(Guarded& guarded, Args&&... args) {
  (guarded.require_own("fused_attention_forward", args), ...);
  guarded.launch([](dsv3::Cpu& cpu, auto&... a) { fused_attention_forward(cpu, a...); }, args...);
}

template <class... Args>
requires requires(dsv3::Cpu& cpu, Args&... args) { fused_attention_backward(cpu, args...); }
void fused_attention_backward(Guarded& guarded, Args&&... args) {
  (guarded.require_own("fused_attention_backward", args), ...);
  guarded.launch([](dsv3::Cpu& cpu, auto&... a) { fused_attention_backward(cpu, a...); }, args...);
}

template <class... Args>
requires requires(dsv3::Cpu& cpu, Args&... args) { fused_latent_attention(cpu, args...); }
void fused_latent_attention(Guarded& guarded, Args&&... args) {
  (guarded.require_own("fused_latent_attention", args), ...);
  guarded.launch([](dsv3::Cpu& cpu, auto&... a) { fused_latent_attention(cpu, a...); }, args...);
}

template <class T, class... Sizes>
requires requires(const dsv3::Cpu& cpu, Sizes... n) { fused_latent_attention_bytes<T>(cpu, n...); }
Index fused_latent_attention_bytes(const Guarded& guarded, Sizes... sizes) {
  return fused_latent_attention_bytes<T>(guarded.closed_cpu(), sizes...);
}

template <class T, class... Sizes>
requires requires(const dsv3::Cpu& cpu, Sizes... n) { fused_attention_forward_bytes<T>(cpu, n...); }
Index fused_attention_forward_bytes(const Guarded& guarded, Sizes... sizes) {
  return fused_attention_forward_bytes<T>(guarded.closed_cpu(), sizes...);
}

template <class T, class... Sizes>
requires requires(const dsv3::Cpu& cpu, Sizes... n) {
  fused_attention_backward_bytes<T>(cpu, n...);
}
Index fused_attention_backward_bytes(const Guarded& guarded, Sizes... sizes) {
  return fused_attention_backward_bytes<T>(guarded.closed_cpu(), sizes...);
}

}  // namespace guarded
