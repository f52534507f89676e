// `allnorm doctor`: what would keep a job from running here, each with its remedy.
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <thread>
#include <utility>

#include <boost/program_options/value_semantic.hpp>

#include "allnorm/communicator.hpp"
#include "launch/choice.hpp"
#include "launch/help.hpp"
#include "launch/installed.hpp"
#include "launch/launcher.hpp"
#include "launch/machine.hpp"
#include "launch/parts.hpp"
#include "launch/ranks.hpp"
#include "src/transport/pause.hpp"
#include "src/transport/rendezvous.hpp"

namespace allnorm::launch {

namespace {

namespace po = boost::program_options;
namespace fs = std::filesystem;

constexpr double trial_seconds = 60;  // a start of MPI on a machine that does other work

enum class State { ok, note, problem };

struct Finding {
  State state;
  std::string text;
  std::string remedy{};
};
using Findings = std::vector<Finding>;

struct Job {
  RankOptions ranks;      // ranks.ranks >= 1
  bool launched = false;  // this process is a rank of it already
};

std::string counted(int number, const std::string& what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}
std::string size_text(double bytes) {
  constexpr double mebi = 1 << 20, gibi = 1 << 30;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %s", bytes / (bytes < gibi ? mebi : gibi), bytes < gibi ? "MiB" : "GiB");
  return text;
}

// ---- MPI and launchers ----------------------------------------------------------------------------------------------

// Launchers of one family start each other's programs: Hydra is that of MPICH, MVAPICH and Intel MPI.
std::string family_of(std::string_view text) {
  if (text.find("Open MPI") != text.npos || text.find("OpenRTE") != text.npos) return "Open MPI";
  for (const char* name : {"MPICH", "HYDRA", "MVAPICH", "Intel(R) MPI"})
    if (text.find(name) != text.npos) return "MPICH";
  return {};
}

void check_launchers(const Job&, Findings& found) {
  const std::string own = mpi_library(), own_family = family_of(own);
  const std::string install = own_family == "MPICH" ? "install mpich" : "install openmpi-bin";
  if (own.empty()) {
    found.push_back({State::note,
                     "this build has no MPI: ranks are threads of one process (--ranks K), or processes of torchrun",
                     "for those of mpirun, install libopenmpi-dev or libmpich-dev and configure again"});
    return;
  }
  const std::string srun = on_path("srun");
  bool any = !srun.empty();
  if (any)
    found.push_back({State::ok, srun + ": start jobs with srun --mpi=" + (own_family == "MPICH" ? "pmi2" : "pmix") +
                                    " (srun --mpi=list shows what there is)"});
  for (const char* name : {"mpirun", "mpiexec"}) {
    const std::string file = on_path(name);
    if (file.empty()) continue;
    any = true;
    const Ended asked = run_program({file, "--version"}, trial_seconds);
    const std::string first = asked.text.substr(0, asked.text.find('\n')), family = family_of(asked.text);
    const std::string is = file + (asked.code == 0 && !first.empty() ? " is " + first : " does not say its version");
    if (family.empty() || own_family.empty())
      found.push_back({State::note, is + ", this program's MPI is " + own, "make sure that they belong together"});
    else if (family != own_family)
      found.push_back({State::problem, is + ", but this program's MPI is " + own + ": every process would be alone",
                       "use the mpirun of " + own_family + ", or configure again with the MPI of this one"});
    else
      found.push_back({State::ok, is + ", as this program's MPI, " + own});
  }
  if (!any)
    found.push_back({State::problem, "no mpirun, mpiexec or srun on PATH to start processes of " + own, install});
}

void check_variables(const Job& job, Findings& found) {
  const auto from = launcher();
  for (const std::string& left : launcher_leftovers()) {
    const bool counts = from && !job.launched && left.starts_with("WORLD_SIZE") == (from->name == torchrun);
    found.push_back({counts ? State::problem : State::note,
                     left + (counts ? ": a run takes itself for one of several processes" : ", and does not count"),
                     counts ? "unset it" : ""});
  }
  if (found.empty())
    found.push_back({State::ok, from ? "this is rank " + std::to_string(from->rank) + " of " + text_of(*from)
                                     : std::string("none set, so that --ranks K are threads of one process")});
}

// The first line of what a launcher says that has letters and is no rule.
std::string complaint(const std::string& text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    if (line.find_first_not_of("- \t\r=") != line.npos) return line;
    at = end + 1;
  }
  return "it said nothing";
}

std::string why_not_started(const Job& job, const std::string& text) {
  const int ranks = job.ranks.ranks;
  const auto says = [&](const char* words) { return text.find(words) != text.npos; };
  if (::geteuid() == 0 && says("root"))
    return "mpirun --allow-run-as-root, or as another user (in containers: OMPI_ALLOW_RUN_AS_ROOT=1 and "
           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)";
  if (says("slots"))
    return "mpirun --oversubscribe, or at most as many ranks as this machine has cores: " + std::to_string(ranks) +
           " are too many";
  return "mpirun -n " + std::to_string(ranks) + " allnorm doctor --check meeting says more";
}

