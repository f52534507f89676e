#include "places.hpp"

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace allnorm::test {

std::string of_project(const std::string& path) { return ALLNORM_SOURCE_DIR "/" + path; }

std::string program() {
  const char* const moved = std::getenv("ALLNORM_PROGRAM");
  return moved != nullptr ? moved : ALLNORM_PROGRAM;
}

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace allnorm::test
