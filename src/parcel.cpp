#include "src/parcel.hpp"

#include <algorithm>
#include <utility>

#include "kernels/formulas.hpp"

namespace allnorm {

std::shared_ptr<const Bytes> pack(const Parcel& parcel, int rank) {
  const Prefix prefix{parcel.header,         static_cast<std::uint64_t>(rank),
                      parcel.flags,          parcel.payload.size(),
                      parcel.verdict.size(), parcel.declined,
                      parcel.nonfinite};
  const auto bytes = std::make_shared<Bytes>(sizeof prefix + parcel.payload.size_bytes() + parcel.verdict.size());
  std::byte* to = bytes->data();
  const auto put = [&](const void* from, std::size_t size) {
    if (size > 0) std::memcpy(to, from, size);
    to += size;
  };
  put(&prefix, sizeof prefix);
  put(parcel.payload.data(), parcel.payload.size_bytes());
  put(parcel.verdict.data(), parcel.verdict.size());
  return bytes;
}

Arrival unpack(std::shared_ptr<const Bytes> bytes, std::size_t first, const std::function<std::string()>& from) {
  Arrival arrival{std::move(bytes), first + sizeof(Prefix), {}};
  const std::size_t size = arrival.bytes->size() - first;
  if (size > 0) std::memcpy(&arrival.prefix, arrival.bytes->data() + first, std::min(size, sizeof(Prefix)));
  const Header& header = arrival.prefix.header;
  bool ours = header.get(Field::magic) == Header::magic_value;
  // These two fields are where they always were; the rest is another length in another version.
  const std::uint64_t version = header.get(Field::wire_version);
  expect(!ours || version == Header::version_value, Code::mismatch, [&] {
    return from() + ": another version of allnorm, whose messages are of wire version " + std::to_string(version) +
           ", must be of " + std::to_string(Header::version_value);
  });
  if ((ours = ours && size >= sizeof(Prefix))) {
    const std::size_t rest = size - sizeof(Prefix);
    ours = arrival.prefix.count <= rest / sizeof(double) &&
           arrival.prefix.verdict_size <= rest - arrival.prefix.count * sizeof(double);
  }
  expect(ours, Code::transport, [&] {
    return "a message from " + from() + " has " + std::to_string(arrival.bytes->size()) +
           " bytes and is not one of allnorm's";
  });
  return arrival;
}

void merge_payload(const Header& header, std::span<double> sum, const std::byte* payload) {
  if (sum.empty()) return;  // heads alone: what they say of moments is about records that go another way
  const auto part = [payload](std::size_t i) {
    double value;
    std::memcpy(&value, payload + i * sizeof value, sizeof value);
    return value;
  };
  const std::size_t means = header.get(Field::moments), width = header.get(Field::co_moments);
  std::size_t i = 0;  // of what is added
  if (means > 0) {
    i = 1 + means + means * width;
    const formulas::Merge merge(sum[0], part(0));
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
    if (!merge.skips()) {
      sum[0] = merge.count;
      if (width == 1)
        merge_products(std::integral_constant<std::size_t, 1>{});  // one loop, in vectors
      else
        merge_products(width);
      for (std::size_t m = 0; m < means; ++m) mean[m] = merge.mean(mean[m], part(1 + m));
    }
  }
  for (; i < sum.size(); ++i) sum[i] += part(i);
}

}  // namespace allnorm
