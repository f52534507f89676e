// Ranks with a GPU each, over NCCL: which GPU a rank is on, told to all before NCCL begins.
#include "launch/ranks_nccl.hpp"

#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "allnorm/nccl.hpp"
#include "build_config.hpp"
#include "src/gpu.hpp"

namespace allnorm::launch {

#if ALLNORM_HAVE_NCCL

namespace {

// What NCCL tells machines apart by: the host's name, or what stands in for it.
std::string host_identity() {
  if (const char* given = std::getenv("NCCL_HOSTID"); given != nullptr && *given != '\0') return given;
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return {};
  return name.data();
}

// Per rank: the two halves of its GPU's hash, which doubles hold exactly, and the number that the GPU has there.
void expect_own_gpus(Communicator& ranks, Queue& queue) {
  constexpr std::size_t words = 3;
  const auto size = static_cast<std::size_t>(ranks.size()), own = static_cast<std::size_t>(ranks.rank());
  const int index = queue.device().index;
  const std::string gpu = host_identity() + "/" + gpu_identity(index);
  const std::uint64_t hash = hash_of(gpu.data(), gpu.size());
  Message message{Header("nccl", Direction::agreement, 0), std::vector<double>(words * size, 0.0), 0, {}};
  message.payload[words * own] = static_cast<double>(hash >> 32);
  message.payload[words * own + 1] = static_cast<double>(hash & 0xffffffffu);
  message.payload[words * own + 2] = index;
  const std::vector<double> all = ranks.exchange(std::move(message), queue).payload;
  for (std::size_t second = 1; second < size; ++second)
    for (std::size_t first = 0; first < second; ++first)
      expect(all[words * first] != all[words * second] || all[words * first + 1] != all[words * second + 1],
             Code::unsupported, [&] {
               return "ranks " + std::to_string(first) + " and " + std::to_string(second) + " are both on " +
                      to_string(Device{DeviceKind::cuda, static_cast<int>(all[words * first + 2])}) +
                      ", must each have a GPU of their own or an NCCL_HOSTID of their own";
             });
}

}  // namespace

std::shared_ptr<Communicator> nccl_ranks(const std::shared_ptr<Communicator>& bootstrap, Queue& queue,
                                         const Patience& patience) {
  expect_own_gpus(*bootstrap, queue);
  return nccl_over(bootstrap, queue, patience);
}

#else

std::shared_ptr<Communicator> nccl_ranks(const std::shared_ptr<Communicator>&, Queue&, const Patience&) {
  fail(Code::unsupported, "the transport is nccl, must be self, threads, mpi or tcp: this build has no NCCL");
}

#endif

}  // namespace allnorm::launch
