#include "faulty_links.hpp"

#include <chrono>
#include <thread>
#include <utility>

#include "src/transport/threads.hpp"

namespace faults {

using namespace allnorm;

namespace {

class FaultyLinks final : public Links {
 public:
  FaultyLinks(std::shared_ptr<Links> links, const Fault& fault, int ranks_per_node)
      : links_(std::move(links)), fault_(fault), ranks_per_node_(ranks_per_node) {}

  int rank() const noexcept override { return links_->rank(); }
  int size() const noexcept override { return links_->size(); }
  std::string_view transport() const noexcept override { return links_->transport(); }
  std::shared_ptr<const Bytes> poll(int from, std::uint64_t tag) override { return links_->poll(from, tag); }
  std::vector<int> unsent(std::uint64_t tag) override { return links_->unsent(tag); }
  bool crowded() const noexcept override { return links_->crowded(); }
  void sleep(Pause::Step most) override { links_->sleep(most); }
  void abort(const Error& error) noexcept override { links_->abort(error); }
  std::string name_of(int rank) const override { return links_->name_of(rank); }

  int node_of(int rank) const override { return ranks_per_node_ == 0 ? 0 : rank / ranks_per_node_; }
  bool shares_memory(std::span<const int> ranks) const override {
    return ranks_per_node_ == 0 && links_->shares_memory(ranks);
  }
  // What is dropped is there for this rank alone.
  bool put(std::span<const int> to, std::uint64_t tag, Parts parts) override {
    if (tag == fault_.call && fault_.kind == Kind::wrong_size) return false;  // then it is posted
    if (meet(tag) != Kind::drop) return links_->put(to, tag, parts);
    for (const auto& part : parts) dropped_.insert(dropped_.end(), part.begin(), part.end());
    return true;
  }
  std::span<const std::byte> find(int from, std::uint64_t tag) override {
    if (from == rank() && tag == fault_.call && !dropped_.empty()) return dropped_;
    return links_->find(from, tag);
  }
  void let_go(int from, const std::byte* message) noexcept override {
    if (message != dropped_.data()) links_->let_go(from, message);
  }

  void post(std::span<const int> to, std::uint64_t tag, std::shared_ptr<const Bytes> bytes) override {
    const Kind kind = meet(tag);
    if (kind == Kind::drop) return;
    if (kind == Kind::wrong_size) {
      Bytes other = *bytes;
      other.resize(tag % 2 == 0 ? other.size() - 8 : other.size() + 8);
      bytes = std::make_shared<const Bytes>(std::move(other));
    }
    links_->post(to, tag, std::move(bytes));
  }

 private:
  // Only of what the communicator of all ranks sends: its context is 0. The fault happens once.
  Kind meet(std::uint64_t tag) {
    const Kind kind = tag == fault_.call ? std::exchange(fault_.kind, Kind::none) : Kind::none;
    if (kind == Kind::die) throw Died();
    if (kind == Kind::fail) fail(Code::transport, "the network is down");
    if (kind == Kind::delay) std::this_thread::sleep_for(std::chrono::milliseconds(5 + 3 * (tag % 5)));
    return kind;
  }

  std::shared_ptr<Links> links_;
  Fault fault_;
  int ranks_per_node_;
  Bytes dropped_;
};

}  // namespace

const char* name_of(Kind kind) noexcept {
  constexpr const char* names[] = {"none", "delay", "drop", "die", "wrong size", "fail", "no memory"};
  return names[static_cast<int>(kind)];
}

std::vector<std::shared_ptr<Communicator>> threads(int ranks, const Fault& fault, int ranks_per_node,
                                                   const Patience& patience) {
  std::vector<std::shared_ptr<Communicator>> worlds;
  for (auto& links : thread_links(ranks)) {
    const Fault own = links->rank() == fault.rank ? fault : Fault{};
    worlds.push_back(communicate(std::make_shared<FaultyLinks>(std::move(links), own, ranks_per_node), patience));
  }
  return worlds;
}

}  // namespace faults
