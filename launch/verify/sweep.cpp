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

/// The worst of one rank, of one run.
struct Worst {
  double error = 0;
  std::size_t name = 0;  // of names_of()
  std::int64_t step = 0;
  std::int64_t value = 0;   // of the rank's part, in logical order
  double thrown = 0;        // 1: by this rank itself, 2: because another one did; then `error` means nothing
  std::string reason = {};  // with it
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
        names_(names_of(*trial.layer.row)),
        compared_(names_.size()) {}

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
        const Off off = compare(names_[name], made, script[i]);
        if (made.find(names_[name]) != made.end()) compared_[name] = true;
        if (off.error > worst.error) worst = {off.error, name, static_cast<std::int64_t>(i), off.value};
      }
    }
    return worst;
  }

  const std::vector<std::string>& names() const noexcept { return names_; }
  /// [of names()] whether it was there in a step.
  const std::vector<bool>& compared() const noexcept { return compared_; }

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
  Off compare(const std::string& name, const Made& made, const Step& step) const {
    const auto got = made.find(name);
    const auto want = step.answers.find(name);
    if (got == made.end() && want == step.answers.end()) return {};
    if (got == made.end() || want == step.answers.end()) return {no_number};
    const bool gpu = rank_.queue.device().kind != DeviceKind::cpu;
    const auto tolerances = tolerances_of(want->second, dtype_, reference::statistics_unit(dtype_, gpu));
    const TensorSpec* of = row().gradient(name);
    if (of == nullptr && name != "output" && name != "grad_input")
      return worst_of(got->second.v, want->second.values, tolerances);
    const std::string_view like = of != nullptr ? of->name : "input";
    const TensorSpec spec = spec_of(row(), like);
    const auto own = [&](const reference::Doubles& whole) {  // of what is cut: output too
      return cut_.axis_of(spec) ? cut_.part(spec, {step.given.find(like)->second.shape, whole}).v : whole;
    };
    return worst_of(got->second.v, own(want->second.values), own(tolerances));
  }

  Cut cut_;
  Rank& rank_;
  DType dtype_;
  Order order_;
  std::vector<std::string> names_;
  std::vector<bool> compared_;
};

// After these a group goes on (allnorm/communicator.hpp).
bool goes_on(const Error& error) {
  return error.code() != Code::timeout && error.code() != Code::transport && error.code() != Code::device;
}

// `exchange()`, which all ranks come to, of a run that may have thrown on some of them before its last exchange: the
// others are in that one then, where all find out that they disagree, and come here next.
template <class Exchange>
auto once_all_are_here(const Exchange& exchange) {
  try {
    return exchange();
  } catch (const Error& error) {
    if (error.code() != Code::mismatch && error.code() != Code::aborted) throw;
    return exchange();
  }
}

// The worst of all ranks, and whose it is: of those that threw the first one that did so by itself.
std::pair<Worst, int> worst_of_all(const Worst& own, Rank& rank) {
  constexpr std::size_t words = 5, longest = 192;  // of a reason
  const auto at = static_cast<std::size_t>(rank.rank) * words;
  std::vector<double> slots(words * static_cast<std::size_t>(rank.size));
  slots[at] = own.error, slots[at + 1] = static_cast<double>(own.name), slots[at + 2] = static_cast<double>(own.step);
  slots[at + 3] = static_cast<double>(own.value), slots[at + 4] = own.thrown;
  const Message all = once_all_are_here([&] {
    return rank.world->exchange({Header("verify", Direction::agreement, 1), slots, 0, {}}, rank.queue);
  });
  std::pair<Worst, int> worst{{}, 0};
  const auto counts_more = [&worst](double error, double thrown) {
    if (thrown != worst.first.thrown) return thrown > 0 && (worst.first.thrown == 0 || thrown < worst.first.thrown);
    return thrown == 0 && error > worst.first.error;
  };
  for (int r = 0; r < rank.size; ++r) {
    const double* slot = all.payload.data() + static_cast<std::size_t>(r) * words;
    if (counts_more(slot[0], slot[4]))
      worst = {{slot[0], static_cast<std::size_t>(slot[1]), static_cast<std::int64_t>(slot[2]),
                static_cast<std::int64_t>(slot[3]), slot[4]},
               r};
  }
  if (worst.first.thrown == 0) return worst;
  std::vector<double> letters(longest);
  if (rank.rank == worst.second) std::copy_n(own.reason.begin(), std::min(own.reason.size(), longest), letters.begin());
  const Message text = rank.world->exchange({Header("verify", Direction::agreement, 2), letters, 0, {}}, rank.queue);
  for (const double letter : text.payload)
    if (letter != 0) worst.first.reason += static_cast<char>(letter);
  return worst;
}

