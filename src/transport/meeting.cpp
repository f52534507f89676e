// Where a rank meets the others, from its environment, and who may come there.
#include "allnorm/meeting.hpp"

#include <netdb.h>

#include <charconv>
#include <cstdlib>
#include <fstream>

#include "src/transport/rendezvous.hpp"
#include "src/transport/sockets.hpp"

namespace allnorm {

namespace {

constexpr std::size_t shortest_token = 16;  // bytes

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}
int number(const char* name, int least, int most) {
  const std::string text = variable(name);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  expect(error == std::errc() && end == text.data() + text.size() && value >= least && value <= most,
         Code::invalid_argument, [&] {
           return std::string(name) + " is " + (text.empty() ? "not set" : "\"" + text + "\"") +
                  ", must be a number from " + std::to_string(least) + " to " + std::to_string(most);
         });
  return value;
}

// A secret that stands in a file stays out of the list of processes and of their environments.
std::string token_from_environment() {
  std::string token = variable("ALLNORM_JOB_TOKEN");
  const std::string path = variable("ALLNORM_JOB_TOKEN_FILE");
  if (!token.empty() || path.empty()) return token;
  std::ifstream file(path, std::ios::binary);
  std::getline(file, token);
  while (token.ends_with('\r') || token.ends_with(' ')) token.pop_back();
  expect(!token.empty(), Code::invalid_argument,
         [&] { return "ALLNORM_JOB_TOKEN_FILE is " + path + ", must be a file with the job token in its first line"; });
  return token;
}

std::string host_from_environment() {
  const std::string host = variable("MASTER_ADDR");
  expect(!host.empty(), Code::invalid_argument, "MASTER_ADDR is not set, must be the host of rank 0");
  return host;
}

}  // namespace

void check_token(const Meeting& meeting) {
  if (!meeting.token.empty()) {
    expect(meeting.token.size() >= shortest_token && meeting.token.size() <= longest_token, Code::invalid_argument,
           [&] {
             return "the job token has " + std::to_string(meeting.token.size()) + " bytes, must have " +
                    std::to_string(shortest_token) + " to " + std::to_string(longest_token);
           });
    return;
  }
  std::string why;
  bool loopback = true;
  const Addresses list = addresses_of(meeting.host, meeting.port, why);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) loopback &= is_loopback(*at);
  expect(loopback && list, Code::invalid_argument, [&] {
    return "the job token is missing, must be given (ALLNORM_JOB_TOKEN or ALLNORM_JOB_TOKEN_FILE) where ranks meet "
           "at " +
           meeting.host + (list ? ", which other machines reach" : " (" + why + ")") +
           ": without one it must be a loopback address, as 127.0.0.1";
  });
}

int meeting_port() {
  constexpr int last_port = 65535, own_port = 29601;
  if (!variable("ALLNORM_PORT").empty()) return number("ALLNORM_PORT", 1, last_port);
  return variable("MASTER_PORT").empty() ? own_port : number("MASTER_PORT", 1, last_port - 1) + 1;
}

Meeting meeting_from_environment() {
  (void)host_from_environment();  // what is missing of three variables is told in this order
  const int size = number("WORLD_SIZE", 1, 1 << 20);
  return meeting_from_environment(number("RANK", 0, size - 1), size);
}

Meeting meeting_from_environment(int rank, int size) {
  Meeting meeting;
  meeting.host = host_from_environment();
  meeting.size = size;
  meeting.rank = rank;
  meeting.port = meeting_port();
  meeting.run = variable("ALLNORM_RUN");
  if (meeting.run.empty()) {
    for (const char* name : {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID"})
      meeting.run += variable(name) + "/";
    // A torchrun on each host may be in a step of its own.
    if (variable("TORCHELASTIC_RUN_ID").empty()) meeting.run += variable("SLURM_STEP_ID");
  }
  meeting.token = token_from_environment();
  if (meeting.size > 1) check_token(meeting);
  return meeting;
}

}  // namespace allnorm
