// Files for TensorBoard, byte by byte.
#include "launch/files/event_file.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <string>

#include "files_support.hpp"

namespace allnorm::launch {
namespace {

using files_support::little;
using namespace std::string_literals;

// CRC-32C bit by bit, masked as TFRecord has it.
std::string masked(std::string_view data) {
  std::uint32_t crc = 0xffffffff;
  for (const char c : data) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  crc = ~crc;
  return little((crc >> 15 | crc << 17) + 0xa282ead8u, 4);
}

TEST(EventFile, ARecordIsLengthDataAndTheirChecksums) {
  EXPECT_EQ(masked("123456789"), little(0xc78ab0e5, 4));  // of the check value e3069283
  EXPECT_EQ(tf_record("123456789"), little(9, 8) + masked(little(9, 8)) + "123456789" + masked("123456789"));
  EXPECT_EQ(tf_record(""), little(0, 8) + masked(little(0, 8)) + masked(""));
}

TEST(EventFile, AnEventHasTimeStepAndScalars) {
  const std::string time = "\x09" + little(std::bit_cast<std::uint64_t>(1.5), 8);
  const std::string half = little(std::bit_cast<std::uint32_t>(0.5f), 4);
  EXPECT_EQ(scalars_event(1.5, 300, {{"loss", 0.5f}}),
            time + "\x10\xac\x02"s + "\x2a\x0d\x0a\x0b\x0a\x04loss\x15" + half);
  EXPECT_EQ(scalars_event(1.5, 0, {}), time + "\x10\0\x2a\0"s);
}

TEST(EventFile, ReplacesAnOlderOneAndSaysWhatCannotBeWritten) {
  const files_support::TemporaryFolder folder;
  const std::string run = folder / "a/b", path = run + "/events.out.tfevents.allnorm";
  EventFile(run).write(1, {{"x", 1.0f}});
  const std::size_t once = files_support::bytes_of(path).size();
  EventFile(run).write(1, {{"x", 1.0f}});
  const std::string bytes = files_support::bytes_of(path);
  EXPECT_EQ(bytes.size(), once);
  EXPECT_EQ(bytes.substr(0, 8), little(9 + 15, 8));
  EXPECT_EQ(bytes.substr(21, 15), "\x1a\x0d"s + "brain.Event:2");
  const std::string file = folder.put("file", "");
  files_support::expect_refused([&] { EventFile{file + "/run"}; }, file, "cannot be made");
}

}  // namespace
}  // namespace allnorm::launch