// The ranks of a job really meet: as threads, and as processes of this machine's launcher.
void check_meeting(const Job& job, Findings& found) {
  const auto meet = [](Rank& rank) {
    rank.world->exchange({Header("doctor", Direction::agreement, 0), {}, 0, {}}, rank.queue);
  };
  if (job.launched) {
    found.push_back({State::ok, "the ranks of " + text_of(*launcher()) + " meet"});  // they did, before this was asked
    return;
  }
  const std::string ranks = std::to_string(job.ranks.ranks);
  RankOptions as_threads = job.ranks;
  as_threads.transport = "threads";
  if (run_ranks(as_threads, meet) == exit_success)
    found.push_back({State::ok, ranks + " ranks as threads meet"});
  else
    found.push_back({State::problem, ranks + " ranks as threads do not meet: the line above says why"});
  const std::string mpirun = on_path("mpirun");
  if (mpirun.empty() || mpi_library().empty() || !launcher_leftovers().empty()) return;
  const auto begin = std::chrono::steady_clock::now();
  const Ended trial = run_program({mpirun, "-n", ranks, this_program(), "doctor", "--check", "meeting"}, trial_seconds);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  char took[32];
  std::snprintf(took, sizeof took, "%.1f s", seconds);
  if (trial.in_time && trial.code == 0)
    found.push_back({State::ok, "mpirun -n " + ranks + ": the processes meet, in " + took});
  else if (!trial.in_time)
    found.push_back({State::problem, "mpirun -n " + ranks + ": the processes have not met after " + took,
                     "look at the network between them, and at what the name of this host leads to"});
  else
    found.push_back(
        {State::problem, "mpirun -n " + ranks + ": " + complaint(trial.text), why_not_started(job, trial.text)});
}

// ---- the network ----------------------------------------------------------------------------------------------------

