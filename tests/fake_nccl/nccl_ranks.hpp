// Ranks over the NCCL that stands for the real one, for its tests.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "allnorm/nccl.hpp"
#include "cuda_emulation.hpp"
#include "fake_nccl.hpp"
#include "gpu/records.hpp"
#include "harness.hpp"

namespace allnorm::test {

using harness::error_of;
using Group = std::shared_ptr<Communicator>;

// Ranks share the emulated GPUs: each counts as a host of its own.
inline void on_nccl_ranks(int ranks, const Patience& patience, const std::function<void(const Group&, Queue&)>& body) {
  const NcclId id = NcclId::make();
  on_ranks(ranks, [&](int rank) {
    fake_nccl::set_host_id("host " + std::to_string(rank));
    Queue queue = Queue::cuda(rank % cuda_devices());
    body(nccl(id, rank, ranks, queue, patience), queue);
  });
}

inline Patience gathering(int limit = 32) {
  Patience patience;
  patience.gather_limit = limit;
  return patience;
}

inline std::vector<double> whole_numbers(int rank, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<double>(rank + 1) * static_cast<double>(i + 1);
  return values;
}

inline void expect_group(const Group& group, int rank, int ranks, Queue& queue) {
  EXPECT_EQ(group->rank(), rank);
  EXPECT_EQ(group->size(), ranks);
  EXPECT_EQ(group->transport(), "nccl");
  const Message sum = group->exchange({Header("met", Direction::agreement, 0), {1.0 + rank}, 0, {}}, queue);
  EXPECT_EQ(sum.payload, std::vector<double>{ranks * (ranks + 1) / 2.0});
}

class Nccl : public testing::Test {
 protected:
  void SetUp() override {
    cuda_emulation::reset();
    fake_nccl::reset();
  }
  void TearDown() override {
    EXPECT_EQ(fake_nccl::living(), 0);
    EXPECT_EQ(fake_nccl::misuses(), 0);
  }
};

}  // namespace allnorm::test
