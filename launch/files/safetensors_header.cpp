// The JSON text at the start of a safetensors file.
#include "launch/files/safetensors_header.hpp"

#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "allnorm/tensor.hpp"
#include "launch/files/input_file.hpp"

namespace allnorm::launch {
namespace {

using nlohmann::json;

// Accepts {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"key": "text"}} and
// nothing else. Each event is allowed or refused by the place that it comes at.
class HeaderEvents : public nlohmann::json_sax<json> {
 public:
  explicit HeaderEvents(const std::string& path) : path_(path) {}

  SafetensorsHeader take_header() { return std::move(header_); }

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { unexpected("a number that is no 64-bit integer"); }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::shape && place_ != Place::offsets) unexpected("a number");
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max()))
      unexpected("a number over 2^63-1");
    const auto number = static_cast<std::int64_t>(value);
    if (place_ == Place::shape) {
      if (entry().shape.size() == static_cast<std::size_t>(Shape::max_rank))
        bad("tensor " + printable(entry().name) + " has more than " + std::to_string(Shape::max_rank) +
            " axes, must have at most that");
      entry().shape.push_back(number);
    } else {
      if (offsets_ == entry().offset.size()) bad_offsets("more than 2");
      entry().offset[offsets_++] = number;
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata)
      header_.metadata[key_] = value;
    else if (place_ == Place::tensor && key_ == "dtype")
      entry().dtype = value;
    else
      unexpected("text");
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::root;
    } else if (place_ == Place::root && key_ == metadata_key) {
      place_ = Place::metadata;
    } else if (place_ == Place::root) {
      place_ = Place::tensor;
      header_.entries.push_back({key_, {}, {}, {}});
      seen_.clear();
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor)
      for (const char* key : {"dtype", "shape", "data_offsets"})
        if (!seen_.contains(key)) bad("tensor " + printable(entry().name) + " lacks '" + key + "', must have it");
    place_ = place_ == Place::root ? Place::outside : Place::root;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::tensor && key_ == "shape") {
      place_ = Place::shape;
    } else if (place_ == Place::tensor && key_ == "data_offsets") {
      place_ = Place::offsets;
      offsets_ = 0;
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::offsets && offsets_ != entry().offset.size()) bad_offsets(std::to_string(offsets_));
    place_ = Place::tensor;
    return true;
  }

  bool key(string_t& value) override {
    // Metadata remember their own keys; tensors have few; names are kept apart from both.
    const bool first = place_ == Place::root       ? names_.insert(value).second
                       : place_ == Place::metadata ? !header_.metadata.contains(value)
                                                   : seen_.insert(value).second;
    if (!first) bad("has the key " + printable(value) + " twice, must have it once");
    if (place_ == Place::tensor && value != "dtype" && value != "shape" && value != "data_offsets")
      bad("tensor " + printable(entry().name) + " has the key " + printable(value) +
          ", must have dtype, shape and data_offsets only");
    key_ = value;
    return true;
  }

  // The library's own message is not passed on: it quotes the file byte by byte.
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    bad("is not JSON at its byte " + std::to_string(position) + ", must be");
  }

 private:
  enum class Place { outside, root, tensor, shape, offsets, metadata };
  static constexpr const char* metadata_key = "__metadata__";

  [[noreturn]] void bad(const std::string& what) const { bad_file(path_, "the safetensors header: " + what); }
  [[noreturn]] void bad_offsets(const std::string& count) const {
    bad("tensor " + printable(header_.entries.back().name) + " has " + count + " data_offsets, must have 2");
  }
  [[noreturn]] void unexpected(const std::string& what) const {
    const char* wanted = place_ == Place::outside                     ? "an object"
                         : place_ == Place::root                      ? "an object"
                         : place_ == Place::metadata                  ? "text"
                         : place_ == Place::tensor && key_ == "dtype" ? "text"
                         : place_ == Place::tensor                    ? "an array"
                                                                      : "an integer from 0 to 2^63-1";
    const std::string at = place_ == Place::outside ? "" : " at " + printable(key_);
    bad("has " + what + at + ", must have " + wanted);
  }
  SafetensorsEntry& entry() { return header_.entries.back(); }

  const std::string& path_;
  SafetensorsHeader header_;
  Place place_ = Place::outside;
  std::string key_;              // the last one read
  std::set<std::string> names_;  // keys of the root
  std::set<std::string> seen_;   // keys of the current tensor
  std::size_t offsets_ = 0;      // how many of the current tensor's data_offsets were read
};

struct DtypeRow {
  std::string_view name;
  std::size_t bytes;
};
constexpr DtypeRow dtype_rows[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                                   {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
                                   {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& path) {
  if (!text.starts_with('{')) bad_file(path, "the safetensors header: does not start with '{', must do so");
  // The JSON parser takes a zero byte for the end of the text.
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos)
    bad_file(path, "the safetensors header: has a zero at its byte " + std::to_string(zero) + ", must be JSON");
  HeaderEvents events(path);
  json::sax_parse(text.begin(), text.end(), &events);
  return events.take_header();
}

std::optional<SafetensorsType> safetensors_type(std::string_view dtype) noexcept {
  for (std::size_t i = 0; i < std::size(dtype_rows); ++i)
    if (dtype_rows[i].name == dtype) return SafetensorsType{i, dtype_rows[i].bytes};
  return std::nullopt;
}

}  // namespace allnorm::launch
