// A transport of one's own: ranks as child processes that send their messages through sockets. Whatever carries bytes
// between ranks can carry a layer's statistics: a class that is an allnorm::Communicator.
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <allnorm/norm.hpp>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using allnorm::Code;
using allnorm::Error;
using allnorm::Message;

// What allnorm::Message says of a payload that begins with moments: [n][means (G)][sums of squares (G)] are merged, all
// behind them is added. `sum` is of the ranks before.
void merge(Message& sum, const Message& next) {
  const auto groups = static_cast<std::size_t>(sum.header.get(allnorm::Field::moments));
  if (groups > 0 && sum.header.get(allnorm::Field::co_moments) != 1)
    throw Error(Code::unsupported, "layers that whiten are beyond this example");
  auto& to = sum.payload;
  const auto& from = next.payload;
  std::size_t added = 0;
  if (groups > 0) {
    const double n = to[0], m = from[0], all = n + m;
    for (std::size_t g = 1; g <= groups && all > 0; ++g) {
      const double distance = from[g] - to[g];
      to[g + groups] += from[g + groups] + distance * distance * (n * m / all);
      to[g] += distance * (m / all);
    }
    to[0] = all;
    added = 1 + 2 * groups;
  }
  for (; added < to.size(); ++added) to[added] += from[added];
}

// Exchanges that are done when they begin: the transport below blocks.
class Done final : public allnorm::Pending::Impl {
 public:
  explicit Done(Message result) : result_(std::move(result)) {}
  bool poll() override { return true; }
  Message take() override { return std::move(result_); }
  void relax() override {}

 private:
  Message result_;
};

// The ranks of a job, each connected to every other. A real transport has deadlines and tells who is late; this one
// waits, and takes the end of a process for a rank that left.
class Sockets final : public allnorm::Communicator {
 public:
  Sockets(int rank, std::vector<int> peers) : rank_(rank), peers_(std::move(peers)) {}
  ~Sockets() override {
    for (const int peer : peers_)
      if (peer >= 0) ::close(peer);
  }
  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return static_cast<int>(peers_.size()); }
  std::string name_of(int rank) const override { return "rank " + std::to_string(rank); }
  std::string_view transport() const noexcept override { return "sockets"; }

  allnorm::Pending start_exchange(Message own, allnorm::Queue&) override {
    ++traffic_.exchanges;
    traffic_.bytes += own.payload.size() * sizeof(double);
    std::vector<Message> all(peers_.size());
    // Of two ranks the lower one sends first: so nobody waits for one who waits.
    for (int peer = 0; peer < size(); ++peer) {
      if (peer > rank_) send(peer, own);
      if (peer != rank_) all[static_cast<std::size_t>(peer)] = receive(peer);
      if (peer < rank_) send(peer, own);
    }
    all[static_cast<std::size_t>(rank_)] = std::move(own);
    return allnorm::Pending(std::make_unique<Done>(merged(all)));
  }

  std::shared_ptr<Communicator> split(std::int64_t, allnorm::Queue&) override {
    throw Error(Code::unsupported, "groups of sync are beyond this example");
  }
  void decline(const Error& error) noexcept override {
    try {
      Message why;
      why.flags = allnorm::flag_declined;
      allnorm::Queue queue = allnorm::Queue::cpu();
      start_exchange(std::move(why), queue);
    } catch (const std::exception&) {
      abort(error);
    }
  }
  void abort(const Error&) noexcept override {
    for (int& peer : peers_)
      if (peer >= 0) ::close(std::exchange(peer, -1));
  }
  Traffic traffic() const noexcept override { return traffic_; }

 private:
  // In rank order, so that every rank has the same bits; all headers must be those of rank 0.
  Message merged(std::vector<Message>& all) const {
    Message sum = all[0];
    sum.rank_flags.clear();
    for (int rank = 0; rank < size(); ++rank) {
      const Message& message = all[static_cast<std::size_t>(rank)];
      if (message.flags & allnorm::flag_declined) {
        if (rank == rank_) return sum;
        throw Error(Code::aborted, name_of(rank) + " cannot take part");
      }
      const std::string wrong = allnorm::differences(all[0].header, name_of(0), message.header);
      if (!wrong.empty())
        throw Error(Code::mismatch, name_of(rank) + ": " + allnorm::describe(message.header) + ": " + wrong);
      if (rank > 0) merge(sum, message);
      sum.flags |= message.flags;
      sum.rank_flags.push_back(message.flags);
      if (message.flags & allnorm::flag_nonfinite) sum.nonfinite |= allnorm::rank_bit(rank);
    }
    return sum;
  }

  struct Head {
    allnorm::Header header;
    std::uint64_t flags, count;
  };
  void send(int to, const Message& message) const {
    const Head head{message.header, message.flags, message.payload.size()};
    move(to, const_cast<Head*>(&head), sizeof head, true);
    move(to, const_cast<double*>(message.payload.data()), message.payload.size() * sizeof(double), true);
  }
  Message receive(int from) const {
    Head head{};
    move(from, &head, sizeof head, false);
    Message message;
    message.header = head.header;
    message.flags = head.flags;
    message.payload.resize(head.count);
    move(from, message.payload.data(), head.count * sizeof(double), false);
    return message;
  }
  void move(int peer, void* data, std::size_t bytes, bool out) const {
    const int socket = peers_[static_cast<std::size_t>(peer)];
    for (auto* at = static_cast<char*>(data); bytes > 0;) {
      const ::ssize_t moved = out ? ::send(socket, at, bytes, MSG_NOSIGNAL) : ::recv(socket, at, bytes, 0);
      if (moved <= 0) throw Error(Code::aborted, name_of(peer) + " has left");
      at += moved;
      bytes -= static_cast<std::size_t>(moved);
    }
  }

  int rank_;
  std::vector<int> peers_;  // [rank] -> socket; -1 for this one
  Traffic traffic_;
};

