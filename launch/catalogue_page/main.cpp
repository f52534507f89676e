// `catalogue_page DOCS`: writes docs/catalogue.md and its pictures. `catalogue_page --check DOCS`: says which of them
// are not what it would write.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>

#include "allnorm/catalogue.hpp"
#include "launch/catalogue_page/page.hpp"
#include "launch/catalogue_page/picture.hpp"
#include "launch/guard.hpp"
#include "launch/ranks.hpp"

namespace {

using namespace allnorm;
namespace fs = std::filesystem;

std::map<std::string, std::string> files() {
  std::map<std::string, std::string> all{{"catalogue.md", launch::page::catalogue_page()}};
  for (const Row& row : catalogue()) all["catalogue/" + std::string(row.name) + ".svg"] = launch::page::picture_of(row);
  return all;
}

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int run(const launch::Arguments& words) {
  const bool check = words.size() == 2 && words[0] == "--check";
  expect(check || (words.size() == 1 && !words[0].starts_with("-")), Code::invalid_argument,
         "arguments must be [--check] DOCS, the folder of the page");
  const fs::path docs = words.back();
  int wrong = 0;
  if (!check) fs::create_directories(docs / "catalogue");
  for (const auto& [name, text] : files()) {
    if (check) {
      if (content(docs / name) == text) continue;
      std::cout << (docs / name).string() << " is not as the catalogue is, must be made anew: catalogue_page docs\n";
      ++wrong;
    } else {
      std::ofstream(docs / name, std::ios::binary) << text;
      expect(content(docs / name) == text, Code::invalid_input,
             [&] { return (docs / name).string() + ": cannot be written"; });
    }
  }
  return wrong == 0 ? launch::exit_success : launch::exit_failure;
}

}  // namespace

int main(int argc, char** argv) { return launch::guard(argc, argv, run); }
