// Fibers: a switch of about ten instructions on x86-64, ucontext elsewhere, both announced to AddressSanitizer.
#include "fiber.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#define ALLNORM_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ALLNORM_FIBER_ASAN 1
#endif
#endif
#ifdef ALLNORM_FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !ALLNORM_FIBER_PORTABLE
// Saves the registers that a call must keep, swaps stacks, restores them. The floating-point modes stay as they are.
extern "C" void allnorm_fiber_switch(void** save, void* load);
asm(R"(
.text
.type allnorm_fiber_switch,@function
.hidden allnorm_fiber_switch
.globl allnorm_fiber_switch
allnorm_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size allnorm_fiber_switch,.-allnorm_fiber_switch
)");
#endif

namespace cuda_emulation::detail {
namespace {

#ifdef ALLNORM_FIBER_ASAN
constexpr std::size_t stack_size = 256 * 1024;  // redzones make frames several times larger
#else
constexpr std::size_t stack_size = 64 * 1024;
#endif

struct Range {
  const void* bottom = nullptr;
  std::size_t bytes = 0;
};

#ifdef ALLNORM_FIBER_ASAN
/// The OS thread's own stack.
Range own_stack() {
  thread_local Range range;
  if (range.bottom == nullptr) {
    pthread_attr_t attributes;
    void* bottom = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
      pthread_attr_getstack(&attributes, &bottom, &range.bytes);
      pthread_attr_destroy(&attributes);
    }
    range.bottom = bottom;
  }
  return range;
}
#endif

}  // namespace

Fiber::Fiber(void (*entry)()) : entry_(entry), stack_bytes_(stack_size) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* const mapping =
      mmap(nullptr, page + stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED || mprotect(mapping, page, PROT_NONE) != 0) {
    std::perror("emulated CUDA: stack of a thread");
    std::abort();
  }
  mapping_ = static_cast<char*>(mapping);
  stack_ = mapping_ + page;
  prepare();
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
#ifdef ALLNORM_FIBER_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stack_, stack_bytes_);
#endif
  munmap(mapping_, static_cast<std::size_t>(stack_ - mapping_) + stack_bytes_);
}

void Fiber::restart() {
#ifdef ALLNORM_FIBER_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stack_, stack_bytes_);
  fake_stack_ = nullptr;
#endif
  prepare();
}

void Fiber::entered(Fiber& self) {
#ifdef ALLNORM_FIBER_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack_, nullptr, nullptr);
#else
  static_cast<void>(self);
#endif
}

#if ALLNORM_FIBER_PORTABLE
void Fiber::prepare() {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry_, 0);
}
#else
void Fiber::prepare() {
  auto* top = reinterpret_cast<std::uintptr_t*>(stack_ + stack_bytes_);
  *--top = 0;  // the return address of the entry function: the end for unwinders, and the stack as after a call
  *--top = reinterpret_cast<std::uintptr_t>(entry_);
  for (int i = 0; i < 6; ++i) *--top = 0;
  stack_pointer_ = top;
}
#endif

#ifdef ALLNORM_FIBER_ASAN
__attribute__((no_sanitize_address))  // marks of its own on every stack took a sixth of the tests' time
#endif
void Fiber::switch_to(Fiber& target) {
#ifdef ALLNORM_FIBER_ASAN
  const Range range = target.stack_ == nullptr ? own_stack() : Range{target.stack_, target.stack_bytes_};
  __sanitizer_start_switch_fiber(&fake_stack_, range.bottom, range.bytes);
#endif
#if ALLNORM_FIBER_PORTABLE
  swapcontext(&context_, &target.context_);
#else
  allnorm_fiber_switch(&stack_pointer_, target.stack_pointer_);
#endif
#ifdef ALLNORM_FIBER_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace cuda_emulation::detail
