// The safetensors format: reading and writing.
#include "launch/files/safetensors.hpp"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "launch/files/input_file.hpp"
#include "launch/files/safetensors_header.hpp"

namespace allnorm::launch {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data are little endian and copied as they are");

constexpr std::uint64_t longest_safetensors_header = 100'000'000;  // bytes, the reference implementation's limit
constexpr std::size_t length_bytes = 8;                            // the file starts with the header's length

// ---- checksums ------------------------------------------------------------------------------------------------------

// CRC-32 in the metadata, as text: of each tensor's data under "allnorm.crc32:NAME", and of everything in the header
// under "allnorm.crc32". Other programs read such a file as any other; a file without sums is read as it is.
constexpr std::string_view header_sum_key = "allnorm.crc32", tensor_sum_prefix = "allnorm.crc32:";

std::uint32_t crc32_of(std::uint32_t before, std::string_view bytes) {
  return static_cast<std::uint32_t>(crc32_z(before, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

std::string sum_text(std::uint32_t sum) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (int shift = 28; shift >= 0; shift -= 4) text += digits[sum >> shift & 15];
  return text;
}

std::string sum_of(std::span<const std::byte> data) {
  return sum_text(crc32_of(0, {reinterpret_cast<const char*>(data.data()), data.size()}));
}

// Of the content, not of its text: the metadata but for this sum, and the tensors' names, types and shapes by name.
std::string header_sum(const std::map<std::string, std::string>& metadata, std::vector<const StoredTensor*> tensors) {
  std::uint32_t sum = 0;
  const auto add = [&sum](std::string_view text) {
    sum = crc32_of(sum, std::to_string(text.size()) + ":");
    sum = crc32_of(sum, text);
  };
  for (const auto& [key, value] : metadata) {
    if (key == header_sum_key) continue;
    add(key);
    add(value);
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const StoredTensor* a, const StoredTensor* b) { return a->name < b->name; });
  for (const StoredTensor* tensor : tensors) {
    add(tensor->name);
    add(tensor->dtype);
    add(to_string(tensor->shape));
  }
  return sum_text(sum);
}

std::vector<const StoredTensor*> pointers(const TensorFile& content) {
  std::vector<const StoredTensor*> all;
  for (const StoredTensor& tensor : content.tensors) all.push_back(&tensor);
  return all;
}

std::map<std::string, std::string> with_sums(const TensorFile& content) {
  auto metadata = content.metadata;
  for (const StoredTensor& tensor : content.tensors)
    metadata[std::string(tensor_sum_prefix) + tensor.name] = sum_of(tensor.data);
  metadata[std::string(header_sum_key)] = header_sum(metadata, pointers(content));
  return metadata;
}

// Checks the sums and takes them out of the metadata.
void check_sums(TensorFile& content) {
  auto& metadata = content.metadata;
  const auto is_sum = [](const auto& entry) { return entry.first.starts_with(header_sum_key); };
  if (std::none_of(metadata.begin(), metadata.end(), is_sum)) return;
  const auto expect_sum = [&](const std::string& what, const std::string& key, const std::string& sum) {
    const auto written = metadata.find(key);
    const std::string must = written == metadata.end() ? "none" : written->second;
    if (sum != must)
      bad_file(content.file, what + " has the checksum " + sum + ", must have " + printable(must) +
                                 " as it was written: the file is damaged");
  };
  expect_sum("metadata", std::string(header_sum_key), header_sum(metadata, pointers(content)));
  for (const StoredTensor& tensor : content.tensors)
    expect_sum("tensor " + printable(tensor.name), std::string(tensor_sum_prefix) + tensor.name, sum_of(tensor.data));
  std::erase_if(metadata, is_sum);
}

// ---- the format -----------------------------------------------------------------------------------------------------

// Checks an entry by itself: the dtype is known and the offsets span what the shape needs.
void check_entry(const SafetensorsEntry& entry, const std::string& path) {
  const std::string tensor = "tensor " + printable(entry.name);
  const auto type = safetensors_type(entry.dtype);
  if (!type) bad_file(path, tensor + " has the dtype " + printable(entry.dtype) + ", must have a known one, as F32");
  const auto bytes = storage_bytes(entry.shape, type->bytes);
  if (!bytes) bad_file(path, tensor + " has a shape of more than 2^63-1 bytes, must have at most that");
  const auto [begin, end] = entry.offset;
  if (end < begin || static_cast<std::uint64_t>(end - begin) != *bytes)
    bad_file(path, tensor + " has the data_offsets " + std::to_string(begin) + " and " + std::to_string(end) +
                       ", must be " + std::to_string(*bytes) + " bytes apart");
}

// One entry of the header; json does the quoting, and refuses names that are not UTF-8.
std::string entry_text(const StoredTensor& tensor, std::uint64_t begin) {
  std::string text = nlohmann::json(tensor.name).dump() + ":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[";
  for (int i = 0; i < tensor.shape.rank(); ++i) text += (i > 0 ? "," : "") + std::to_string(tensor.shape[i]);
  return text + "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(begin + tensor.data.size()) +
         "]}";
}

void check_content(const TensorFile& content, const std::string& path) {
  std::set<std::string_view> names{"__metadata__"};  // taken by the format
  for (const StoredTensor& tensor : content.tensors) {
    const std::string who = "tensor " + printable(tensor.name);
    if (!names.insert(tensor.name).second) bad_file(path, who + " has a name that is taken, must have its own");
    const auto type = safetensors_type(tensor.dtype);
    if (!type) bad_file(path, who + " has the dtype " + printable(tensor.dtype) + ", must have a known one, as F32");
    const auto bytes = storage_bytes(std::span(tensor.shape.begin(), tensor.shape.end()), type->bytes);
    if (!bytes || *bytes != tensor.data.size())
      bad_file(path, who + " holds " + std::to_string(tensor.data.size()) + " bytes, must hold as many as its shape " +
                         to_string(tensor.shape) + " needs");
  }
}

std::string header_text(const std::vector<const StoredTensor*>& order,
                        const std::map<std::string, std::string>& metadata, const std::string& path) {
  try {
    std::string text = "{\"__metadata__\":" + nlohmann::json(metadata).dump();
    std::uint64_t begin = 0;
    for (const StoredTensor* tensor : order) {
      text += ',' + entry_text(*tensor, begin);
      begin += tensor->data.size();
    }
    return text + "}";
  } catch (const nlohmann::json::type_error&) {
    bad_file(path, "has a name or text that is not UTF-8, must be UTF-8");
  }
}

}  // namespace

const StoredTensor* TensorFile::find(std::string_view name) const noexcept {
  for (const StoredTensor& tensor : tensors)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

const StoredTensor& TensorFile::require(std::string_view name, std::string_view dtype, const Shape& shape) const {
  const StoredTensor* tensor = find(name);
  if (tensor == nullptr) bad_file(file, "lacks the tensor " + printable(name) + ", must have it");
  if (tensor->dtype != dtype)
    bad_file(file,
             "tensor " + printable(name) + " has the dtype " + tensor->dtype + ", must have " + std::string(dtype));
  if (!(tensor->shape == shape))
    bad_file(file, "tensor " + printable(name) + " has the shape " + to_string(tensor->shape) + ", must have " +
                       to_string(shape));
  return *tensor;
}

TensorFile read_safetensors(const std::string& path) {
  InputFile file(path);
  std::array<std::uint8_t, length_bytes> length_text{};  // little endian
  file.read(std::as_writable_bytes(std::span(length_text)));
  const auto length = std::bit_cast<std::uint64_t>(length_text);
  if (length > longest_safetensors_header || length > file.remaining())
    bad_file(path, "has a safetensors header of " + std::to_string(length) + " bytes, must have at most " +
                       std::to_string(std::min(longest_safetensors_header, file.remaining())));
  SafetensorsHeader header;
  {
    std::string text(static_cast<std::size_t>(length), ' ');
    file.read(std::as_writable_bytes(std::span(text)));
    header = parse_safetensors_header(text, path);
  }

  // Sorted by place, each tensor must begin where the one before ended, and the last must end with the file.
  std::sort(header.entries.begin(), header.entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.offset, a.name) < std::tie(b.offset, b.name);
  });
  std::int64_t end = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    check_entry(entry, path);
    if (entry.offset[0] != end)
      bad_file(path, "tensor " + printable(entry.name) + " begins at byte " + std::to_string(entry.offset[0]) +
                         " of the data, must begin at " + std::to_string(end));
    end = entry.offset[1];
  }
  if (static_cast<std::uint64_t>(end) != file.remaining())
    bad_file(path, "has " + std::to_string(file.remaining()) + " bytes of data, must have " + std::to_string(end));

  TensorFile content;
  content.file = path;
  content.metadata = std::move(header.metadata);
  content.tensors.reserve(header.entries.size());
  for (SafetensorsEntry& entry : header.entries) {
    std::vector<std::byte> data(static_cast<std::size_t>(entry.offset[1] - entry.offset[0]));
    file.read(data);
    content.tensors.push_back({std::move(entry.name), std::move(entry.dtype), Shape(entry.shape), std::move(data)});
  }
  check_sums(content);
  return content;
}

void write_safetensors(AtomicFile& file, const TensorFile& content) {
  check_content(content, file.path());
  std::vector<const StoredTensor*> order = pointers(content);
  std::sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
    const std::size_t first = safetensors_type(a->dtype)->order, second = safetensors_type(b->dtype)->order;
    return first != second ? first > second : a->name < b->name;
  });
  std::string text = header_text(order, with_sums(content), file.path());
  text.append((length_bytes - text.size() % length_bytes) % length_bytes, ' ');  // aligns the data
  if (text.size() > longest_safetensors_header)
    bad_file(file.path(), "would get a header of " + std::to_string(text.size()) + " bytes, must get at most " +
                              std::to_string(longest_safetensors_header));
  const auto length = std::bit_cast<std::array<std::byte, length_bytes>>(static_cast<std::uint64_t>(text.size()));
  file.write(length);
  file.write(text);
  for (const StoredTensor* tensor : order) file.write(tensor->data);
}

void write_safetensors(const std::string& path, const TensorFile& content) {
  AtomicFile file(path);
  write_safetensors(file, content);
  file.commit();
}

}  // namespace allnorm::launch
