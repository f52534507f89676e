// What travels between ranks: one self-describing message for every exchange.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace allnorm {

/// What every rank of an exchange must agree on besides a layer's attributes, each in its own place, so that what
/// differs can be named. src/message.cpp has the table of their names and formats.
// clang-format off
enum class Field : std::uint8_t {
  magic, wire_version, direction, kind, call,  // which exchange this is
  ranks, channels, groups, dtype,              // of every layer; one of channels and groups is 0
  inference, r_max, d_max, minibatch, entries,  // what changes from call to call
  weight_hash, running_hash, history_hash,     // what must have the same bits
  moments, co_moments, payload,                // what the payload is
  count
};
// clang-format on

/// Which exchange of a layer or a program it is.
enum class Direction : std::uint8_t { forward, backward, gradients, agreement, split };

/// A layer's (or the caller's) name, the agreed fields and the agreed attributes, 64 bits each: integers as they are,
/// doubles as their bits, lists as a hash.
struct Header {
  static constexpr std::uint64_t magic_value = 0x6d726f6e6c6c61;  ///< "allnorm"
  static constexpr std::uint64_t version_value = 5;               ///< of the wire
  static constexpr std::size_t name_size = 56;                    ///< bytes, the 0 included
  static constexpr std::size_t attributes_size = 24;              ///< most attributes of a row that ranks agree on

  std::array<char, name_size> name{};                                         ///< 0-terminated, cut to fit
  std::array<std::uint64_t, static_cast<std::size_t>(Field::count)> words{};  ///< by Field
  /// Those of the layer's row that ranks must agree on, in its order: write_layer() of catalogue.hpp.
  std::array<std::uint64_t, attributes_size> attributes{};

  Header() = default;
  /// Of a call of that number; the other fields are 0.
  Header(std::string_view name, Direction direction, std::uint64_t call);

  /// A field's word.
  constexpr std::uint64_t get(Field field) const noexcept { return words[static_cast<std::size_t>(field)]; }
  /// Sets a field to an integer.
  constexpr void set(Field field, std::uint64_t value) noexcept { words[static_cast<std::size_t>(field)] = value; }
  /// Sets a field to a double's bits.
  constexpr void set(Field field, double value) noexcept { set(field, std::bit_cast<std::uint64_t>(value)); }
  /// Name, words and attributes have the same bits.
  friend bool operator==(const Header&, const Header&) noexcept = default;
};

/// "batch_norm, call 3, forward".
std::string describe(const Header& header);
/// The fields of `other` that differ from `first`, the header of the rank of that name ("rank 0"): "eps is 0.001, must
/// be 1e-05 as on rank 0; ...". Empty when equal. Where the two belong to different exchanges, only what says so is
/// listed.
std::string differences(const Header& first, std::string_view first_name, const Header& other);

/// Bits of a rank's own, for callers, that are not summed: the result has their union, `Message::rank_flags` each
/// rank's. flag_nonfinite: the rank's moments are not finite.
enum Flag : std::uint64_t { flag_nonfinite = 1, flag_stop = 2, flag_weights_changed = 4, flag_declined = 8 };

/// A set of ranks in one word: a bit each, but those from 63 on share the last.
constexpr std::uint64_t rank_bit(int rank) noexcept { return std::uint64_t{1} << (rank < 63 ? rank : 63); }

/// Header, payload and flags. The payload is added over the ranks. Where the header's `moments` = G is not 0, it begins
/// with moments that are merged instead: [number of values][their mean (G)][sums of products of their differences from
/// it (G, w)], w = co_moments: of the means in blocks of w, each difference with each of its block; w = 1 are squares.
struct Message {
  Header header{};                ///< what all ranks must agree on
  std::vector<double> payload{};  ///< moments, if any, and what is added over the ranks
  std::uint64_t flags = 0;        ///< see Flag
  /// Of a received message: every rank's flags; empty beyond the gathering limit.
  std::vector<std::uint64_t> rank_flags{};
  /// Of a received message: the ranks with flag_nonfinite, see rank_bit().
  std::uint64_t nonfinite = 0;
};

/// A message as kernels write and read it, in memory of a queue's device: this head, then `count` doubles.
struct RecordHead {
  static constexpr std::size_t reason_size = 192;  ///< bytes, the 0 included

  Header header{};          ///< as of a Message
  std::uint64_t flags = 0;  ///< see Flag
  std::uint64_t count = 0;  ///< doubles that follow
  /// With flag_declined: why this rank cannot take part; 0-terminated, cut to fit. Its peers throw aborted with it,
  /// whatever else the record says.
  std::array<char, reason_size> reason{};

  RecordHead() = default;
  /// That of a rank that takes part.
  RecordHead(const Header& own_header, std::uint64_t own_flags, std::uint64_t doubles)
      : header(own_header), flags(own_flags), count(doubles) {}
  /// That of a rank that declines.
  RecordHead(const Header& own_header, std::string_view why);
};
static_assert(sizeof(RecordHead) % alignof(double) == 0);

/// The part of one 64-bit word in the hash of an array, which tells whether two ranks hold the same values: the hash is
/// the sum of the parts modulo 2^64, so that it can be summed in any order. A permuted splitmix64 step.
constexpr std::uint64_t hash_part(std::uint64_t word, std::uint64_t position) noexcept {
  std::uint64_t z = word + (position + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
/// The same of a double's bits.
constexpr std::uint64_t hash_part(double value, std::uint64_t position) noexcept {
  return hash_part(std::bit_cast<std::uint64_t>(value), position);
}

/// A 64-bit hash of `size` bytes on the host, to tell whether two ranks hold the same ones (FNV-1a over 64-bit words).
std::uint64_t hash_of(const void* bytes, std::size_t size, std::uint64_t seed = 0xcbf29ce484222325u) noexcept;

}  // namespace allnorm
