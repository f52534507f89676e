// `allnorm diagnose DIR`: what the records of a job's ranks say together.
#include <iostream>

#include "allnorm/error.hpp"
#include "launch/command.hpp"
#include "launch/help.hpp"
#include "launch/ranks.hpp"
#include "launch/terminal.hpp"
#include "launch/watch/record.hpp"

namespace allnorm::launch {

namespace {

int run_diagnose(const Arguments& words) {
  expect(words.size() == 1 && !words[0].starts_with("-"), Code::invalid_argument,
         "diagnose takes one folder, must be called as: allnorm diagnose DIR");
  std::cout << for_terminal(diagnosis_of(read_records(words[0]))) << '\n';
  return exit_success;
}

void help_diagnose(std::ostream& out) {
  out << "allnorm diagnose DIR\n\n"
         "What happened to a job whose ranks were run with --record DIR, in one\n"
         "paragraph: who failed, was late, has left or disagrees, where every rank was,\n"
         "and what to do.\n\n"
         "Examples:\n"
         "  mpirun -n 4 allnorm train --record records\n"
         "  allnorm diagnose records\n\n";
  print_exit_codes(out);
}

}  // namespace

const Command diagnose_command{"diagnose", "say what happened to a job, from what its ranks recorded (--record DIR)",
                               run_diagnose, help_diagnose};

}  // namespace allnorm::launch
