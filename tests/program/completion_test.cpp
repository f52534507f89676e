// What the program says of its command line in other words: scripts for shells, the manual page, and lines that fit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "launch/vocabulary.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

bool installed(const char* program) {
  return std::system(("command -v " + std::string(program) + " >/dev/null 2>&1").c_str()) == 0;
}

// What bash offers for the words, of which the last is being typed: as readline has them, cut at '='.
std::vector<std::string> completed(const Workplace& place, std::vector<std::string> words) {
  std::string line;
  for (const std::string& word : words) line += " '" + word + "'";
  place.write_bytes("ask", "source ./script; COMP_WORDS=(" + line +
                               "); COMP_CWORD=" + std::to_string(words.size() - 1) +
                               "; compopt() { :; }; _allnorm; printf '%s\\n' \"${COMPREPLY[@]}\"");
  std::vector<std::string> offered;
  std::istringstream lines(place.run_other("bash ask").out);
  for (std::string word; std::getline(lines, word);)
    if (!word.empty()) offered.push_back(word);
  return offered;
}

using Offered = std::vector<std::string>;

TEST(Completion, OfBashKnowsWhatTheProgramKnows) {
  Workplace place;
  const Outcome script = place.run("completion bash");
  EXPECT_EQ(script.code, 0) << script.err;
  place.write_bytes("script", script.out);
  const auto offers = [&](std::vector<std::string> words) { return completed(place, std::move(words)); };
  EXPECT_EQ(offers({"allnorm", "app"}), Offered{"apply"});
  EXPECT_EQ(offers({"allnorm", "apply", "grou"}), Offered{"group_norm"});
  EXPECT_EQ(offers({"allnorm", "help", "apply", "grou"}), Offered{"group_norm"});
  EXPECT_EQ(offers({"allnorm", "help", "inf"}), Offered{"info"});
  EXPECT_EQ(offers({"allnorm", "apply", "group_norm", "--load"}), Offered{"--load-state"});
  EXPECT_EQ(offers({"allnorm", "apply", "group_norm", "--device", ""}), (Offered{"cpu", "cuda"}));
  EXPECT_EQ(offers({"allnorm", "apply", "group_norm", "--device", "=", "cu"}), Offered{"cuda"});
  EXPECT_EQ(offers({"allnorm", "apply", "group_norm", "--split", "ba"}), Offered{"batch"});
  EXPECT_EQ(offers({"allnorm", "apply", "group_norm", "--ranks", ""}), Offered{});
  EXPECT_EQ(offers({"allnorm", "apply", "group_norm", "--set", "gr"}), Offered{"groups="});
  EXPECT_EQ(offers({"allnorm", "apply", "layer_norm", "--set", "gr"}), Offered{});
  EXPECT_EQ(offers({"allnorm", "apply", "batch_norm", "--set", "training", "="}), (Offered{"true", "false"}));
  EXPECT_EQ(offers({"allnorm", "apply", "batch_norm", "--set", "sync", "=", "w"}), Offered{"world"});
  EXPECT_EQ(offers({"allnorm", "apply", "batch_norm", "--tensor", "wei"}), Offered{"weight="});
  EXPECT_EQ(offers({"allnorm", "apply", "batch_norm", "--input", "scr"}), Offered{"script"});
  EXPECT_EQ(offers({"allnorm", "completion", "f"}), Offered{"fish"});
}

TEST(Completion, OfAllShellsNamesEveryOptionAndLayerAndIsRead) {
  Workplace place;
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Outcome script = place.run("completion " + std::string(shell));
    ASSERT_EQ(script.code, 0) << script.err;
    for (const launch::Command& command : launch::commands())
      for (const launch::OptionWords& option : launch::options_of(command))
        EXPECT_NE(script.out.find(option.name.substr(2)), std::string::npos) << shell << ": " << option.name;
    for (const Row& row : catalogue()) EXPECT_NE(script.out.find(row.name), std::string::npos) << shell << row.name;
    if (!installed(shell)) continue;
    place.write_bytes("script", script.out);
    const Outcome read = place.run_other(std::string(shell) + " -n script");
    EXPECT_EQ(read.code, 0) << read.err;
    EXPECT_EQ(read.err, "");
  }
  EXPECT_NE(place.run("completion fihs").err.find("did you mean fish?"), std::string::npos);
  EXPECT_EQ(place.run("completion").code, 2);
}

// The tables of completion and manual are those of the help.
TEST(Completion, HasTheOptionsOfEveryHelp) {
  for (const launch::Command& command : launch::commands()) {
    std::ostringstream help;
    command.help(help);
    std::vector<std::string> known;
    for (const launch::OptionWords& option : launch::options_of(command)) known.push_back(option.name);
    std::istringstream lines(help.str());
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("  --")) continue;
      const std::string name = line.substr(2, line.find(' ', 2) - 2);
      EXPECT_NE(std::find(known.begin(), known.end(), name), known.end()) << command.name << " " << name;
    }
    EXPECT_NE(help.str().find("\nExample"), std::string::npos) << command.name;
  }
}

TEST(Completion, OffersOnlyValuesThatTheProgramTakes) {
  const auto words = launch::attribute_words();
  EXPECT_EQ(words.at("sync"), (launch::Words{"none", "world"}));
  EXPECT_EQ(words.at("momentum"), launch::Words{"cumulative"});
  EXPECT_EQ(words.count("eps"), 0u);
}

TEST(Manual, IsAPageWithEveryCommandLayerAndCode) {
  Workplace place;
  const Outcome page = place.run("man");
  EXPECT_EQ(page.code, 0);
  for (const char* part : {".TH ALLNORM 1", ".SH NAME\nallnorm \\- ", ".B \\-\\-first\\-timeout S", ".SH EXIT STATUS"})
    EXPECT_NE(page.out.find(part), std::string::npos) << part;
  for (const launch::Command& command : launch::commands())
    EXPECT_NE(page.out.find(".SS allnorm " + std::string(command.name) + "\n"), std::string::npos) << command.name;
  for (const Row& row : catalogue()) EXPECT_NE(page.out.find(".B " + std::string(row.name)), std::string::npos);
  if (!installed("groff")) return;
  place.write_bytes("allnorm.1", page.out);
  const Outcome read = place.run_other("groff -k -man -ww -Tutf8 allnorm.1");
  EXPECT_EQ(read.code, 0);
  EXPECT_EQ(read.err, "");
}

TEST(Lines, FitEightyColumns) {
  Workplace place;
  std::vector<std::string> all{"--help", "info"};
  for (const launch::Command& command : launch::commands()) all.push_back("help " + std::string(command.name));
  for (const Row& row : catalogue()) all.push_back("help apply " + std::string(row.name));
  for (const std::string& words : all) {
    std::istringstream lines(place.run(words).out);
    for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 80u) << words << ": " << line;
  }
}

}  // namespace
}  // namespace allnorm::test