// One value of one channel on each rank: 1, 2, 3, ... They are normalized with the mean and variance of all.
void work(int rank, int ranks, std::vector<int> peers) {
  allnorm::Queue queue = allnorm::Queue::cpu();
  const auto group = std::make_shared<Sockets>(rank, std::move(peers));
  allnorm::Norm norm(allnorm::Layer("sync_batch_norm"), 1, group, queue);
  float x = static_cast<float>(rank + 1), y = 0;
  const allnorm::Saved saved = norm.forward({.input = allnorm::view(&x, {1, 1})}, allnorm::view(&y, {1, 1}), queue);
  std::printf("rank %d of %d: mean %.3f, variance %.3f, y %.3f\n", rank, ranks, saved.frame().mean[0],
              saved.frame().var[0], double{y});
}

}  // namespace

int main() {
  constexpr int ranks = 3;
  std::vector<std::vector<int>> peers(ranks, std::vector<int>(ranks, -1));
  for (int i = 0; i < ranks; ++i)
    for (int j = i + 1; j < ranks; ++j) {
      int ends[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
      peers[i][j] = ends[0];
      peers[j][i] = ends[1];
    }
  for (int rank = 0; rank < ranks; ++rank)
    if (::fork() == 0) {
      for (int other = 0; other < ranks; ++other)
        for (const int socket : peers[other])
          if (other != rank && socket >= 0) ::close(socket);  // so that the end of a rank is seen
      try {
        work(rank, ranks, peers[rank]);
        std::fflush(stdout);
        ::_exit(0);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
        ::_exit(1);
      }
    }
  for (auto& sockets : peers)
    for (const int socket : sockets)
      if (socket >= 0) ::close(socket);
  int failed = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    int status = 0;
    ::wait(&status);
    failed |= status;
  }
  return failed == 0 ? 0 : 1;
}
