#include "launch/parts.hpp"

#include <algorithm>

namespace allnorm::launch {

namespace {

struct Remedy {
  std::string_view part, text;
};
constexpr Remedy remedies[] = {
    {"mpi", "ranks of mpirun and srun: install libopenmpi-dev or libmpich-dev and configure again"},
    {"cuda", "GPUs: install the CUDA Toolkit of version 12 or later and configure again"},
    {"nccl", "ranks with a GPU each: install libnccl-dev and configure again"},
    {"prometheus", "--metrics: install prometheus-cpp-dev and configure again"},
    {"simgrid", "allnorm scale --cluster: install libsimgrid-dev and configure again"},
    {"torch", "allnorm train: install libtorch-dev or pip's torch and configure again"},
};

}  // namespace

bool has_part(std::string_view name) {
  return std::any_of(build::parts.begin(), build::parts.end(),
                     [name](const build::Part& part) { return part.name == name && part.in; });
}

std::string_view remedy_of(const build::Part& part) {
  for (const Remedy& remedy : remedies)
    if (remedy.part == part.name) return remedy.text;
  return {};
}

std::string explain(const build::Part& part) {
  std::string text(part.detail);
  const std::string_view remedy = remedy_of(part);
  if (!part.in && !remedy.empty()) text += "; " + std::string(remedy);
  return text;
}

}  // namespace allnorm::launch
