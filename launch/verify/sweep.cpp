#include "launch/verify/sweep.hpp"

#include <algorithm>
#include <cmath>

#include "launch/verify/subject.hpp"

namespace allnorm::launch::verify {

namespace {

constexpr DType types[] = {DType::f64, DType::f32, DType::f16, DType::bf16};
constexpr Order orders[] = {Order::channels_first, Order::channels_last};
constexpr std::size_t most_failures = 5;  // told of a layer
constexpr double no_number = 1e300;       // the error of what is not finite, or not there

const reference::Defined* defined(const Row& row) {
  for (const reference::Defined& one : reference::definitions())
    if (one.row == row.name) return &one;
  return nullptr;
}

std::size_t layouts_of(const Row& row) { return row.by_trailing() ? 1 : std::size(orders); }

std::string layout_of(const Row& row, Order order) {
  if (row.by_trailing()) return "as it lies";
  return order == Order::channels_first ? "channels_first" : "channels_last";
}

double error_of(const reference::Doubles& got, const reference::Doubles& want, double tolerance) {
  // What may be off by anything is not compared: the reference is wrong itself.
  if (got.size() != want.size() || !std::isfinite(tolerance)) return no_number;
  double most = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double off = std::abs(got[i] - want[i]);
    most = std::max(most, std::isfinite(off) ? off : no_number);
  }
  return std::min(most == 0 ? 0 : most / tolerance, no_number);
}

/// The worst of one rank, of one run.
struct Worst {
  double error = 0;
  std::size_t name = 0;  // of names_of()
  std::int64_t step = 0;
};

// Everything that a call may make, and must be told of by the reference.
std::vector<std::string> names_of(const Row& row) {
  std::vector<std::string> names{"output", "grad_input"};
  for (const OutputSpec& output : row.outputs) names.emplace_back(output.name);
  return names;
}

class Run {
 public:
  Run(const Trial& trial, DType dtype, Order order, Rank& rank)
      : cut_(trial, rank.rank, rank.size),
        rank_(rank),
        dtype_(dtype),
        order_(order),
        names_(names_of(*trial.layer.row)) {}

  Worst of(const std::vector<Step>& script) {
    const auto& shape = script.front().given.find("input")->second.shape;
    const std::int64_t whole = shape.size() < 2 ? 1 : shape[1];
    const auto own = cut_.part(spec_of(row(), "input"), script.front().given.find("input")->second).shape;
    auto group = cut_.cuts() ? rank_.world : self();
    Subject subject(cut_.layer(), shape.size() < 2 ? whole : own[1], dtype_, order_, std::move(group), rank_.queue);
    Worst worst;
    for (std::size_t i = 0; i < script.size(); ++i) {
      Made made = subject.call(cut_.part(script[i].given), script[i].training);
      add_up(made);
      for (std::size_t name = 0; name < names_.size(); ++name) {
        const double error = compare(names_[name], made, script[i]);
        if (error > worst.error) worst = {error, name, static_cast<std::int64_t>(i)};
      }
    }
    return worst;
  }

  const std::vector<std::string>& names() const noexcept { return names_; }

 private:
  const Row& row() const { return *cut_.layer().row; }
  bool is_share(std::string_view name) const {
    const TensorSpec* of = row().gradient(name);
    return cut_.cuts() && of != nullptr && !cut_.axis_of(*of);
  }
  // Ranks have shares of the gradients of what they have whole.
  void add_up(Made& made) {
    std::vector<double> all;
    for (const auto& [name, array] : made)
      if (is_share(name)) all.insert(all.end(), array.v.begin(), array.v.end());
    if (!cut_.cuts()) return;
    const auto sums = rank_.world->exchange({Header("verify", Direction::agreement, 0), all, 0, {}}, rank_.queue);
    auto from = sums.payload.begin();
    for (auto& [name, array] : made)
      if (is_share(name)) {
        const auto to = from + static_cast<std::ptrdiff_t>(array.v.size());
        array.v.assign(from, to);
        from = to;
      }
  }
  double compare(const std::string& name, const Made& made, const Step& step) const {
    const auto got = made.find(name);
    const auto want = step.answers.find(name);
    if (got == made.end() && want == step.answers.end()) return 0;
    if (got == made.end() || want == step.answers.end()) return no_number;
    const bool cpu = rank_.queue.device().kind == DeviceKind::cpu;
    const double tolerance = tolerance_of(want->second, dtype_, cpu ? 0 : reference::gpu_statistics);
    const TensorSpec* of = row().gradient(name);
    if (of == nullptr && name != "output" && name != "grad_input")
      return error_of(got->second.v, want->second.values, tolerance);
    const std::string_view like = of != nullptr ? of->name : "input";
    const Array whole{step.given.find(like)->second.shape, want->second.values};  // of what is cut: output too
    const TensorSpec spec = spec_of(row(), like);
    return error_of(got->second.v, cut_.axis_of(spec) ? cut_.part(spec, whole).v : whole.v, tolerance);
  }

