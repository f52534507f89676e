#include "src/heads.hpp"

#include "kernels/heads.hpp"
#include "src/exchange.hpp"

namespace allnorm {

void fail_exchange(std::uint64_t status, const RecordHead& first, const std::string& first_name,
                   const RecordHead& other, const std::string& name) {
  if (status == ExchangeReport::weights_changed)
    fail(Code::invalid_argument,
         name + ": conv_weight has changed within a batch of mini-batches, must be the same until the batch ends");
  if (status == ExchangeReport::too_many) fail(Code::invalid_input, too_many_values(first.header));
  if (status == ExchangeReport::declined) fail(Code::aborted, name + " failed: " + other.reason.data());
  std::string text = verdict(first.header, first_name, other.header, name);
  if (text.empty()) {  // equal headers, other lengths
    Header ours = first.header, theirs = other.header;
    ours.set(Field::payload, first.count);
    theirs.set(Field::payload, other.count);
    text = verdict(ours, first_name, theirs, name);
  }
  fail(Code::mismatch, text);
}

void expect_agreement(const Gathered& gathered, const Communicator& group) {
  const std::byte* const own = gathered.records + static_cast<std::size_t>(group.rank()) * gathered.stride;
  const steps::Heads heads{gathered, own};
  const steps::Verdict verdict = heads.judge();
  if (verdict.status != ExchangeReport::fine)
    fail_exchange(verdict.status, heads.of(0), group.name_of(0), heads.of(verdict.rank), group.name_of(verdict.rank));
}

}  // namespace allnorm
