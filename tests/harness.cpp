#include "harness.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "allnorm/error.hpp"
#include "backend.hpp"

namespace harness {

using allnorm::Code;
using allnorm::Error;

void run(int ranks, const Body& body, const allnorm::Patience& patience) {
  run(allnorm::threads(ranks, patience), body);
}

void run(const std::vector<World>& worlds, const Body& body) {
  std::vector<std::exception_ptr> errors(worlds.size());
  std::vector<std::thread> workers;
  for (std::size_t rank = 0; rank < worlds.size(); ++rank)
    workers.emplace_back([&, rank] {
      try {
        allnorm::Queue queue = backend::queue();
        body(worlds[rank], queue);
      } catch (const Error& error) {
        worlds[rank]->abort(error);
        errors[rank] = std::current_exception();
      } catch (...) {
        worlds[rank]->abort(Error(Code::transport, "an unexpected exception"));
        errors[rank] = std::current_exception();
      }
    });
  for (auto& worker : workers) worker.join();

  std::exception_ptr consequence;
  for (const auto& error : errors) {
    if (!error) continue;
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      if (e.code() != Code::aborted) throw;
      consequence = error;
    }
  }
  if (consequence) std::rethrow_exception(consequence);
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return std::string(to_string(error.code())) + ": " + error.message();
  }
  return {};
}

int free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  EXPECT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ::close(socket);
  return ntohs(address.sin_port);
}

}  // namespace harness
