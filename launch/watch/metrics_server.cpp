#include "launch/watch/metrics_server.hpp"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <limits>
#include <string_view>
#include <thread>
#include <utility>

#include "build_config.hpp"
#include "launch/files/input_file.hpp"
#include "launch/launcher.hpp"
#include "launch/terminal.hpp"

#if ALLNORM_HAVE_PROMETHEUS
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#endif

namespace allnorm::launch {

namespace {
constexpr int most_port = 65535;
}

Endpoint endpoint_of(const std::string& text) {
  Endpoint endpoint;
  const auto colon = text.rfind(':');
  if (colon != text.npos) endpoint.address = text.substr(0, colon);
  const std::string_view port = std::string_view(text).substr(colon == text.npos ? 0 : colon + 1);
  const auto [rest, error] = std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
  expect(error == std::errc{} && rest == port.data() + port.size() && 0 <= endpoint.port &&
             endpoint.port <= most_port && !endpoint.address.empty(),
         Code::invalid_argument,
         [&] { return "--metrics is '" + text + "', must be [ADDRESS:]PORT with a port of 0 to 65535"; });
  return endpoint;
}

#if ALLNORM_HAVE_PROMETHEUS

namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

struct Description {
  const char *name, *help;
  MetricType type;
};
constexpr Description exchange_seconds{"allnorm_exchange_seconds", "Time of this rank's exchanges, waits included",
                                       MetricType::Histogram},
    exchange_bytes{"allnorm_exchange_bytes_total", "Payload of this rank's messages", MetricType::Counter},
    arrival_skew{"allnorm_arrival_skew_seconds", "From the first rank's start of the last exchange to the last one's",
                 MetricType::Gauge},
    slowest_rank{"allnorm_slowest_rank", "The rank that began the last exchange last", MetricType::Gauge},
    since_exchange{"allnorm_seconds_since_last_exchange", "Of any layer; since the start where there was none",
                   MetricType::Gauge},
    steps{"allnorm_steps_total", "Steps, or updates, done", MetricType::Counter},
    errors{"allnorm_errors_total", "Errors that ended the rank", MetricType::Counter},
    checkpoint_age{"allnorm_checkpoint_age_seconds", "Since the last checkpoint of this run", MetricType::Gauge};
// Of a layer, as LayerMetric names them: measured at every epoch's end.
constexpr Description of_layers[] = {
    {"allnorm_drift", "|mean of a batch - running mean| / running standard deviation, over channels",
     MetricType::Gauge},
    {"allnorm_clipped_share", "Share of channels whose r or d is at its bound", MetricType::Gauge},
    {"allnorm_window_distance", "From past statistics to those of the same batch under the present weights",
     MetricType::Gauge}};

class Families {
 public:
  ClientMetric& add(const Description& of, Labels labels) {
    MetricFamily* family = nullptr;
    for (MetricFamily& known : all_)
      if (known.name == of.name) family = &known;
    if (family == nullptr) {
      family = &all_.emplace_back();
      family->name = of.name;
      family->help = of.help;
      family->type = of.type;
    }
    ClientMetric& metric = family->metric.emplace_back();
    metric.label = std::move(labels);
    return metric;
  }
  void gauge(const Description& of, Labels labels, double value) { add(of, std::move(labels)).gauge.value = value; }
  void counter(const Description& of, Labels labels, std::uint64_t value) {
    add(of, std::move(labels)).counter.value = static_cast<double>(value);
  }
  std::vector<MetricFamily> take() { return std::move(all_); }

 private:
  std::vector<MetricFamily> all_;
};

void add_exchanges(const RankMetrics& rank, const Labels& own, Families& families) {
  for (const auto& [call, metrics] : rank.exchanges) {
    Labels labels = own;
    labels.push_back({"layer", call.first});
    labels.push_back({"direction", std::string(to_string(call.second))});
    families.counter(exchange_bytes, labels, metrics.bytes);
    ClientMetric& times = families.add(exchange_seconds, labels);
    times.histogram.sample_count = metrics.count;
    times.histogram.sample_sum = metrics.seconds;
    std::uint64_t cumulated = 0;
    for (std::size_t b = 0; b < metrics.bounds.size(); ++b)
      times.histogram.bucket.push_back({cumulated += metrics.up_to[b], metrics.bounds[b]});
    times.histogram.bucket.push_back({metrics.count, std::numeric_limits<double>::infinity()});
    if (!metrics.skew) continue;
    families.gauge(arrival_skew, labels, *metrics.skew);
    families.gauge(slowest_rank, labels, metrics.slowest);
  }
}

void add_layers(const RankMetrics& rank, const Labels& own, Families& families) {
  for (const LayerMetric& metric : rank.layers)
    for (const Description& known : of_layers) {
      if (metric.name != known.name) continue;
      Labels labels = own;
      labels.push_back({"layer", metric.layer});
      for (const auto& [name, value] : metric.labels) labels.push_back({name, value});
      families.gauge(known, std::move(labels), metric.value);
    }
}

}  // namespace

