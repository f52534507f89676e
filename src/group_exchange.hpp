// What all ways of exchanging share: the deadline, what is told of those who are late, and the end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "src/transport/deadline.hpp"
#include "src/wire.hpp"

namespace allnorm {

class GroupExchange : public Pending::Impl {
 public:
  /// `timeout`: seconds.
  GroupExchange(std::shared_ptr<const Group> group, Parcel&& own, std::vector<double> memory, std::uint64_t sequence,
                double timeout);
  ~GroupExchange() override;
  GroupExchange(const GroupExchange&) = delete;
  GroupExchange& operator=(const GroupExchange&) = delete;

  bool poll() final;
  void relax() final;
  Message take() final;

 protected:
  /// Takes and sends what it can; true when the result is there.
  virtual bool advance() = 0;
  /// The group's ranks whose messages this one waits for.
  virtual std::vector<int> missing() const = 0;

  std::vector<int> others() const;
  /// The group's ranks as the links number them.
  std::vector<int> in_links(std::vector<int> ranks) const;
  std::string compare(const Header& first, int first_rank, const Header& other, int rank) const;
  void post(std::vector<int> to, std::shared_ptr<const Bytes> bytes);
  /// How the links number a rank of the group.
  int in_links(int rank) const { return group_->members[static_cast<std::size_t>(rank)]; }
  /// What the next message of that rank begins with; nothing while there is none.
  Arrival receive(int from);
  /// The same of what it has put into memory that the ranks share. There it stays until this rank lets go of it.
  Arrival find(int from);
  /// What comes next in the same message; nothing at its end.
  Arrival next(const Arrival& before, int from) const;

  std::shared_ptr<const Group> group_;
  const std::uint64_t tag_;
  Parcel own_, result_;  // of one payload
  std::vector<std::uint64_t> rank_flags_;
  int looks_ = 0;  // that found something missing

 private:
  std::vector<int> waits_for() const;
  void report_aborted(const Error& error) const;
  std::vector<int> asked_too() const;
  double waited() const { return now(group_->patience) - began_; }
  LateReport report(const std::vector<int>& ranks, std::string line) const;
  std::string line(const std::vector<int>& ranks, const std::string& so_far) const;
  void expect_nobody_left();
  void look_around();

  Arrival unpacked(std::span<const std::byte> rest, std::shared_ptr<const Bytes> bytes, int from) const;

  std::vector<double> memory_;
  Deadline deadline_;
  double began_;                           // by the clock of the deadline
  double warn_when_left_, ask_when_left_;  // seconds
  bool warned_ = false;
  std::unique_ptr<Inquiry> inquiry_;
  Pause pause_;
  bool done_ = false;
};

}  // namespace allnorm
