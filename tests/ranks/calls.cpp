#include "calls.hpp"

#include <utility>

#include "cases.hpp"

namespace calls {

using namespace allnorm;
using reference::Doubles;
using Extents = std::vector<std::int64_t>;

namespace {

const Extents like_input{2, 4, 3};

TensorView view_of(Doubles& values, const Extents& shape) {
  return view(values.data(), Shape(std::span<const std::int64_t>(shape)));
}

}  // namespace

const std::vector<Subject>& subjects() {
  static const std::vector<Subject> all{
      {"sync_batch_norm:activation=relu", {{"weight", {4}}, {"bias", {4}}, {"residual", like_input}}},
      {"cross_iteration_batch_norm:sync=world:window=3:minibatches=2:renorm=true:burn_in=1",
       {{"weight", {4}}, {"conv_input", {2, 2, 3}}, {"conv_weight", {4, 2, 1}}}},
      {"instance_norm:sync=world:track=true", {{"weight", {4}}}},
      {"mean_only_batch_norm:sync=world", {{"bias", {4}}}},
      {"switchable_norm:sync=world", {{"weight", {4}}, {"mean_logits", {3}}, {"var_logits", {3}}}},
      {"conditional_batch_norm:sync=world:window=2:compensate=false", {{"delta_weight", {2, 4}}}},
      {"group_norm:sync=world:groups=2", {{"weight", {4}}, {"bias", {4}}}},
  };
  return all;
}

Calls::Calls(const Subject& subject, const harness::World& world, Queue& queue)
    : subject_(subject), world_(world), queue_(queue) {
  operation_ = make_operation(parse_layer(subject.layer), like_input[1], world, queue);
}

Doubles& Calls::values(const std::string& name, const Extents& shape, std::uint64_t seed) {
  cases::Random random(seed);
  return values_[name] = cases::normal(random, shape).v;
}

void Calls::prepare(std::uint64_t call) {
  const Row& row = *operation_->layer().row;
  const std::uint64_t step = call / 2, own = 100 * step + static_cast<std::uint64_t>(world_->rank());
  forward_ = call % 2 == 0;
  inputs_ = {};
  outputs_ = {};
  if (forward_) {
    const auto batch = step / static_cast<std::uint64_t>(operation_->layer().options.minibatches);
    values_.clear();
    inputs_.add("input", view_of(values("input", like_input, own), like_input));
    for (const auto& [name, shape] : subject_.tensors)
      inputs_.add(name, view_of(values(name, shape, name == "conv_weight" ? 7 + batch : own), shape));
    outputs_.add("output", view_of(values("output", like_input, 0), like_input));
    return;
  }
  values_.erase("output");
  inputs_.add("grad_output", view_of(values("grad_output", like_input, own + 50), like_input));
  outputs_.add("grad_input", view_of(values("grad_input", like_input, 0), like_input));
  for (const auto& [name, shape] : subject_.tensors)
    if (const std::string gradient = "grad_" + name; row.output(gradient) != nullptr)
      outputs_.add(row.output(gradient)->name, view_of(values(gradient, shape, 0), shape));
}

void Calls::poison(double value) { values_.at(forward_ ? "input" : "grad_output").front() = value; }

void Calls::make() {
  if (forward_)
    saved_ = operation_->forward(inputs_, outputs_, queue_);
  else
    operation_->backward(*saved_, inputs_, outputs_, queue_);
}

Doubles Calls::results() const {
  Doubles all;
  for (const auto& [name, view] : outputs_) {
    const Doubles& own = values_.at(std::string(name));
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}

std::vector<std::byte> Calls::state() const {
  std::vector<std::byte> bytes;
  for (const StateEntry& entry : operation_->save(queue_).entries) {
    for (const char letter : entry.name) bytes.push_back(static_cast<std::byte>(letter));
    bytes.insert(bytes.end(), entry.data.begin(), entry.data.end());
  }
  return bytes;
}

}  // namespace calls
