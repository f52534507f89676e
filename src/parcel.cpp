#include "src/parcel.hpp"

#include <algorithm>
#include <utility>

#include "kernels/formulas.hpp"

namespace allnorm {

Prefix prefix_of(const Parcel& parcel, int rank) {
  const std::size_t text = (parcel.verdict.size() + sizeof(double) - 1) / sizeof(double) * sizeof(double);
  return {parcel.header,   static_cast<std::uint64_t>(rank), parcel.flags, parcel.payload.size(), text, parcel.declined,
          parcel.nonfinite};
}

std::shared_ptr<const Bytes> pack(const Parcel& parcel, int rank) {
  const Prefix prefix = prefix_of(parcel, rank);
  const auto bytes = std::make_shared<Bytes>(sizeof prefix + parcel.payload.size_bytes() + prefix.verdict_size);
  std::byte* to = bytes->data();
  const auto put = [&](const void* from, std::size_t size) {
    if (size > 0) std::memcpy(to, from, size);
    to += size;
  };
  put(&prefix, sizeof prefix);
  put(parcel.payload.data(), parcel.payload.size_bytes());
  put(parcel.verdict.data(), parcel.verdict.size());
  std::memset(to, 0, prefix.verdict_size - parcel.verdict.size());
  return bytes;
}

Arrival unpack(std::span<const std::byte> rest, std::shared_ptr<const Bytes> bytes,
               const std::function<std::string()>& from) {
  Prefix start;  // as far as there is one
  const std::size_t size = rest.size();
  if (size > 0) std::memcpy(&start, rest.data(), std::min(size, sizeof start));
  bool ours = start.header.get(Field::magic) == Header::magic_value;
  // These two fields are where they always were; the rest is another length in another version.
  const std::uint64_t version = start.header.get(Field::wire_version);
  expect(!ours || version == Header::version_value, Code::mismatch, [&] {
    return from() + ": another version of allnorm, whose messages are of wire version " + std::to_string(version) +
           ", must be of " + std::to_string(Header::version_value);
  });
  if ((ours = ours && size >= sizeof start)) {
    const std::size_t behind = size - sizeof start;
    ours = start.count <= behind / sizeof(double) && start.verdict_size <= behind - start.count * sizeof(double) &&
           start.verdict_size % sizeof(double) == 0;
  }
  expect(ours, Code::transport, [&] { return not_a_message(from(), bytes ? bytes->size() : size); });
  return {rest, std::move(bytes)};
}

std::string not_a_message(const std::string& from, std::size_t bytes) {
  return "a message from " + from + " has " + std::to_string(bytes) + " bytes and is not one of allnorm's";
}

namespace {

double value_at(const std::byte* payload, std::size_t i) {
  double value;
  std::memcpy(&value, payload + i * sizeof value, sizeof value);
  return value;
}

// How many doubles of a payload are moments.
std::size_t moments_in(const Header& header) {
  const std::size_t means = header.get(Field::moments);
  return means == 0 ? 0 : 1 + means + means * header.get(Field::co_moments);
}

void merge_moments(const Header& header, std::span<double> sum, const std::byte* payload) {
  const auto part = [payload](std::size_t i) { return value_at(payload, i); };
  const std::size_t means = header.get(Field::moments), width = header.get(Field::co_moments);
  const formulas::Merge merge(sum[0], part(0));
  if (merge.skips()) return;
  double *const mean = &sum[1], *const products = mean + means;
  const auto merge_products = [&](const auto w) {
    for (std::size_t block = 0; block < means; block += w)
      for (std::size_t row = block; row < block + w; ++row)
        for (std::size_t column = block; column < block + w; ++column) {
          const std::size_t at = row * w + column - block;
          products[at] = merge.products(products[at], part(1 + means + at), part(1 + row) - mean[row],
                                        part(1 + column) - mean[column]);
        }
  };
  sum[0] = merge.count;
  if (width == 1)
    merge_products(std::integral_constant<std::size_t, 1>{});  // one loop, in vectors
  else
    merge_products(width);
  for (std::size_t m = 0; m < means; ++m) mean[m] = merge.mean(mean[m], part(1 + m));
}

}  // namespace

void merge_payload(const Header& header, std::span<double> sum, const std::byte* payload) {
  if (sum.empty()) return;  // heads alone: what they say of moments is about records that go another way
  const std::size_t moments = moments_in(header);
  if (moments > 0) merge_moments(header, sum, payload);
  for (std::size_t i = moments; i < sum.size(); ++i) sum[i] += value_at(payload, i);
}

void merge_all(std::span<const Arrival> arrivals, std::span<double> sum) {
  if (sum.empty()) return;
  const Header& header = arrivals[0].prefix().header;
  const std::size_t moments = moments_in(header);
  std::fill_n(sum.begin(), moments, 0.0);  // those of no ranks
  if (moments > 0)
    for (const Arrival& arrival : arrivals) merge_moments(header, sum, arrival.payload());
  constexpr std::size_t most = 512;  // doubles that stay near while those of all ranks are added to them
  for (std::size_t begin = moments; begin < sum.size(); begin += most) {
    const std::size_t end = std::min(sum.size(), begin + most);
    for (std::size_t i = begin; i < end; ++i) sum[i] = 0.0 + value_at(arrivals[0].payload(), i);
    for (const Arrival& arrival : arrivals.subspan(1))
      for (std::size_t i = begin; i < end; ++i) sum[i] += value_at(arrival.payload(), i);
  }
}

}  // namespace allnorm
