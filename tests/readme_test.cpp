// The README's example is the program that the package tests build and run.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "places.hpp"

namespace readme_test {
namespace {

std::string contents(const std::string& name) {
  std::ifstream file(allnorm::test::of_project(name));
  EXPECT_TRUE(file.good()) << name;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(Readme, ShowsTheConsumersProgram) {
  const std::string readme = contents("README.md"), program = contents("tests/consumer/main.cpp");
  const std::string opening = "```cpp\n";
  const auto from = readme.find(opening);
  ASSERT_NE(from, std::string::npos);
  const auto to = readme.find("```\n", from + opening.size());
  const std::string shown = readme.substr(from + opening.size(), to - from - opening.size());
  EXPECT_EQ(shown, program.substr(program.find("#include")));  // without the comment above it
}

}  // namespace
}  // namespace readme_test
