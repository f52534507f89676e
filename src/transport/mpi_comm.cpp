#include "src/transport/mpi_comm.hpp"

#include <chrono>
#include <exception>
#include <iterator>
#include <string>
#include <thread>

namespace allnorm {

namespace {

constexpr int most_farewells = 64;  // ranks of a group, each of which writes to all others
constexpr std::chrono::seconds most_at_the_end{1};

// Those that this process has left. MPI may have memory of them to its end, so they are never deleted.
std::list<MpiComm>& left() {
  static auto* const comms = new std::list<MpiComm>;
  return *comms;
}

bool is_done(MPI_Request& request) {
  int done = 0;
  check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
  return done != 0;
}

void say_goodbye(MpiComm& own) {
  int rank = 0, size = 1;
  check_mpi(MPI_Comm_rank(own.comm, &rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(own.comm, &size), "MPI_Comm_size");
  if (size > most_farewells) return;
  for (int peer = 0; peer < size; ++peer)
    if (peer != rank) own.stay.push_back(peer);
  for (const int peer : own.stay) {
    auto& sending = own.sendings.emplace_back(MpiComm::Sending{MPI_REQUEST_NULL, farewell_tag, peer, {}});
    check_mpi(MPI_Isend(nullptr, 0, MPI_BYTE, peer, mpi_tag(farewell_tag), own.comm, &sending.request), "MPI_Isend");
  }
}

// Takes what this peer has sent; true when its goodbye has come, behind which there is nothing: MPI hands out the
// messages of one rank in their order.
bool take_all(MpiComm& own, int peer) {
  while (true) {
    int there = 0, size = 0;
    MPI_Message message;
    MPI_Status status;
    check_mpi(MPI_Improbe(peer, MPI_ANY_TAG, own.comm, &there, &message, &status), "MPI_Improbe");
    if (!there) return false;
    check_mpi(MPI_Get_count(&status, MPI_BYTE, &size), "MPI_Get_count");
    const auto bytes = std::make_shared<Bytes>(static_cast<std::size_t>(size));
    auto& taken = own.unread.emplace_back(MpiComm::Receiving{MPI_REQUEST_NULL, {bytes, bytes->data()}, bytes});
    check_mpi(MPI_Imrecv(bytes->data(), size, MPI_BYTE, &message, &taken.request), "MPI_Imrecv");
    if (status.MPI_TAG == mpi_tag(farewell_tag)) return true;
  }
}

// True when all ranks have left and nothing is under way: then it is freed.
bool is_freed(MpiComm& own) {
  own.progress();
  std::erase_if(own.stay, [&own](int peer) { return take_all(own, peer); });
  std::erase_if(own.unread, [](MpiComm::Receiving& message) { return is_done(message.request); });
  for (auto at = own.receivings.begin(); at != own.receivings.end();)
    at = is_done(at->second.request) ? own.receivings.erase(at) : std::next(at);
  if (!own.sendings.empty() || !own.stay.empty() || !own.unread.empty() || !own.receivings.empty()) return false;
  MPI_Comm_free(&own.comm);
  return true;
}

void look() noexcept {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized) return;
  std::erase_if(left(), [](MpiComm& comm) {
    try {
      return is_freed(comm);
    } catch (const std::exception&) {  // an error of MPI's, or no memory: it stays
      return false;
    }
  });
}

// MPI_Finalize begins with this: peers that are on their way there too are about to say goodbye.
int before_the_end(MPI_Comm, int, void*, void*) {
  const auto end = std::chrono::steady_clock::now() + most_at_the_end;
  while (comms_left() > 0 && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  return MPI_SUCCESS;
}

void call_before_the_end() {
  static const bool done = [] {
    int key = MPI_KEYVAL_INVALID;
    check_mpi(MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, before_the_end, &key, nullptr), "MPI_Comm_create_keyval");
    check_mpi(MPI_Comm_set_attr(MPI_COMM_SELF, key, nullptr), "MPI_Comm_set_attr");
    return true;
  }();
  (void)done;
}

}  // namespace

void check_mpi(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  fail(Code::transport, std::string(call) + " failed: " + std::string(text, static_cast<std::size_t>(length)));
}

int mpi_tag(std::uint64_t tag) {
  const std::uint64_t context = tag >> 32;
  expect(context < 2048, Code::unsupported, "there are over 2046 subgroups, must be fewer with MPI");
  return static_cast<int>(context << 15 | (tag & 0x7fffu));
}

void MpiComm::progress() {
  std::erase_if(sendings, [](Sending& sending) { return is_done(sending.request); });
}

void leave(std::list<MpiComm>&& comm) noexcept {
  left().splice(left().end(), comm);
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized) return;
  try {
    say_goodbye(left().back());
    call_before_the_end();
  } catch (const std::exception&) {  // no memory: the peers' deadline remains
  }
  look();
}

std::size_t comms_left() noexcept {
  look();
  return left().size();
}

}  // namespace allnorm