// A socket that listens on the loopback address at `port`, 0 for any that is free; the port, or 0.
std::pair<Socket, int> door_at(int port) {
  Socket door(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::socklen_t size = sizeof address;
  auto* const any = reinterpret_cast<::sockaddr*>(&address);
  const bool open = door && ::bind(door.handle(), any, size) == 0 && ::getsockname(door.handle(), any, &size) == 0;
  return {std::move(door), open ? ntohs(address.sin_port) : 0};
}

void check_network(const Job& job, Findings& found) {
  const int free_port = door_at(0).second;  // closed again
  std::string failure = free_port == 0 ? "no port is free on 127.0.0.1" : "";
  if (failure.empty()) {
    Patience patience;
    patience.timeout = patience.first_timeout = 10;
    const auto visit = [&](int rank) -> std::string {
      try {
        Gathering({"127.0.0.1", free_port, rank, 2, "doctor"}, {}, patience);
        return {};
      } catch (const std::exception& error) {
        return error.what();
      }
    };
    std::string other;
    std::thread thread([&] { other = visit(1); });
    failure = visit(0);
    thread.join();
    if (failure.empty()) failure = other;
  }
  if (failure.empty())
    found.push_back({State::ok, "two ranks meet over TCP on 127.0.0.1"});
  else
    found.push_back({State::problem, "ranks do not meet over TCP on 127.0.0.1: " + failure,
                     "bring up the loopback interface (ip link set lo up), and let no firewall close it"});
  const int port = meeting_port();
  if (!job.launched && door_at(port).second == 0)  // those of a job have met there
    found.push_back({job.ranks.transport == "nccl" || job.ranks.transport == "tcp" ? State::problem : State::note,
                     "port " + std::to_string(port) + ", where ranks of torchrun meet, is taken",
                     "ALLNORM_PORT=N, or another --master-port of torchrun"});
  char host[256] = {};
  ::gethostname(host, sizeof host - 1);
  ::addrinfo* addresses = nullptr;
  if (::getaddrinfo(host, nullptr, nullptr, &addresses) != 0)
    found.push_back({State::note, "the name of this host, " + std::string(host) + ", leads to no address",
                     "a line for it in /etc/hosts"});
  else
    ::freeaddrinfo(addresses);
}

// ---- memory and limits ----------------------------------------------------------------------------------------------

void check_shared_memory(const Job& job, Findings& found) {
  constexpr double of_a_rank = 1 << 22;  // the segment that Open MPI 4.1 makes for each
  constexpr double of_nccl = 1 << 27;    // more than the 64 MiB of a container, of which NCCL's documents warn
  struct ::statvfs system {};
  if (::statvfs("/dev/shm", &system) != 0 || ::access("/dev/shm", W_OK | X_OK) != 0) {
    found.push_back({State::problem, "/dev/shm cannot be written: processes of one machine share memory there",
                     "mount -t tmpfs tmpfs /dev/shm"});
    return;
  }
  const double free = static_cast<double>(system.f_bavail) * static_cast<double>(system.f_frsize);
  const double needed = job.ranks.ranks * of_a_rank + (job.ranks.transport == "nccl" ? of_nccl : 0);
  const std::string text = "/dev/shm has " + size_text(free) + " free";
  if (free < needed)
    found.push_back({State::problem,
                     text + ", must have " + size_text(needed) + " for " + counted(job.ranks.ranks, "rank"),
                     "docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"});
  else
    found.push_back({State::ok, text});
}

void check_limits(const Job& job, Findings& found) {
  // A rank of `apply` over Open MPI 4.1 has 20 MiB besides its tensors, and 312 MB of addresses.
  constexpr double memory_of_a_rank = 1 << 25, addresses = 1 << 29;
  const int ranks = job.ranks.ranks;
  const Room room = memory_room();
  const auto bytes = static_cast<double>(room.bytes);
  const std::string left = size_text(bytes) + " of memory are " + room.by;
  if (bytes < ranks * memory_of_a_rank)
    found.push_back({State::problem,
                     left + ", must be " + size_text(ranks * memory_of_a_rank) + " for " + counted(ranks, "rank"),
                     "docker run --memory, --mem of Slurm, or fewer ranks"});
  else
    found.push_back({State::ok, left});
  ::rlimit space{}, files{};
  if (::getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY &&
      static_cast<double>(space.rlim_cur) < addresses)
    found.push_back({State::problem,
                     "ulimit -v leaves " + size_text(static_cast<double>(space.rlim_cur)) +
                         " of addresses to a process, must be " + size_text(addresses),
                     "ulimit -v unlimited"});
  ::getrlimit(RLIMIT_NOFILE, &files);
  const ::rlim_t wanted = 64 + 4 * static_cast<::rlim_t>(ranks);  // mpirun of Open MPI 4.1 has 24 and 3 for each rank
  if (files.rlim_cur != RLIM_INFINITY && files.rlim_cur < wanted)
    found.push_back({State::problem,
                     std::to_string(files.rlim_cur) + " files may be open, must be " + std::to_string(wanted) +
                         " for " + counted(ranks, "rank"),
                     "ulimit -n " + std::to_string(wanted)});
  else
    found.push_back({State::ok, files.rlim_cur == RLIM_INFINITY
                                    ? "any number of files may be open"
                                    : std::to_string(files.rlim_cur) + " files may be open"});
}

void check_cpus(const Job& job, Findings& found) {
  const auto cpus = usable_cpus();
  const auto all = static_cast<int>(cpus.size());
  const int wanted = (job.launched ? 1 : job.ranks.ranks) * job.ranks.threads;
  const std::string text = counted(all, "CPU") + " (" + ranges(cpus) + ") for " +
                           (job.launched ? "this rank" : counted(job.ranks.ranks, "rank")) + " of " +
                           counted(job.ranks.threads, "thread");
  if (wanted <= all)
    found.push_back({State::ok, text});
  else
    found.push_back({State::note, text + ": they take turns, which is slow",
                     "fewer ranks or --threads, or more CPUs: --cpus-per-task of Slurm, taskset"});
  if (const auto quota = cpu_quota(); quota && *quota < all) {
    char share[32];
    std::snprintf(share, sizeof share, "%.4g", *quota);
    found.push_back({State::note, "the container may use " + std::string(share) + " CPUs' time",
                     "docker run --cpus, resources.limits.cpu of Kubernetes"});
  }
}

// ---- GPUs, data, parts ----------------------------------------------------------------------------------------------

void check_gpus(const Job& job, Findings& found) {
  const bool there = fs::exists("/dev/nvidiactl") || !on_path("nvidia-smi").empty();
  const int gpus = cuda_devices();
  if (gpus > 0) {
    found.push_back({State::ok, cuda_summary()});
    if (job.ranks.transport == "nccl" && !job.launched && job.ranks.ranks > gpus)
      found.push_back({State::problem,
                       std::to_string(job.ranks.ranks) + " ranks of NCCL, must be at most " + std::to_string(gpus) +
                           ", one per GPU",
                       "--transport mpi or threads, whose ranks may share a GPU"});
  } else if (there) {
    const bool hidden = std::getenv("CUDA_VISIBLE_DEVICES") != nullptr;
    found.push_back({has_part("cuda") ? State::problem : State::note,
                     "this machine has NVIDIA's driver, but " + cuda_summary(),
                     !has_part("cuda") ? "install the CUDA Toolkit of version 12 or later and configure again"
                     : hidden          ? "unset CUDA_VISIBLE_DEVICES"
                              : "a driver that is not older than this program's CUDA (nvidia-smi says), and in "
                                "containers docker run --gpus all"});
  } else {
    found.push_back({job.ranks.device == "cuda" ? State::problem : State::note, cuda_summary(),
                     job.ranks.device == "cuda" ? "--device cpu" : ""});
  }
}

void check_data(const Job&, Findings& found) {
  if (!has_part("torch")) return;
  try {
    found.push_back({State::ok, train_program() + " trains"});
  } catch (const Error& error) {
    found.push_back({State::problem, error.message(), "install the whole component program"});
  }
  const std::string folder = digits_folder();
  if (fs::exists(folder + "/digits.csv.gz"))
    found.push_back({State::ok, "the images of allnorm train are in " + folder});
  else
    found.push_back({State::problem, "the images of allnorm train are not in " + folder, "allnorm train --data DIR"});
}

void check_parts(const Job&, Findings& found) {
  for (const build::Part& part : build::parts)
    if (!part.in && !part.detail.starts_with("turned off"))
      found.push_back(
          {State::note, std::string(part.name) + ": " + std::string(part.detail), std::string(remedy_of(part))});
  if (found.empty()) found.push_back({State::ok, "all are in this build"});
}

void check_options(const Job& job, Findings& found) {
  RankOptions options = job.ranks;
  if (job.launched || options.transport == "mpi" || options.transport == "tcp")
    options.ranks = 0;  // the launcher's, who may be yet to come
  try {
    check(options);
    found.push_back({State::ok, "this build and this machine have what the options ask for"});
  } catch (const Error& error) {
    found.push_back({State::problem, error.message()});
  }
}

struct Check {
  const char* name;
  void (*look)(const Job&, Findings&);
};
constexpr Check checks[] = {
    {"options", check_options}, {"launchers", check_launchers}, {"variables", check_variables},
    {"meeting", check_meeting}, {"network", check_network},     {"shared-memory", check_shared_memory},
    {"limits", check_limits},   {"cpus", check_cpus},           {"gpus", check_gpus},
    {"training", check_data},   {"parts", check_parts}};

// ---- the command ----------------------------------------------------------------------------------------------------

struct Asked {
  RankOptions ranks;
  std::string check;  // empty: all
};

po::options_description describe_doctor(Asked& asked) {
  std::vector<std::string> names;
  for (const Check& check : checks) names.emplace_back(check.name);
  po::options_description description;
  description.add_options()("check", (new Choice("check", &asked.check, names))->value_name("NAME"),
                            ("look at that alone: " + listed(names)).c_str());
  return description.add(describe(asked.ranks));
}

// Prints what was found and returns how many problems there are.
int tell(const Asked& asked, const Job& job) {
  int problems = 0;
  std::vector<HelpLine> lines;
  for (const Check& check : checks) {
    if (!asked.check.empty() && asked.check != check.name) continue;
    Findings found;
    check.look(job, found);
    for (const Finding& finding : found) {
      problems += finding.state == State::problem;
      const char* const mark = finding.state == State::ok     ? "ok       "
                               : finding.state == State::note ? "note     "
                                                              : "PROBLEM  ";
      lines.push_back(
          {mark + std::string(check.name), finding.text + (finding.remedy.empty() ? "" : " => " + finding.remedy)});
    }
  }
  print_lines(std::cout, lines);
  std::cout << "\n";
  if (problems == 0)
    print_text(std::cout, "Nothing here keeps a job from running.");
  else
    print_text(std::cout, std::to_string(problems) + (problems == 1 ? " problem keeps" : " problems keep") +
                              " jobs from running here.");
  return problems;
}

int run_doctor(const Arguments& words) {
  Asked asked;
  parse_options(words, describe_doctor(asked));
  Job job{asked.ranks, under_launcher(asked.ranks) && launcher_leftovers().empty()};
  int problems = 0;
  if (job.launched) {  // in the job itself: its ranks meet, and the first one tells
    const int code = run_ranks(asked.ranks, [&](Rank& rank) {
      Job own = job;
      own.ranks.ranks = rank.size;
      rank.world->exchange({Header("doctor", Direction::agreement, 0), {}, 0, {}}, rank.queue);
      if (rank.rank == 0) problems = tell(asked, own);
    });
    if (code != exit_success) return exit_failure;
  } else {
    if (job.ranks.ranks == 0) job.ranks.ranks = 2;
    problems = tell(asked, job);
  }
  return problems == 0 ? exit_success : exit_failure;
}

void help_doctor(std::ostream& out) {
  Asked asked;
  out << "allnorm doctor [options]\n\n";
  print_text(out,
             "Says what would keep a job of --ranks K (2) from running here, and behind => what to do about it: "
             "launchers and their MPI, variables that launchers left, whether ranks really meet (as threads, and as "
             "processes of mpirun), ports, shared memory, limits, CPUs, GPUs, data, and optional parts that this build "
             "lacks. Under a launcher it looks from within the job. Exit code 0 where nothing would, 1 otherwise.");
  out << "\nOptions:\n";
  print_options(out, describe_doctor(asked));
  print_examples(
      out, {"allnorm doctor", "allnorm doctor --ranks 8 --device cuda --transport nccl", "mpirun -n 4 allnorm doctor"});
}

}  // namespace

const Command doctor_command{"doctor", "say what would keep a job from running here, and what to do about it",
                             run_doctor, help_doctor, [] {
                               static Asked asked;  // for its text
                               return describe_doctor(asked);
                             }};

}  // namespace allnorm::launch
