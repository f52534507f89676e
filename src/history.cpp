#include "history.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "allnorm/message.hpp"
#include "kernels/formulas.hpp"

namespace allnorm {

namespace {

std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

// Row of dmean that belongs to channel c.
std::size_t mean_row(const WeightShape& shape, std::int64_t c) noexcept {
  return index(c * shape.mean_rows / shape.channels);
}

// Sixteen partial sums: independent, so that the compiler can keep them in vectors.
template <class T>
double product(const T* derivative, const double* now, const T* then, std::size_t size) noexcept {
  constexpr std::size_t lanes = 16;
  double sums[lanes] = {};
  std::size_t i = 0;
  for (; i + lanes <= size; i += lanes)
    for (std::size_t j = 0; j < lanes; ++j)
      sums[j] += static_cast<double>(derivative[i + j]) * (now[i + j] - static_cast<double>(then[i + j]));
  for (; i < size; ++i) sums[0] += static_cast<double>(derivative[i]) * (now[i] - static_cast<double>(then[i]));
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

// <row of `derivative`, weights now - weights then>
double product(const Kept& derivative, std::size_t derivative_row, const std::vector<double>& now, const Kept& then,
               std::size_t channel, std::size_t fan_in) noexcept {
  const std::size_t from = derivative_row * fan_in, at = channel * fan_in;
  if (derivative.wide.empty())
    return product(derivative.narrow.data() + from, now.data() + at, then.narrow.data() + at, fan_in);
  return product(derivative.wide.data() + from, now.data() + at, then.wide.data() + at, fan_in);
}

}  // namespace

History::History(const NormOptions& options, std::int64_t channels) : options_(options), channels_(channels) {}

std::int64_t History::entries_used() const noexcept { return in_burn_in() ? 0 : entries(); }

bool History::wants_derivatives() const noexcept {
  return options_.window > 1 && options_.compensate && (!in_burn_in() || options_.fill_in_burn_in);
}

void History::check(const DerivativeSource& source) const {
  const WeightShape& shape = source.shape;
  expect(!shape_ || *shape_ == shape, Code::invalid_argument, [&] {
    return "conv_weight has " + std::to_string(shape.channels) + " x " + std::to_string(shape.fan_in) +
           " weights (channels x fan-in), must have " + std::to_string(shape_->channels) + " x " +
           std::to_string(shape_->fan_in) + " as in the window's earlier calls";
  });
  if (batch_.theta.empty()) return;
  const Kept now(source.theta, batch_.theta.narrow.empty());
  expect(now.narrow == batch_.theta.narrow && now.wide == batch_.theta.wide, Code::invalid_argument,
         "conv_weight has changed within a batch of mini-batches, must be the same until the batch ends");
}

std::uint64_t History::hash() const noexcept {
  if (!active()) return 0;
  std::uint64_t hash = hash_of(&batches_, sizeof batches_);
  const auto mix = [&hash](const std::vector<double>& v) { hash = hash_of(v.data(), v.size(), hash); };
  hash = hash_of(&batch_.weight, 1, hash_of(&batch_.count, 1, hash));
  mix(batch_.mean);
  mix(batch_.var);
  mix(batch_.running.mean);
  mix(batch_.running.var);
  for (const auto& entry : window_) {
    hash = hash_of(&entry->count, 1, hash);
    mix(entry->mean);
    mix(entry->var);
  }
  return hash;
}

void History::lanes(const DerivativeSource& source, std::vector<double>& payload) const {
  const auto fan_in = index(source.shape.fan_in);
  for (std::int64_t j = 0; j < entries_used(); ++j) {
    const WindowEntry& entry = *window_[index(j)];
    for (std::int64_t c = 0; c < channels_; ++c)
      payload.push_back(product(entry.dmean, mean_row(source.shape, c), source.theta, entry.weight, index(c), fan_in));
    for (std::int64_t c = 0; c < channels_; ++c)
      payload.push_back(product(entry.dvar, index(c), source.theta, entry.weight, index(c), fan_in));
  }
}

// The window average of this batch's statistics and the past entries, per channel.
void History::average_window(const Statistics& own, std::span<const double> lanes, Step& step,
                             std::vector<double>& counts) const {
  const auto entries = entries_used();
  const auto C = index(channels_);
  Norm::PastStatistics& past = step.past;
  past.entries = entries;
  past.stale_mean.resize(index(entries) * C);
  past.stale_var.resize(index(entries) * C);
  past.mean.resize(index(entries) * C);
  past.var.resize(index(entries) * C);
  for (std::size_t j = 0; j < index(entries); ++j)
    for (std::size_t c = 0; c < C; ++c) {
      const WindowEntry& entry = *window_[j];
      const formulas::Moments stale{entry.mean[c], entry.var[c]};
      const double dmean = lanes.empty() ? 0 : lanes[2 * j * C + c];
      const double dvar = lanes.empty() ? 0 : lanes[(2 * j + 1) * C + c];
      const auto moved = formulas::compensate(stale, dmean, dvar);
      past.stale_mean[j * C + c] = stale.mean;
      past.stale_var[j * C + c] = stale.var;
      past.mean[j * C + c] = moved.mean;
      past.var[j * C + c] = moved.var;
    }
  step.use.count = own.count;
  for (std::size_t c = 0; c < C; ++c) {
    const auto average = formulas::window(
        {own.mean[c], own.var[c]}, own.count, static_cast<int>(entries), options_.guard,
        [&](int j) {
          const std::size_t at = static_cast<std::size_t>(j) * C + c;
          return formulas::Moments{past.mean[at], past.var[at]};
        },
        [&](int j) { return window_[static_cast<std::size_t>(j)]->count; });
    step.use.mean[c] = average.moments.mean;
    step.use.var[c] = average.moments.var;
    step.use.share[c] = own.share[c] * average.share;
    counts[c] = average.count;
  }
}

// Derivatives accumulate with the moments' weights f, the second about a point that stays fixed in a batch.
void History::add_derivatives(const DerivativeSource& source, const Statistics& current, double f,
                              BatchSoFar& batch) const {
  const auto C = index(source.shape.channels), fan_in = index(source.shape.fan_in);
  const auto rows = index(source.shape.mean_rows);
  if (batch.center.empty()) {
    batch.center = current.mean;
    batch.dmean = Kept(rows * fan_in, source.wide);
    batch.dsquare = Kept(C * fan_in, source.wide);
    batch.theta = Kept(source.theta, source.wide);
  }
  std::vector<double> patch_sum(rows * fan_in), products(C * fan_in);
  source.sums(batch.center, patch_sum, products);
  const auto move = [f](Kept& kept, const std::vector<double>& values, double scale) {
    kept.visit([&](auto& to) {
      using T = typename std::decay_t<decltype(to)>::value_type;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double before = static_cast<double>(to[i]);
        to[i] = static_cast<T>(before + f * (values[i] * scale - before));
      }
    });
  };
  move(batch.dmean, patch_sum, 1 / current.count);
  move(batch.dsquare, products, 2 / current.count);
}

History::Step History::fold(const Statistics& current, std::span<const double> lanes,
                            const DerivativeSource* source) const {
  const bool many = options_.minibatches > 1;
  const auto C = index(channels_);
  Step step;
  BatchSoFar& batch = step.batch = batch_;

  const double weight = current.count == 0 ? 0 : options_.weighting == Weighting::count ? current.count : 1;
  batch.done += 1;
  batch.weight += weight;
  batch.count += current.count;
  const double f = batch.weight > 0 ? weight / batch.weight : 0;
  batch.mean.resize(C);
  batch.var.resize(C);
  for (std::size_t c = 0; c < C; ++c) {
    const auto sum = formulas::accumulate({batch.mean[c], batch.var[c]}, {current.mean[c], current.var[c]}, f);
    batch.mean[c] = sum.mean;
    batch.var[c] = sum.var;
  }
  if (source) {
    step.shape = source->shape;
    if (wants_derivatives() && current.count > 0) add_derivatives(*source, current, f, batch);
  }

  Statistics own = current;
  if (many && !in_burn_in()) own = {batch.count, batch.mean, batch.var, std::vector<double>(C, f)};
  std::vector<double> counts(C, own.count);
  step.use = own;
  if (entries_used() > 0 && own.count > 0) average_window(own, lanes, step, counts);

  if (current.count > 0) {
    const bool from_window = options_.running_source == RunningSource::window && entries_used() > 0;
    RunningValues& running = batch.running;
    running.given = true;
    running.mean = from_window ? step.use.mean : batch.mean;
    running.biased = from_window ? step.use.var : batch.var;
    running.var = running.biased;
    if (options_.unbiased_running_var)
      for (std::size_t c = 0; c < C; ++c) running.var[c] *= formulas::bessel(from_window ? counts[c] : batch.count);
    if (options_.running == RunningUpdate::every) step.running = running;
  }
  if (batch.done >= options_.minibatches) close_batch(step);
  return step;
}

// The batch becomes an entry of the window, and the running statistics move (`last`).
void History::close_batch(Step& step) const {
  BatchSoFar batch = std::exchange(step.batch, {});
  if (batch.weight == 0) return;
  step.completes_batch = true;
  if (options_.running == RunningUpdate::last) step.running = std::move(batch.running);
  if (options_.window == 1 || (in_burn_in() && !options_.fill_in_burn_in)) return;
  if (options_.compensate && batch.dmean.empty()) return;  // nothing that could be moved to later weights

  const auto made = std::make_shared<WindowEntry>();
  WindowEntry& entry = *made;
  entry.count = batch.count;
  if (!batch.dmean.empty()) {
    const WeightShape shape = step.shape ? *step.shape : *shape_;
    const auto fan_in = index(shape.fan_in);
    const auto centre = [&](auto& dsquare, const auto& dmean) {
      using T = typename std::decay_t<decltype(dsquare)>::value_type;
      for (std::int64_t c = 0; c < channels_; ++c) {
        const double twice = 2 * (batch.mean[index(c)] - batch.center[index(c)]);
        const std::size_t at = index(c) * fan_in, row = mean_row(shape, c) * fan_in;
        for (std::size_t i = 0; twice != 0 && i < fan_in; ++i)
          dsquare[at + i] =
              static_cast<T>(static_cast<double>(dsquare[at + i]) - twice * static_cast<double>(dmean[row + i]));
      }
    };
    if (batch.dsquare.wide.empty())
      centre(batch.dsquare.narrow, batch.dmean.narrow);
    else
      centre(batch.dsquare.wide, batch.dmean.wide);
    entry.dmean = std::move(batch.dmean);
    entry.dvar = std::move(batch.dsquare);
    entry.weight = std::move(batch.theta);
  }
  entry.mean = std::move(batch.mean);
  entry.var = std::move(batch.var);
  Window& window = step.window.emplace(window_);
  window.insert(window.begin(), made);
  if (static_cast<std::int64_t>(window.size()) > options_.window - 1) window.pop_back();
}

void History::commit(Step&& step) noexcept {
  batch_ = std::move(step.batch);
  if (step.shape) shape_ = step.shape;
  if (step.completes_batch) ++batches_;
  if (step.window) window_ = std::move(*step.window);
}

std::optional<History::Step> History::cut_short() const {
  if (batch_.done == 0) return std::nullopt;
  Step step;
  step.batch = batch_;
  close_batch(step);
  return step;
}

std::size_t History::bytes() const noexcept {
  std::size_t sum = 0;
  const auto add = [&](const std::vector<double>& v) { sum += v.size() * sizeof(double); };
  for (const auto& entry : window_) {
    add(entry->mean);
    add(entry->var);
    sum += entry->dmean.bytes() + entry->dvar.bytes() + entry->weight.bytes();
  }
  for (const auto* v :
       {&batch_.mean, &batch_.var, &batch_.center, &batch_.running.mean, &batch_.running.var, &batch_.running.biased})
    add(*v);
  return sum + batch_.dmean.bytes() + batch_.dsquare.bytes() + batch_.theta.bytes();
}

}  // namespace allnorm
