// Fibers: stacks of their own on one OS thread, switched by hand. One of them runs one CUDA thread at a time.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(ALLNORM_FIBER_UCONTEXT)
#include <ucontext.h>
#define ALLNORM_FIBER_PORTABLE 1
#else
#define ALLNORM_FIBER_PORTABLE 0
#endif

namespace cuda_emulation::detail {

/// A place to switch to: a fiber, or the OS thread's own stack (made by the default constructor).
class Fiber {
 public:
  Fiber() = default;
  /// A fiber that runs `entry` when first switched to. `entry` must not return.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Leaves `*this`, which must be running, and goes on in `target`. Returns when something switches back.
  void switch_to(Fiber& target);
  /// First statement of an entry function: `self` is the fiber that runs it.
  static void entered(Fiber& self);
  /// Gives up what the fiber was doing; its entry function starts anew at the next switch.
  void restart();

 private:
  void prepare();

  void (*entry_)() = nullptr;
  char* mapping_ = nullptr;  // guard page, then the stack
  char* stack_ = nullptr;
  std::size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#if ALLNORM_FIBER_PORTABLE
  ucontext_t context_{};
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace cuda_emulation::detail