Place run(const Trial& trial, DType dtype, Order order, const std::vector<Step>& script, Rank& rank,
          std::vector<bool>& compared) {
  const Row& row = *trial.layer.row;
  Place place{.device = rank.queue.device().kind == DeviceKind::cpu ? "cpu" : "cuda",
              .transport = std::string(rank.world->transport()),
              .dtype = std::string(to_string(dtype)),
              .layout = layout_of(row, order),
              .attributes = trial.attributes};
  Run one(trial, dtype, order, rank);
  Worst own;
  try {
    own = one.of(script);
  } catch (const Error& error) {
    // On GPUs the others may be in their streams, where a message of the host meets nobody.
    if (rank.size > 1 && !(goes_on(error) && rank.queue.device().kind == DeviceKind::cpu)) throw;
    const bool follows = error.code() == Code::aborted || error.code() == Code::mismatch;
    own = {no_number, 0, 0, 0, follows ? 2.0 : 1.0, error.message()};
  }
  const auto [worst, whose] = worst_of_all(own, rank);
  place.error = worst.error;
  place.rank = whose;
  place.reason = worst.reason;
  if (worst.thrown == 0) {
    place.tensor = one.names()[worst.name];
    place.step = worst.step;
    place.value = worst.value;
  }
  for (std::size_t name = 0; name < compared.size(); ++name) compared[name] = compared[name] || one.compared()[name];
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

Off worst_of(const reference::Doubles& got, const reference::Doubles& want, const reference::Doubles& tolerances) {
  if (got.size() != want.size()) return {no_number};
  Off worst;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double off = std::abs(got[i] - want[i]);
    double error = off == 0 ? 0 : std::min(off / tolerances[i], no_number);
    // What may be off by anything is not compared: the reference is wrong itself.
    if (!std::isfinite(off) || !std::isfinite(tolerances[i])) error = no_number;
    if (error > worst.error) worst = {error, static_cast<std::int64_t>(i)};
  }
  return worst;
}

std::int64_t runs_of(const std::vector<const Row*>& layers) {
  std::size_t runs = 0;
  for (const Row* row : layers)
    if (const auto* one = defined(*row)) runs += trials_of(*row, *one).size() * std::size(types) * layouts_of(*row);
  return static_cast<std::int64_t>(runs);
}

std::vector<Outcome> sweep(const std::vector<const Row*>& layers, Rank& rank,
                           const std::function<void(const Outcome&)>& tick, const Draws& draws) {
  std::vector<Outcome> outcomes;
  for (const Row* row : layers) {
    Outcome& outcome = outcomes.emplace_back(Outcome{row});
    const reference::Defined* definition = defined(*row);
    if (definition == nullptr) {
      add(outcome, {.error = no_number, .reason = "the reference does not have it"});
      continue;
    }
    const std::vector<std::string> names = names_of(*row);
    std::vector<bool> compared(names.size());
    for (const Trial& trial : trials_of(*row, *definition, draws))
      for (const DType dtype : types) {
        const std::vector<Step> script = script_of(trial, dtype);
        for (std::size_t order = 0; order < layouts_of(*row); ++order) {
          add(outcome, run(trial, dtype, orders[order], script, rank, compared));
          tick(outcome);
        }
      }
    for (std::size_t name = 0; name < names.size(); ++name)  // what neither side has is not right, but untried
      if (!compared[name]) add(outcome, {.error = no_number, .reason = names[name] + " is in no run of the layer"});
  }
  return outcomes;
}

}  // namespace allnorm::launch::verify