  Cut cut_;
  Rank& rank_;
  DType dtype_;
  Order order_;
  std::vector<std::string> names_;
};

// The worst of all ranks, and whose it is.
std::pair<Worst, int> worst_of_all(const Worst& own, Rank& rank) {
  constexpr std::size_t words = 3;
  const auto at = static_cast<std::size_t>(rank.rank) * words;
  std::vector<double> slots(words * static_cast<std::size_t>(rank.size));
  slots[at] = own.error, slots[at + 1] = static_cast<double>(own.name), slots[at + 2] = static_cast<double>(own.step);
  const Message all = rank.world->exchange({Header("verify", Direction::agreement, 1), slots, 0, {}}, rank.queue);
  std::pair<Worst, int> worst{{}, 0};
  for (int r = 0; r < rank.size; ++r) {
    const double* slot = all.payload.data() + static_cast<std::size_t>(r) * words;
    if (slot[0] > worst.first.error)
      worst = {{slot[0], static_cast<std::size_t>(slot[1]), static_cast<std::int64_t>(slot[2])}, r};
  }
  return worst;
}

Place run(const Trial& trial, DType dtype, Order order, const std::vector<Step>& script, Rank& rank) {
  const Row& row = *trial.layer.row;
  Place place{.device = rank.queue.device().kind == DeviceKind::cpu ? "cpu" : "cuda",
              .transport = std::string(rank.world->transport()),
              .dtype = std::string(to_string(dtype)),
              .layout = layout_of(row, order),
              .attributes = trial.attributes};
  try {
    Run one(trial, dtype, order, rank);
    const auto [worst, whose] = worst_of_all(one.of(script), rank);
    place.error = worst.error;
    place.tensor = one.names()[worst.name];
    place.step = worst.step;
    place.rank = whose;
  } catch (const Error& error) {
    if (rank.size > 1) throw;  // the others wait for this rank
    place.error = no_number;
    place.reason = error.message();
  }
  return place;
}

void add(Outcome& outcome, const Place& place) {
  ++outcome.runs;
  if (!(place.error <= outcome.worst.error) || outcome.runs == 1) outcome.worst = place;
  if (place.error <= 1) return;
  ++outcome.failed;
  if (outcome.failures.size() < most_failures) outcome.failures.push_back(place);
}

}  // namespace

std::int64_t runs_of(const std::vector<const Row*>& layers) {
  std::size_t runs = 0;
  for (const Row* row : layers)
    if (const auto* one = defined(*row)) runs += trials_of(*row, *one).size() * std::size(types) * layouts_of(*row);
  return static_cast<std::int64_t>(runs);
}

std::vector<Outcome> sweep(const std::vector<const Row*>& layers, Rank& rank,
                           const std::function<void(const Outcome&)>& tick) {
  std::vector<Outcome> outcomes;
  for (const Row* row : layers) {
    Outcome& outcome = outcomes.emplace_back(Outcome{row});
    const reference::Defined* definition = defined(*row);
    if (definition == nullptr) {
      add(outcome, {.error = no_number, .reason = "the reference does not have it"});
      continue;
    }
    for (const Trial& trial : trials_of(*row, *definition))
      for (const DType dtype : types) {
        const std::vector<Step> script = script_of(trial, dtype);
        for (std::size_t order = 0; order < layouts_of(*row); ++order) {
          add(outcome, run(trial, dtype, orders[order], script, rank));
          tick(outcome);
        }
      }
  }
  return outcomes;
}

}  // namespace allnorm::launch::verify
