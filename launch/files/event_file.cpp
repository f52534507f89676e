#include "launch/files/event_file.hpp"

#include <bit>
#include <chrono>
#include <filesystem>
#include <system_error>

#include <boost/crc.hpp>

#include "launch/files/input_file.hpp"

namespace allnorm::launch {

namespace {

std::string little_endian(std::uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> 8 * i & 0xff);
  return text;
}

// CRC-32C (Castagnoli), turned and shifted so that the checksum of data with checksums in it is none of these.
std::string masked_crc(std::string_view data) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(data.data(), data.size());
  const auto sum = static_cast<std::uint32_t>(crc.checksum());
  return little_endian(std::rotr(sum, 15) + 0xa282ead8u, 4);
}

// ---- Protocol Buffers, as far as these messages need them -----------------------------------------------------------

std::string varint(std::uint64_t value) {
  std::string text;
  for (; value >= 0x80; value >>= 7) text += static_cast<char>((value & 0x7f) | 0x80);
  return text + static_cast<char>(value);
}
enum class Wire { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };
std::string key(int field, Wire wire) {
  return varint(static_cast<std::uint64_t>(field << 3 | static_cast<int>(wire)));
}
std::string bytes_field(int field, std::string_view bytes) {
  return key(field, Wire::bytes) + varint(bytes.size()) + std::string(bytes);
}
std::string double_field(int field, double value) {
  return key(field, Wire::fixed64) + little_endian(std::bit_cast<std::uint64_t>(value), 8);
}
std::string float_field(int field, float value) {
  return key(field, Wire::fixed32) + little_endian(std::bit_cast<std::uint32_t>(value), 4);
}

// tensorflow.Event: wall_time = 1, step = 2, file_version = 3, summary = 5; its Summary: value = 1; Summary.Value:
// tag = 1, simple_value = 2.
constexpr int wall_time = 1, step_field = 2, file_version = 3, summary_field = 5, value_field = 1, tag = 1,
              simple_value = 2;

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

std::string tf_record(std::string_view data) {
  const std::string length = little_endian(data.size(), 8);
  return length + masked_crc(length) + std::string(data) + masked_crc(data);
}

std::string scalars_event(double time, std::int64_t step, const Scalars& scalars) {
  std::string summary;
  for (const auto& [name, value] : scalars)
    summary += bytes_field(value_field, bytes_field(tag, name) + float_field(simple_value, value));
  return double_field(wall_time, time) + key(step_field, Wire::varint) + varint(static_cast<std::uint64_t>(step)) +
         bytes_field(summary_field, summary);
}

EventFile::EventFile(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) bad_file(folder, "cannot be made: " + error.message());
  file_ = GrowingFile(folder + "/events.out.tfevents.allnorm");
  file_.append(tf_record(double_field(wall_time, now()) + bytes_field(file_version, "brain.Event:2")));
}

void EventFile::write(std::int64_t step, const Scalars& scalars) {
  file_.append(tf_record(scalars_event(now(), step, scalars)));
}

}  // namespace allnorm::launch
