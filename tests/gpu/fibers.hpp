// Fibers: many threads of control that take turns on one thread of the host, at a cost of
// nanoseconds, in an order that only a seed decides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

// Of the address sanitizer's run time, where a program has it.
extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake, const void* stack,
                                                  std::size_t bytes);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake, const void** stack,
                                                   std::size_t* bytes);
}

namespace emulated {

/// What is left of a thread of control while it does not run.
#ifdef __x86_64__
struct Context {
  void* top = nullptr;  // of its stack, where the registers are that a call keeps

  void prepare(std::byte* stack, std::size_t bytes, void (*entry)()) {
    const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(stack) + bytes) / 16 * 16;
    auto* words = reinterpret_cast<void**>(end) - 1;  // where a call would leave it
    *words = nullptr;                                 // no caller to return to
    *--words = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--words = nullptr;
    top = words;
  }
};

// Keeps rbx, rbp and r12 to r15 of the one, takes those of the other and returns into it.
[[gnu::naked, gnu::noinline]] inline void exchange_contexts(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbx\n pushq %rbp\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbp\n popq %rbx\n ret\n");
}
inline void exchange(Context& from, Context& to) { exchange_contexts(&from.top, to.top); }
#else
struct Context {
  ucontext_t saved;

  void prepare(std::byte* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&saved);
    saved.uc_stack.ss_sp = stack;
    saved.uc_stack.ss_size = bytes;
    saved.uc_link = nullptr;
    makecontext(&saved, entry, 0);
  }
};
inline void exchange(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }
#endif

/// Runs a function as so many fibers, which wait for one another in groups.
class Fibers {
 public:
  explicit Fibers(int most, std::uint64_t seed = 1)
      : random_(seed * 2 + 1), fibers_(static_cast<std::size_t>(most)) {
    ready_.reserve(fibers_.size());
  }
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  /// f(fiber) by every fiber in [0, count). Returns when all have.
  /// Errors   std::logic_error where some wait for others that have come to an end or wait
  ///          elsewhere.
  template <class F>
  void run(int count, F&& f) {
    call_ = [](void* function, int fiber) {
      (*static_cast<std::remove_reference_t<F>*>(function))(fiber);
    };
    function_ = &f;
    count_ = unfinished_ = count;
    at_barrier_ = 0;
    at_warp_.assign(static_cast<std::size_t>((count + 31) / 32), 0);
    ready_.clear();
    all_ready();
    current() = this;
    enter(next());
    if (unfinished_ == 0) return;
    for (auto& fiber : fibers_) fiber.stack.reset();  // what they hold is lost
    throw std::logic_error("emulated block: not all threads reach the same barriers and shuffles");
  }

  /// The fiber that runs.
  int running() const { return running_; }

  /// Of a fiber: waits for all.
  void barrier(int fiber) {
    if (++at_barrier_ == count_) {
      at_barrier_ = 0;
      all_ready();
    }
    leave(fiber);
  }

  /// Of a fiber: waits for the 32 that it is one of.
  void warp_barrier(int fiber) {
    int& waiting = at_warp_[static_cast<std::size_t>(fiber / 32)];
    if (++waiting == 32) {
      waiting = 0;
      top_ = 32;
      for (int i = 0; i < 32; ++i) ready_.push_back(fiber / 32 * 32 + i);
    }
    leave(fiber);
  }

 private:
  static constexpr std::size_t stack_bytes = std::size_t{256} << 10;

  struct Fiber {
    Context context;
    std::unique_ptr<std::byte[]> stack;
  };

  static Fibers*& current() {
    static thread_local Fibers* fibers = nullptr;
    return fibers;
  }

  std::size_t random(std::size_t below) {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return (random_ >> 32) * below >> 32;
  }

  void all_ready() {
    const auto first = static_cast<int>(random(at_warp_.size())) * 32;
    for (int i = 0; i < count_; ++i) ready_.push_back((first + i) % count_);
    by_warps_ = random(2) == 0;
    top_ = 0;
  }

  // Any fiber that can run, or -1: the caller of run(). After one barrier in two one warp after the
  // other runs as far as it can.
  int next() {
    if (ready_.empty()) return -1;
    if (by_warps_ && top_ == 0)
      while (top_ < ready_.size() && ready_[ready_.size() - 1 - top_] / 32 == ready_.back() / 32)
        ++top_;
    int& chosen = ready_[ready_.size() - 1 - random(by_warps_ ? top_-- : ready_.size())];
    const int fiber = chosen;
    chosen = ready_.back();
    ready_.pop_back();
    return fiber;
  }

  Fiber& of(int fiber) { return fibers_[static_cast<std::size_t>(fiber)]; }

  // From the caller of run() into its first fiber.
  void enter(int fiber) {
    running_ = fiber;
    entered_ = false;
    prepare(fiber);
    void* fake = nullptr;
    start_switch(fake, of(fiber).stack.get(), stack_bytes);
    exchange(caller_, of(fiber).context);
    finish_switch(fake);
  }

  // From one fiber to the next that can run.
  void leave(int fiber) {
    const int to = next();
    if (to == fiber) return;
    running_ = to;
    void* fake = nullptr;
    if (to < 0) {
      start_switch(fake, caller_stack_, caller_bytes_);
      exchange(of(fiber).context, caller_);
    } else {
      prepare(to);
      start_switch(fake, of(to).stack.get(), stack_bytes);
      exchange(of(fiber).context, of(to).context);
    }
    arrive(fake);
  }

  void prepare(int fiber) {
    Fiber& f = of(fiber);
    if (f.stack) return;
    f.stack.reset(new std::byte[stack_bytes]);
    // Tops at the same place in every page would be in the same few lines of the cache.
    const std::size_t top = stack_bytes - static_cast<std::size_t>(fiber) % 128 * 320;
    f.context.prepare(f.stack.get(), top, [] { current()->live(); });
  }

  // What a fiber does: its share of every run().
  [[noreturn]] void live() {
    arrive(nullptr);
    for (;;) {
      const int fiber = running_;
      call_(function_, fiber);
      --unfinished_;
      leave(fiber);
    }
  }

  static void start_switch(void*& fake, const void* stack, std::size_t bytes) {
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake, stack, bytes);
  }
  // In the caller of run() and in a fiber: where the switch came from is of interest to the first
  // fiber alone, which has to know the caller's stack.
  static void finish_switch(void* fake) {
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }
  void arrive(void* fake) {
    const void* stack = nullptr;
    std::size_t bytes = 0;
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, &stack, &bytes);
    if (!entered_) {
      caller_stack_ = stack;
      caller_bytes_ = bytes;
    }
    entered_ = true;
  }

  std::uint64_t random_;
  std::vector<Fiber> fibers_;
  std::vector<int> ready_, at_warp_;
  bool by_warps_ = false;
  std::size_t top_ = 0;  // where by_warps_: of the last that got ready, those of one warp
  int count_ = 0, unfinished_ = 0, at_barrier_ = 0, running_ = -1;
  void (*call_)(void*, int) = nullptr;
  void* function_ = nullptr;
  Context caller_;
  const void* caller_stack_ = nullptr;
  std::size_t caller_bytes_ = 0;
  bool entered_ = false;  // some fiber runs since run() was called
};

}  // namespace emulated
