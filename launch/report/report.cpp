// `allnorm report`: logs of train, bench and scale as one HTML page.
#include <filesystem>
#include <iostream>

#include <boost/program_options/options_description.hpp>
#include <boost/program_options/value_semantic.hpp>

#include "allnorm/error.hpp"
#include "launch/command.hpp"
#include "launch/files/atomic_file.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/json_lines.hpp"
#include "launch/help.hpp"
#include "launch/ranks.hpp"
#include "launch/report/page.hpp"

namespace allnorm::launch {

namespace {

namespace po = boost::program_options;

struct Words {
  std::string out{}, plots{};
};

po::options_description describe(Words& words) {
  po::options_description options("Options");
  options.add_options()("out,o", po::value(&words.out)->value_name("F.html"), "-o: the page; required")(
      "plots", po::value(&words.plots)->value_name("PREFIX"), "its plots too, as PREFIX1.svg, PREFIX2.svg...");
  return options;
}

void help_report(std::ostream& out) {
  Words words;
  out << "allnorm report FILE.jsonl... -o F.html\n\n"
         "One self-contained HTML page of what train --log, bench --json and scale --json\nhave written. Of several "
         "files "
         "of bench the first is the base that the others\nare compared with.\n\nOptions:\n";
  print_options(out, describe(words));
  out << "\nExamples:\n  allnorm bench --layer all --json bench.jsonl\n  allnorm report bench.jsonl -o bench.html\n"
         "  allnorm report before.jsonl after.jsonl -o compared.html\n\n";
  print_exit_codes(out);
}

// The page reads what the program writes: what other files lack is found where it is missed.
std::string page_of(const std::vector<pages::Log>& logs, const std::string& files) {
  try {
    return pages::page_of(logs);
  } catch (const nlohmann::json::exception& error) {
    bad_file(files, "lacks what train, bench and scale write: " + printable(error.what()));
  }
}

int run_report(const Arguments& arguments) {
  Words words;
  Arguments files, options;
  for (std::size_t i = 0; i < arguments.size(); ++i) {  // an option's value is no file
    const bool option = arguments[i].starts_with("-");
    (option ? options : files).push_back(arguments[i]);
    if (option && (arguments[i] == "-o" || arguments[i] == "--out" || arguments[i] == "--plots") &&
        i + 1 < arguments.size())
      options.push_back(arguments[++i]);
  }
  parse_options(options, describe(words));
  expect(!files.empty(), Code::invalid_argument,
         "FILE.jsonl is missing, must be a log of train, bench or scale, or several");
  expect(!words.out.empty(), Code::invalid_argument, "--out is missing, must be the page to write (-o F.html)");
  std::vector<pages::Log> logs;
  std::string names;
  for (const std::string& file : files) {
    logs.push_back({std::filesystem::path(file).filename().string(), read_json_lines(file)});
    names += (names.empty() ? "" : ", ") + file;
    const nlohmann::ordered_json command = logs.back().events.front().value("command", nlohmann::ordered_json());
    if (command != "train" && command != "bench" && command != "scale")
      bad_file(file, "is of command " + printable(command.is_string() ? command.get<std::string>() : command.dump()) +
                         ", must be of train, bench or scale");
  }
  const auto write = [](const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text);
    file.commit();
  };
  const std::string page = page_of(logs, names);
  write(words.out, page);
  if (words.plots.empty()) return exit_success;
  const auto plots = pages::plots_of(page);
  for (std::size_t i = 0; i < plots.size(); ++i) write(words.plots + std::to_string(i + 1) + ".svg", plots[i]);
  return exit_success;
}

}  // namespace

const Command report_command{"report", "turn logs of train, bench and scale into one HTML page", run_report,
                             help_report, [] {
                               Words words;
                               return describe(words);
                             }};

}  // namespace allnorm::launch
