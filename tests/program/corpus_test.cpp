// What fuzzing begins with, and what it has found, read again: each file whole, cut, and with a byte changed.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "places.hpp"
#include "tests/fuzz/targets.hpp"

namespace allnorm::test {
namespace {

std::vector<std::byte> bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// A fault ends the process: to return is to pass.
TEST(Corpus, IsReadOrRefused) {
  for (const fuzz::Target& target : fuzz::targets()) {
    SCOPED_TRACE(target.name);
    int files = 0;
    for (const auto& entry :
         std::filesystem::directory_iterator(of_project("tests/fuzz/corpus/" + std::string(target.name)))) {
      std::vector<std::byte> bytes = bytes_of(entry.path());
      target.read(bytes);
      const std::size_t step = bytes.size() / 64 + 1;
      for (std::size_t at = 0; at < bytes.size(); at += step) {
        target.read(std::span(bytes).first(at));
        const std::byte before = bytes[at];
        for (const unsigned bit : {0x01u, 0x80u}) {
          bytes[at] = before ^ static_cast<std::byte>(bit);
          target.read(bytes);
        }
        bytes[at] = before;
      }
      ++files;
    }
    EXPECT_GE(files, 2);
  }
}

}  // namespace
}  // namespace allnorm::test
