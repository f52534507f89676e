#include "launch/watch/metrics_server.hpp"

#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

#include "build_config.hpp"
#include "launch/launcher.hpp"
#include "launch/terminal.hpp"

#if ALLNORM_HAVE_PROMETHEUS
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>
#endif

namespace allnorm::launch {

Endpoint endpoint_of(const std::string& text) {
  constexpr int most = 65535;
  Endpoint endpoint;
  const auto colon = text.rfind(':');
  if (colon != text.npos) endpoint.address = text.substr(0, colon);
  const std::string_view port = std::string_view(text).substr(colon == text.npos ? 0 : colon + 1);
  const auto [rest, error] = std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
  expect(error == std::errc{} && rest == port.data() + port.size() && 0 <= endpoint.port && endpoint.port <= most &&
             !endpoint.address.empty(),
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

class MetricsServer::Impl final : public prometheus::Collectable {
 public:
  explicit Impl(Source source) : source_(std::move(source)) {}

  std::vector<MetricFamily> Collect() const override {
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

  std::shared_ptr<Impl> shared;  // what the exposer looks at while it is there
  std::unique_ptr<prometheus::Exposer> exposer;

 private:
  Source source_;
};

MetricsServer::MetricsServer(const std::string& where, int rank, bool processes, Source source)
    : impl_(std::make_unique<Impl>(std::move(source))) {
  Endpoint at = endpoint_of(where);
  if (at.port > 0 && processes) at.port += local_rank(rank);
  const std::string place = at.address + ":" + std::to_string(at.port);
  try {
    impl_->shared = std::shared_ptr<Impl>(impl_.get(), [](Impl*) {});
    impl_->exposer = std::make_unique<prometheus::Exposer>(place, 1);
    impl_->exposer->RegisterCollectable(impl_->shared, "/metrics$");  // nothing behind it
    if (at.port == 0)
      print_line((processes ? "rank " + std::to_string(rank) + ": " : std::string()) + "metrics: http://" + at.address +
                 ":" + std::to_string(impl_->exposer->GetListeningPorts().at(0)) + "/metrics");
  } catch (const std::exception& error) {
    impl_->exposer.reset();
    warn("--metrics: " + place + " cannot be listened at, there are none: " + error.what());
  }
}
MetricsServer::~MetricsServer() { impl_->exposer.reset(); }

#else

class MetricsServer::Impl {};
MetricsServer::MetricsServer(const std::string&, int, bool, Source) {}
MetricsServer::~MetricsServer() = default;

#endif

}  // namespace allnorm::launch
