// What a rank says in an exchange: as it made it, on the wire, and as it arrives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "src/exchange.hpp"

namespace allnorm {

/// A message as this rank made it.
struct Parcel {
  Header header;
  std::uint64_t flags = 0;
  std::string verdict{};        // not empty: who disagrees or failed, and how; then the payload means nothing
  std::span<double> payload{};  // of the exchange from its begin: what the ranks' merge to is written there
  bool declined = false;
  std::uint64_t nonfinite = 0;  // the ranks that it is of and that have flag_nonfinite; see rank_bit()
};

/// Merges a payload of sum.size() doubles into `sum` as the header of both says; see Message.
void merge_payload(const Header& header, std::span<double> sum, const std::byte* payload);

// On the wire: this prefix, `count` doubles, and a text: why there is nothing to add. A message may have several.
struct Prefix {
  Header header;
  std::uint64_t rank = 0;  // of the group, that it is of
  std::uint64_t flags = 0;
  std::uint64_t count = 0;
  std::uint64_t verdict_size = 0;
  std::uint64_t declined = 0;  // the text tells a rank's own failure, not a mismatch found on the way up a tree
  std::uint64_t nonfinite = 0;
};
static_assert(std::is_trivially_copyable_v<Prefix> && sizeof(Prefix) % alignof(double) == 0);

Prefix prefix_of(const Parcel& parcel, int rank);
/// The text is filled up with zeros, so that what comes behind it lies as doubles do.
std::shared_ptr<const Bytes> pack(const Parcel& parcel, int rank);

// One as it arrived: all of it stays where it is. `rest` of the message begins with it.
struct Arrival {
  std::span<const std::byte> rest{};
  std::shared_ptr<const Bytes> bytes{};  // whose memory that is; null where ranks share it

  explicit operator bool() const noexcept { return rest.data() != nullptr; }
  bool is_shared() const noexcept { return *this && bytes == nullptr; }
  const Prefix& prefix() const noexcept { return *reinterpret_cast<const Prefix*>(rest.data()); }
  /// With prefix, payload and text.
  std::span<const std::byte> whole() const noexcept {
    return rest.first(sizeof(Prefix) + prefix().count * sizeof(double) + prefix().verdict_size);
  }
  /// What comes behind it in the message.
  std::span<const std::byte> behind() const noexcept { return rest.subspan(whole().size()); }
  std::string verdict() const {
    const auto* const text = reinterpret_cast<const char*>(payload() + prefix().count * sizeof(double));
    return {text, strnlen(text, prefix().verdict_size)};
  }
  /// Equal headers have equal lengths: ranks that are out of step may break that.
  void expect_length(std::span<const double> sum) const {
    expect(prefix().count == sum.size(), Code::transport, [&] {
      return "a message has " + std::to_string(prefix().count) + " doubles, must have " + std::to_string(sum.size());
    });
  }
  const std::byte* payload() const noexcept { return rest.data() + sizeof(Prefix); }
  void merge_into(std::span<double> sum) const {
    expect_length(sum);
    merge_payload(prefix().header, sum, payload());
  }
  void copy_to(std::span<double> sum) const {
    expect_length(sum);
    if (!sum.empty()) std::memcpy(sum.data(), payload(), sum.size_bytes());
  }
};

/// Merges payloads of sum.size() doubles each, in their order, as the header of all says; see Message.
void merge_all(std::span<const Arrival> arrivals, std::span<double> sum);

// What is told of so many bytes that `from` has sent.
std::string not_a_message(const std::string& from, std::size_t bytes);

// The one that begins with `rest` of a message. `from()`: how errors call the rank that it came from. Throws transport
// for what is not a message, and mismatch for one of another version.
Arrival unpack(std::span<const std::byte> rest, std::shared_ptr<const Bytes> bytes,
               const std::function<std::string()>& from);

}  // namespace allnorm
