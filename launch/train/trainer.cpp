// One training, data-parallel over the ranks.
#include "launch/train/trainer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numbers>
#include <string>
#include <utility>

#include "allnorm/sizes.hpp"
#include "launch/watch/rank_watch.hpp"

namespace allnorm::launch::train {
namespace {

constexpr double momentum = 0.9, weight_decay = 1e-4;
constexpr double warm_up = 0.05;          // share of the training in which the rate rises
constexpr std::int64_t measurements = 4;  // of past statistics, per epoch
constexpr double one_end = 0x1p32;        // above the number of ranks: two counts in one number
constexpr std::int64_t test_batch = 128;  // images at once: bounds the memory

std::int64_t checked_updates(Images& images, const Settings& settings, const Job& job, std::int64_t calls, int ranks) {
  const auto per_update = product({ranks, job.batch, calls});
  expect(per_update && *per_update <= images.train_count(), Code::invalid_argument, [&] {
    return "images per update is " + (per_update ? std::to_string(*per_update) : std::string("more than 2^63-1")) +
           ", must be at most " + std::to_string(images.train_count()) + ", the number of training images";
  });
  images.begin_epoch(0, job.batch, calls);
  expect_fits("--epochs", settings.epochs, {images.updates(), calls});
  return images.updates() * settings.epochs;
}

/// Every value of a layer's running statistics; counters are the same on all ranks.
template <class Visit>
void for_statistics(State& state, const Visit& visit) {
  for (StateEntry& entry : state.entries) {
    if (entry.type != StateType::f64) continue;
    for (std::size_t at = 0; at < entry.data.size(); at += sizeof(double)) {
      double value = 0;
      std::memcpy(&value, entry.data.data() + at, sizeof value);
      visit(value);
      std::memcpy(entry.data.data() + at, &value, sizeof value);
    }
  }
}

/// The layers of a job, with what --nonfinite says.
Layers layers_for(const Settings& settings, const Job& job, std::int64_t calls, std::int64_t updates) {
  const NormChoice& choice = settings.norms[job.norm];
  Layers layers = layers_of(choice, job.batch, calls, updates);
  if (layers.norm) set_nonfinite(settings.ranks, choice.sets("nonfinite"), *layers.norm);
  return layers;
}

}  // namespace

Trainer::Trainer(const Settings& settings, const Job& job, const DataSet& data, Rank& rank, Wishing* wishing)
    : settings_(settings),
      job_(job),
      rank_(rank),
      images_(data, job.split, rank.size, job.seed),
      calls_(calls_per_update(settings, settings.norms[job.norm])),
      updates_(checked_updates(images_, settings, job, calls_, rank.size)),
      layers_(layers_for(settings, job, calls_, updates_)),
      group_(sync_group(rank.world, layers_.options().sync, rank.queue)),
      network_(std::make_unique<Network>(images_.shape(), data.train.classes, layers_, job.seed, group_, rank.queue)),
      velocity_(network_->parameters().size()),
      wishing_(wishing) {
  if (rank.watch != nullptr) network_->watch_calls(*rank.watch);
  const auto values = static_cast<std::size_t>(images_.shape().values());
  pixels_.resize(static_cast<std::size_t>(job.batch) * values);
  labels_.resize(static_cast<std::size_t>(job.batch));
  const std::int64_t first = images_.test_count() * rank.rank / rank.size;
  const std::int64_t end = images_.test_count() * (rank.rank + 1) / rank.size;
  test_labels_.resize(static_cast<std::size_t>(end - first));
  test_pixels_.resize(test_labels_.size() * values);
  for (std::size_t i = 0; i < test_labels_.size(); ++i)
    test_labels_[i] = images_.fill_test(first + static_cast<std::int64_t>(i), test_pixels_.data() + i * values);
}

std::optional<Epoch> Trainer::run(std::int64_t epoch, const Tick& tick) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  if (!make_updates(epoch, tick)) {
    partial_.seconds += seconds();
    return std::nullopt;
  }
  const Partial whole = std::exchange(partial_, {});
  const auto updates = static_cast<double>(whole.updates);
  Epoch result;
  result.loss = whole.loss;
  result.exchanges = whole.exchanges / updates;
  result.bytes = whole.bytes / updates;
  result.layers = measure(*network_);
  whole.past.finish(result.layers);
  average_running_statistics();
  result.test_error = 100 * share_of_errors(false);
  if (epoch + 1 == settings_.epochs && !result.layers.empty()) result.own_error = 100 * share_of_errors(true);
  result.seconds = whole.seconds + seconds();
  return result;
}

void Trainer::begin(std::int64_t epoch) {
  network_->forget();
  if (epoch > 0) return;
  images_.fill(rank_.rank, 0, 0, pixels_.data(), labels_.data());
  network_->start(pixels_.data(), job_.batch, rank_.world);
}

/// Makes the updates that are left of the epoch; false where `tick` stops it.
bool Trainer::make_updates(std::int64_t epoch, const Tick& tick) {
  images_.begin_epoch(epoch, job_.batch, calls_);
  if (partial_.updates == 0) begin(epoch);
  const std::int64_t updates = images_.updates();
  const Communicator::Traffic before = traffic();
  bool stopped = false;
  while (partial_.updates < updates && !stopped) {
    {
      const WatchStep watched(rank_.watch);
      partial_.loss += update(partial_.updates, epoch * updates + partial_.updates) / static_cast<double>(updates);
    }
    ++partial_.updates;
    stopped = tick && tick(wishes_);
  }
  const Communicator::Traffic after = traffic();
  partial_.exchanges += static_cast<double>(after.exchanges - before.exchanges);
  partial_.bytes += static_cast<double>(after.bytes - before.bytes);
  return !stopped;
}

