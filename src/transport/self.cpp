// A group of one: nothing travels.
#include "src/exchange.hpp"

namespace allnorm {

namespace {

class SelfLinks final : public Links {
 public:
  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return 1; }
  std::string_view transport() const noexcept override { return "self"; }
  void post(std::span<const int>, std::uint64_t, std::shared_ptr<const Bytes>) override {}
  std::shared_ptr<const Bytes> poll(int, std::uint64_t) override { return nullptr; }
  bool flushed(std::uint64_t) override { return true; }
  void relax(int) override {}
  void abort(const Error&) noexcept override {}
};

}  // namespace

std::shared_ptr<Communicator> self() { return communicate(std::make_shared<SelfLinks>(), Patience{}); }

}  // namespace allnorm