// Of few words, and on a thread of the size that all have: the threads of prometheus-cpp's own server are too small for
// a process with libtorch, whose thread-local memory lies on their stacks.
class MetricsServer::Impl {
 public:
  Impl(const Endpoint& at, Source source) : source_(std::move(source)), socket_(listening(at)) {
    thread_ = std::thread([this] { serve(); });
  }
  ~Impl() {
    done_ = true;
    thread_.join();
    ::close(socket_);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  int port() const {
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    std::array<char, NI_MAXSERV> text{};
    ::getsockname(socket_, reinterpret_cast<sockaddr*>(&own), &size);
    ::getnameinfo(reinterpret_cast<sockaddr*>(&own), size, nullptr, 0, text.data(), text.size(), NI_NUMERICSERV);
    int port = 0;
    std::from_chars(text.data(), text.data() + text.size(), port);
    return port;
  }

 private:
  static int listening(const Endpoint& at) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICHOST;
    hints.ai_socktype = SOCK_STREAM;
    const std::string port = std::to_string(at.port);
    if (const int error = ::getaddrinfo(at.address.c_str(), port.c_str(), &hints, &found); error != 0)
      fail(Code::transport, ::gai_strerror(error));
    const int made = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    ::setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const bool listens = ::bind(made, found->ai_addr, found->ai_addrlen) == 0 && ::listen(made, 16) == 0;
    const int error = errno;
    ::freeaddrinfo(found);
    if (listens) return made;
    ::close(made);
    fail(Code::transport, system_reason(error));
  }

  void serve() {
    while (!done_) {
      pollfd waiting{socket_, POLLIN, 0};
      if (::poll(&waiting, 1, 100) <= 0) continue;
      const int client = ::accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC);
      if (client < 0) {  // who asks stays where it is, and poll returns at once: without a file to spare for a while
        if (errno != EINTR && errno != ECONNABORTED) std::this_thread::sleep_for(std::chrono::milliseconds(100));
        continue;
      }
      const timeval patience{1, 0};  // of one who asks slowly
      ::setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
      ::setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
      send_all(client, answer_to(request_of(client)));
      ::close(client);
    }
  }
  // Who asks byte by byte does not keep the process from its end.
  std::string request_of(int client) const {
    constexpr std::size_t longest = 1 << 13;
    std::string request;
    for (std::array<char, 1024> bytes{};
         !done_ && request.size() < longest && request.find("\r\n\r\n") == request.npos;) {
      const ssize_t size = ::recv(client, bytes.data(), bytes.size(), 0);
      if (size <= 0) break;
      request.append(bytes.data(), static_cast<std::size_t>(size));
    }
    return request;
  }
  std::string answer_to(const std::string& request) const {
    const auto answer = [](const std::string& status, const std::string& body) {
      return "HTTP/1.1 " + status + "\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: " +
             std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" + body;
    };
    if (!request.starts_with("GET ")) return answer("405 Method Not Allowed", "");
    if (!request.starts_with("GET /metrics ")) return answer("404 Not Found", "");
    try {
      return answer("200 OK", prometheus::TextSerializer().Serialize(collect()));
    } catch (const std::exception&) {  // no memory
      return answer("503 Service Unavailable", "");
    }
  }
  static void send_all(int client, std::string_view text) {
    while (!text.empty()) {
      const ssize_t size = ::send(client, text.data(), text.size(), MSG_NOSIGNAL);
      if (size <= 0) return;
      text.remove_prefix(static_cast<std::size_t>(size));
    }
  }
  std::vector<MetricFamily> collect() const {
    Families families;
    for (const RankMetrics& rank : source_()) {
      const Labels own{{"rank", std::to_string(rank.rank)}};
      const double now = wall_clock();
      add_exchanges(rank, own, families);
      add_layers(rank, own, families);
      families.gauge(since_exchange, own, now - (rank.last_exchange > 0 ? rank.last_exchange : rank.started));
      families.counter(steps, own, rank.steps);
      families.counter(errors, own, rank.errors);
      if (rank.last_checkpoint > 0) families.gauge(checkpoint_age, own, now - rank.last_checkpoint);
    }
    return families.take();
  }

  Source source_;
  int socket_;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

MetricsServer::MetricsServer(const std::string& where, int rank, bool processes, Source source) {
  Endpoint at = endpoint_of(where);
  if (at.port > 0 && processes) at.port += local_rank(rank);
  try {
    expect(at.port <= most_port, Code::transport,
           "a port is at most " + std::to_string(most_port) + ", and this one that of --metrics and the local rank");
    impl_ = std::make_unique<Impl>(at, std::move(source));
    if (at.port == 0)
      print_line((processes ? "rank " + std::to_string(rank) + ": " : std::string()) + "metrics: http://" + at.address +
                 ":" + std::to_string(impl_->port()) + "/metrics");
  } catch (const std::exception& error) {
    const auto* const own = dynamic_cast<const Error*>(&error);
    warn("--metrics: " + at.address + ":" + std::to_string(at.port) +
         " cannot be listened at, there are none: " + (own != nullptr ? own->message() : error.what()));
  }
}
MetricsServer::~MetricsServer() = default;

#else

class MetricsServer::Impl {};
MetricsServer::MetricsServer(const std::string&, int, bool, Source) {}
MetricsServer::~MetricsServer() = default;

#endif

}  // namespace allnorm::launch
