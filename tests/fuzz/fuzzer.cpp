// One target under libFuzzer: that which ALLNORM_FUZZ_TARGET in the environment names.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/fuzz/targets.hpp"

namespace {

const allnorm::fuzz::Target& asked_for() {
  const char* const name = std::getenv("ALLNORM_FUZZ_TARGET");
  for (const allnorm::fuzz::Target& target : allnorm::fuzz::targets())
    if (name != nullptr && target.name == std::string_view(name)) return target;
  std::fputs("fuzzer: ALLNORM_FUZZ_TARGET must be one of:", stderr);
  for (const allnorm::fuzz::Target& target : allnorm::fuzz::targets()) std::fprintf(stderr, " %s", target.name);
  std::fputs("\n", stderr);
  std::exit(2);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const allnorm::fuzz::Target& target = asked_for();
  target.read(std::as_bytes(std::span(data, size)));
  return 0;
}
