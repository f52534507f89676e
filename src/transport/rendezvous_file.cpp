// Ranks meet in a file.
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "src/transport/rendezvous.hpp"

namespace allnorm {

namespace {

constexpr char first_line[] = "allnorm rendezvous 1";

std::string in_hex(const std::vector<std::byte>& bytes) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : bytes) {
    text += digits[std::to_integer<unsigned>(byte) >> 4];
    text += digits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

std::vector<std::byte> from_hex(const std::string& text) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < text.size() && digit(text[i]) >= 0 && digit(text[i + 1]) >= 0; i += 2)
    bytes.push_back(static_cast<std::byte>(digit(text[i]) * 16 + digit(text[i + 1])));
  return bytes;
}

}  // namespace

std::vector<std::byte> meet_in_file(const std::string& path, const std::string& run, int rank,
                                    const std::vector<std::byte>& bytes, const Patience& patience) {
  expect(!run.empty() && run.find('\n') == std::string::npos, Code::invalid_argument,
         "the run of a rendezvous in a file is empty or has several lines, must be one line that no other run has");
  if (rank == 0) {
    const std::string part = path + "." + std::to_string(::getpid());
    std::ofstream file(part);
    file << first_line << '\n' << run << '\n' << in_hex(bytes) << '\n';
    file.close();
    const bool written = static_cast<bool>(file) && std::rename(part.c_str(), path.c_str()) == 0;
    if (!written) std::remove(part.c_str());
    expect(written, Code::transport, [&] { return path + " cannot be written, must be where all ranks see it"; });
    return bytes;
  }
  Deadline deadline(patience, patience.first_timeout);
  for (;;) {
    std::string why = "is not there";
    if (std::ifstream file(path); file) {
      std::string head, theirs, text;
      std::getline(file, head);
      std::getline(file, theirs);
      std::getline(file, text);
      expect(head == first_line, Code::invalid_input,
             [&] { return path + " is another file, must be one that rank 0 may write"; });
      std::vector<std::byte> received = from_hex(text);
      if (theirs == run && !received.empty() && received.size() * 2 == text.size()) return received;
      why = theirs == run ? "is not whole" : "is of run " + theirs;
    }
    expect(!deadline.over(), Code::timeout, [&] {
      return path + " " + why + ", must be of run " + run + ": rank 0 has not written it after " + deadline.text();
    });
    deadline.relax();
  }
}

}  // namespace allnorm
