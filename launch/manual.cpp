// `allnorm man`: the manual page, from the tables that the program runs on.
#include <iostream>
#include <string>
#include <string_view>

#include "build_config.hpp"
#include "launch/help.hpp"
#include "launch/ranks.hpp"

namespace allnorm::launch {

namespace {

// Text that roff takes as it is.
std::string roff(std::string_view text) {
  std::string made = text.starts_with('.') || text.starts_with('\'') ? "\\&" : "";
  for (const char c : text) made += c == '\\' ? "\\e" : c == '-' ? "\\-" : std::string(1, c);
  return made;
}

void section(std::ostream& out, std::string_view title) { out << ".SH " << title << "\n"; }

void entries(std::ostream& out, const std::vector<HelpLine>& lines) {
  for (const HelpLine& line : lines) out << ".TP\n.B " << roff(line.name) << "\n" << roff(line.text) << "\n";
}

constexpr std::string_view description =
    "computes the statistics of normalization layers over exactly the numbers that you ask for, one batch, every rank "
    "of a job, the last iterations or the mini-batches of one batch, and normalizes with them, forward and backward. "
    "Without a launcher --ranks K lets K threads stand for K processes; under mpirun or srun the ranks are the "
    "launcher's processes.";

const std::vector<HelpLine>& environment() {
  static const std::vector<HelpLine> variables{
      {"ALLNORM_JOB_TOKEN, ALLNORM_JOB_TOKEN_FILE",
       "a secret of the job, or the file whose first line it is, for ranks that meet over TCP on several machines"},
      {"ALLNORM_PORT", "where rank 0 listens for them; without it MASTER_PORT + 1"},
      {"ALLNORM_RUN", "what keeps out ranks of an earlier run that meet there"},
      {"ALLNORM_MPI_GPU_MEMORY",
       "taken or refused: whether MPI is given memory of GPUs, where it does not say it right"}};
  return variables;
}

int run_man(const Arguments& words) {
  parse_options(words, {});
  std::ostream& out = std::cout;
  out << ".\\\" What `allnorm man` prints.\n.TH ALLNORM 1 \"\" \"allnorm " << build::version
      << "\" \"User Commands\"\n";
  section(out, "NAME");
  out << "allnorm \\- normalization layers over any set of samples, ranks and iterations\n";
  section(out, "SYNOPSIS");
  out << ".B allnorm\n.I COMMAND\n[options]\n.br\n.B allnorm help\n.I COMMAND\n.br\n.B allnorm apply\n.I LAYER\n"
         "[options]\n";
  section(out, "DESCRIPTION");
  out << ".B allnorm\n" << roff(description) << "\n";
  section(out, "COMMANDS");
  for (const Command& command : commands()) {
    out << ".SS allnorm " << command.name << "\n" << roff(command.summary) << "\n";
    std::vector<HelpLine> lines;
    if (command.options != nullptr) {
      const boost::program_options::options_description options = command.options();
      for (const auto& option : options.options()) lines.push_back({spelling(*option), option->description()});
    }
    entries(out, lines);
  }
  section(out, "LAYERS");
  out << roff("allnorm help apply LAYER has the tensors, attributes and outputs of each.") << "\n";
  std::vector<HelpLine> lines;
  for (const Row& row : catalogue()) lines.push_back({std::string(row.name), std::string(row.summary)});
  entries(out, lines);
  section(out, "EXIT STATUS");
  entries(out, exit_codes());
  section(out, "ENVIRONMENT");
  entries(out, environment());
  section(out, "EXAMPLES");
  out << ".nf\n";
  for (const std::string& example : program_examples()) out << roff(example) << "\n";
  out << ".fi\n";
  return exit_success;
}

void help_man(std::ostream& out) {
  out << "allnorm man\n\n";
  print_text(out, "Prints the manual page, which an installation has as allnorm(1).");
  print_examples(out, {"allnorm man | man -l -", "allnorm man > allnorm.1"});
}

}  // namespace

const Command man_command{"man", "print the manual page", run_man, help_man};

}  // namespace allnorm::launch