double Trainer::update(std::int64_t index, std::int64_t step) {
  const std::span<float> gradients = network_->gradients();
  std::fill(gradients.begin(), gradients.end(), 0.0f);
  const double scale = 1 / static_cast<double>(job_.batch * calls_);
  const bool measured = layers_.options().window > 1 &&
                        (index + 1) * measurements / images_.updates() > index * measurements / images_.updates();
  double loss = 0;
  for (std::int64_t call = 0; call < calls_; ++call) {
    images_.fill(rank_.rank, index, call, pixels_.data(), labels_.data());
    PastDistances distances;
    const bool now = measured && call + 1 == calls_;
    loss += scale * network_->learn(pixels_.data(), labels_.data(), job_.batch, scale, now ? &distances : nullptr);
    for (std::size_t l = 0; l < network_->layers(); ++l)
      if (Operation* const own = network_->operation(l)) teller_.tell(l, own->nonfinite(), own->layer(), *group_);
    if (now) partial_.past.add(distances);
  }
  average_gradients(loss);
  descend(rate_at(step));
  return loss;
}

/// One exchange of everything that the ranks share in an update: all gradients, and behind them the loss and what the
/// ranks wish.
void Trainer::average_gradients(double& loss) {
  const Wishes own = wishing_ ? wishing_->own() : Wishes{};
  wishes_ = own;
  if (rank_.size > 1) {
    const std::span<float> gradients = network_->gradients();
    Message message{Header("gradients", Direction::gradients, exchanges_++), {}, 0, {}};
    message.payload.reserve(gradients.size() + 2);
    message.payload.assign(gradients.begin(), gradients.end());
    message.payload.push_back(loss);
    message.payload.push_back((own.save ? 1 : 0) + (own.end ? one_end : 0));
    const Message sum = rank_.world->exchange(std::move(message), rank_.queue);
    const double ranks = rank_.size;
    for (std::size_t i = 0; i < gradients.size(); ++i) gradients[i] = static_cast<float>(sum.payload[i] / ranks);
    loss = sum.payload[gradients.size()] / ranks;
    wishes_ = {std::fmod(sum.payload.back(), one_end) > 0, sum.payload.back() >= one_end};
  }
  if (wishing_) wishing_->agree(wishes_);
}

/// Stochastic gradient descent with heavy-ball momentum.
void Trainer::descend(double rate) {
  const std::span<float> parameters = network_->parameters(), gradients = network_->gradients();
  for (const Network::Range& range : network_->decayed())
    for (std::size_t i = range.begin; i < range.end; ++i)
      gradients[i] += static_cast<float>(weight_decay) * parameters[i];
  const auto keep = static_cast<float>(momentum), step = static_cast<float>(rate);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    velocity_[i] = keep * velocity_[i] + gradients[i];
    parameters[i] -= step * velocity_[i];
  }
}

/// Layers whose statistics are not those of all ranks have other running statistics on every rank; one network needs
/// one set.
void Trainer::average_running_statistics() {
  if (rank_.size == 1 || group_->size() == rank_.size) return;
  Message message{Header("running statistics", Direction::gradients, exchanges_++), {}, 0, {}};
  std::vector<State> states;  // [layer]
  for (std::size_t l = 0; l < network_->layers(); ++l) {
    Operation* const own = network_->operation(l);
    states.push_back(own ? own->state(network_->queue()) : State{});
    for_statistics(states.back(), [&](double& value) { message.payload.push_back(value); });
  }
  if (message.payload.empty()) return;
  const Message sum = rank_.world->exchange(std::move(message), rank_.queue);
  std::size_t at = 0;
  for (std::size_t l = 0; l < network_->layers(); ++l) {
    for_statistics(states[l], [&](double& value) { value = sum.payload[at++] / rank_.size; });
    if (!states[l].entries.empty()) network_->operation(l)->set_state(states[l], network_->queue());
  }
}

double Trainer::rate_at(std::int64_t step) const noexcept {
  const double t = static_cast<double>(step), all = static_cast<double>(updates_);
  const double peak = peak_rate(settings_, rank_.size * job_.batch * calls_);
  return peak * std::min(1.0, (t + 1) / (warm_up * all)) * 0.5 * (1 + std::cos(std::numbers::pi * t / all));
}

double Trainer::share_of_errors(bool own_statistics) {
  const auto count = static_cast<std::int64_t>(test_labels_.size());
  double errors = 0;
  for (std::int64_t i = 0; i < count; i += test_batch) {
    float* pixels = test_pixels_.data() + i * images_.shape().values();
    const std::int64_t* labels = test_labels_.data() + i;
    const std::int64_t batch = std::min(test_batch, count - i);
    errors += static_cast<double>(own_statistics ? network_->count_errors_by_own_statistics(pixels, labels, batch)
                                                 : network_->count_errors(pixels, labels, batch));
  }
  Message message{Header("test errors", Direction::gradients, exchanges_++), {errors}, 0, {}};
  if (rank_.size > 1) message = rank_.world->exchange(std::move(message), rank_.queue);
  return message.payload[0] / static_cast<double>(images_.test_count());
}

Communicator::Traffic Trainer::traffic() const {
  Communicator::Traffic sum = rank_.world->traffic();
  if (group_ != rank_.world && group_->size() > 1) {
    sum.exchanges += group_->traffic().exchanges;
    sum.bytes += group_->traffic().bytes;
  }
  return sum;
}

}  // namespace allnorm::launch::train
