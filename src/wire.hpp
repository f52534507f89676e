// Messages between the ranks of a group: as they are on the wire, gathered by every rank or merged along a tree.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/exchange.hpp"
#include "src/parcel.hpp"

namespace allnorm {

/// Exchanges that this rank declined. What the peers send to them is still taken, so that long messages leave.
class Declined {
 public:
  void add(std::unique_ptr<Pending::Impl> exchange) { exchanges_.push_back(std::move(exchange)); }
  /// Takes what has come; without blocking.
  void drain();
  void clear() noexcept { exchanges_.clear(); }

 private:
  std::vector<std::unique_ptr<Pending::Impl>> exchanges_;
};

/// One of the steps by which a rank comes to have what all have made, where not everyone sends to everyone.
struct Step {
  int to = 0, from = 0;   // of the group
  std::vector<int> of{};  // whose it passes on: what it has, itself first
};

/// A group's view of its links. Shared by the communicator and the exchanges that it started.
struct Group {
  Group(std::shared_ptr<Links> through, std::vector<int> ranks, std::uint64_t number, const Patience& how);

  std::shared_ptr<Links> links;
  std::vector<int> members;  // [rank in the group] -> rank in links
  int rank = 0;
  std::uint64_t context = 0;
  Patience patience;
  std::vector<int> others;     // as the links number them
  bool shares_memory = false;  // with all of them
  std::vector<Step> steps;     // none where all are sent to directly
  std::unique_ptr<Declined> declined = std::make_unique<Declined>();

  int size() const noexcept { return static_cast<int>(members.size()); }
  std::string name_of(int of_rank) const { return links->name_of(members[static_cast<std::size_t>(of_rank)]); }
  std::uint64_t tag(std::uint64_t sequence) const noexcept { return context << 32 | (sequence & 0xffffffffu); }
};

/// Sends `own` to the group as its exchange number `sequence`; the result is the same on every rank, to the bit.
/// `memory`: whose own.payload is, where that is nobody else's; the result's payload is the same vector.
std::unique_ptr<Pending::Impl> begin_exchange(const std::shared_ptr<const Group>& group, Parcel&& own,
                                              std::vector<double> memory, std::uint64_t sequence);

/// Sends this rank's `size` bytes to the group and receives those of the others, rank r's at records + r * stride, in
/// memory of the host or of a GPU that is done being written there. The links must take it; the ranks have agreed on
/// the size under `header`.
std::unique_ptr<Pending::Impl> begin_records(const std::shared_ptr<const Group>& group, const Header& header,
                                             std::shared_ptr<std::byte> records, std::size_t stride, std::size_t size,
                                             std::uint64_t sequence);

}  // namespace allnorm
