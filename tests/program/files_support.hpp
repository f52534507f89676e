// What the tests of file formats share: a temporary folder, bytes written by hand, and files damaged at random.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>

#include "allnorm/error.hpp"

namespace files_support {

/// A folder that lives as long as the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "allnorm-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder can be made");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  /// Writes a file without the code under test and returns its path.
  std::string put(std::string_view name, std::string_view bytes) const {
    std::string path = *this / name;
    std::filesystem::remove(path);  // file systems flush a file that is truncated and rewritten, which takes long
    std::ofstream(path, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path;
  }
  /// How many entries the folder has, hidden ones included.
  std::size_t entries() const {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
  }

 private:
  std::string path_;
};

inline std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// A number as `count` bytes.
inline std::string little(std::uint64_t value, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += static_cast<char>(value >> (8 * i) & 0xff);
  return text;
}
inline std::string big(std::uint64_t value, int count) {
  const std::string text = little(value, count);
  return {text.rbegin(), text.rend()};
}

/// Expects that `read` throws invalid_input, in one line that starts with `path` and contains `part`.
template <class Read>
void expect_refused(Read&& read, const std::string& path, std::string_view part) {
  try {
    read();
    ADD_FAILURE() << path << " was accepted, must be refused: " << part;
  } catch (const allnorm::Error& error) {
    EXPECT_EQ(error.code(), allnorm::Code::invalid_input);
    EXPECT_EQ(error.message().rfind(path, 0), 0u) << error.message();
    EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
    EXPECT_EQ(error.message().find('\n'), std::string::npos) << error.message();
  }
}

/// Damages `valid` in `rounds` ways (bytes changed, removed, doubled, cut off) and calls read(damaged bytes) for each:
/// it may accept or throw invalid_input, anything else fails. Returns how many were refused.
template <class Read>
int damage(std::string_view valid, int rounds, unsigned seed, Read&& read) {
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % (n + 1)); };
  using namespace std::string_view_literals;
  constexpr std::string_view telling = "0123456789\0\xff{}[]()\"',:<>-. \n"sv;
  int refused = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string bytes(valid);
    for (std::size_t edits = 1 + below(2); edits > 0 && !bytes.empty(); --edits) {
      // Half of the edits fall into the first bytes, where the header lies.
      const std::size_t at =
          random() % 2 == 0 ? random() % bytes.size() : random() % std::min<std::size_t>(bytes.size(), 160);
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(random() & 0xff);
          break;
        case 1:
          bytes[at] = telling[random() % telling.size()];
          break;
        case 2:
          bytes.erase(at, 1 + below(8));
          break;
        case 3:
          bytes.insert(at, bytes.substr(random() % bytes.size(), 1 + below(40)));
          break;
        default:
          bytes.resize(at);
          break;
      }
    }
    try {
      read(bytes);
    } catch (const allnorm::Error& error) {
      ++refused;
      EXPECT_EQ(error.code(), allnorm::Code::invalid_input) << error.message();
      EXPECT_EQ(error.message().find('\n'), std::string::npos) << error.message();
    }
  }
  return refused;
}

}  // namespace files_support
