// The operators torch.ops.allnorm: the halves of a layer's calls on tensors, for the modules of the Python package.
#include <exception>
#include <tuple>
#include <utility>
#include <vector>

#include "layers.hpp"

namespace allnorm_torch {

namespace {

/// The tensors of a forward call but its state.
struct Inputs {
  const Tensor& x;
  const Optional &residual, &weight, &bias, &tau, &eps_learned, &conv_input, &conv_weight;

  bool is_channels_last() const { return !is_dense(x, false) && is_dense(x, true); }
  void add_to(Slots& slots) const {
    const bool last = is_channels_last();
    slots.add("input", x, last);
    slots.add("residual", residual, last);
    slots.add("weight", weight);
    slots.add("bias", bias);
    slots.add("tau", tau);
    slots.add("eps_learned", eps_learned);
    slots.add("conv_input", conv_input, last);
    slots.add("conv_weight", conv_weight);
  }
};

/// What a module keeps of its layer.
struct State {
  const Optional &history, &running_mean, &running_var, &num_batches_tracked;

  void add_to(Slots& slots, const Ready& layer, bool writes) const {
    slots.add("running_mean", running_mean, false, writes);
    slots.add(layer.sizes.keeps_running == 2 ? "running_std" : "running_var", running_var, false, writes);
    slots.add("num_batches_tracked", num_batches_tracked, false, writes);
  }
  void add_to(allnorm_memory& memory, bool writes, const std::string& name) const {
    if (!history || history->numel() == 0) return;
    expect_array("state", *history, ScalarType::Byte, history->numel(), name);
    memory.history = writes ? history->mutable_data_ptr() : const_cast<void*>(history->const_data_ptr());
    memory.history_bytes = history->numel() * static_cast<std::int64_t>(history->element_size());
  }
};

/// What is asked for of a backward call, and what it makes: empty where it is not.
struct Gradients {
  enum Wanted : std::size_t { dx, dresidual, dweight, dbias, dtau, deps };
  const std::vector<bool>& wanted;

  bool wants(Wanted which) const { return which < wanted.size() && wanted[which]; }
};

Tensor bytes(const Tensor& like, std::int64_t size) { return new_array(like, size, ScalarType::Byte); }
Optional like_if(bool wanted, const Optional& parameter) {
  return wanted && parameter ? Optional(new_like(*parameter)) : std::nullopt;
}

/// The layer of a call: with running statistics for as many channels as these have, or the input.
Ready& ready_for(const Tensor& x, const Optional& running_mean, const Text& layer, const Text& name, std::int64_t rank,
                 std::int64_t ranks) {
  if (running_mean) return ready(layer.value, name.value, running_mean->numel(), rank, ranks);
  Ready& any = ready(layer.value, name.value, 0, rank, ranks);
  if ((any.sizes.of_channels == 0 && any.sizes.keeps_running == 0) || x.dim() < 2) return any;
  return ready(layer.value, name.value, x.size(1), rank, ranks);
}

std::int64_t channels_of(const Tensor& x, const Optional& running_mean) {
  return running_mean ? running_mean->numel() : x.dim() > 1 ? x.size(1) : 0;
}

/// Bytes of a record of the layer; the input may have other channels than that has.
std::int64_t record_bytes(const Ready& layer, const allnorm_length& length, const Tensor& x,
                          const Optional& running_mean) {
  std::int64_t groups = 0;
  if (layer.sizes.of_channels != 0) {
    groups = channels_of(x, running_mean);
  } else {
    const auto shape = x.sizes();
    expect_ok(allnorm_halves_groups(layer.halves.get(), shape.data(), static_cast<std::int32_t>(shape.size()), &groups),
              layer.name);
  }
  return length.fixed + length.each * groups;
}
/// The records of all ranks, with as many bytes as they must have.
const void* records_of(const Tensor& records, std::int64_t bytes_each, std::int64_t ranks, const std::string& name) {
  expect_array("records", records, ScalarType::Byte, bytes_each * ranks, name);
  return records.const_data_ptr();
}

Tensor mask_for(const Inputs& inputs, const Ready& layer) {
  return bytes(inputs.x, inputs.residual && layer.sizes.gates != 0 ? (inputs.x.numel() + 7) / 8 : 0);
}
std::int64_t frame_size(const Ready& layer) { return layer.sizes.frame.fixed + layer.sizes.frame.each * layer.groups; }
/// The frame of a call of the shape that the layer has looked at.
double* frame_of(const Tensor& frame, const Ready& layer) {
  expect_array("frame", frame, ScalarType::Double, frame_size(layer), layer.name);
  return const_cast<double*>(static_cast<const double*>(frame.const_data_ptr()));
}
/// What failed, for the peers: without what expect_ok adds for this process.
std::string reason_of(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find(" [allnorm: "));
}
std::uint8_t* data_of(const Tensor& mask) {
  return mask.numel() > 0 ? static_cast<std::uint8_t*>(mask.data_ptr()) : nullptr;
}

constexpr std::int32_t forward_direction = 0, backward_direction = 1;
const allnorm_length& record_of(const Ready& layer, std::int32_t direction) {
  return direction == forward_direction ? layer.sizes.forward_record : layer.sizes.backward_record;
}

/// A record that says why this rank has none. It is as long as those of that many groups; where the layer itself is
/// wrong, no longer than its head.
Tensor declined(const Tensor& like, std::int32_t direction, std::int64_t groups, const std::string& why,
                const Text& layer, const Text& name, std::int64_t rank, std::int64_t ranks) {
  std::int64_t size = 0;
  Ready* own = nullptr;
  try {
    own = &ready(layer.value, name.value, groups, rank, ranks);
    size = record_of(*own, direction).fixed + record_of(*own, direction).each * groups;
  } catch (const std::exception&) {
    own = &ready(allnorm_layer_name(0), name.value, 0, rank, ranks);  // the heads of all layers have one length
    size = own->sizes.head;
  }
  Tensor record = bytes(like, size);
  allnorm_memory memory{};
  memory.record = record.data_ptr();
  expect_ok(allnorm_halves_decline(own->halves.get(), direction, why.c_str(), &memory, queue()), own->name);
  return record;
}

/// A first half on its way. Where its peers wait for a record it does not throw: the second half does, everywhere.
struct FirstHalf {
  const std::int32_t direction;
  const std::int64_t ranks;
  Ready* layer = nullptr;
  Optional record{};
  allnorm_memory memory{};

  Ready& begin(Ready& own, const Tensor& x, const Optional& running_mean) {
    layer = &own;
    record = bytes(x, own.sizes.exchanges != 0 ? record_bytes(own, record_of(own, direction), x, running_mean) : 0);
    memory.record = record->data_ptr();
    return own;
  }
  /// Within the handler of `error`.
  void decline(const std::exception& error, const Tensor& x, std::int64_t groups, const Text& layer_text,
               const Text& name, std::int64_t rank) {
    if (layer != nullptr ? layer->sizes.exchanges == 0 : ranks == 1) throw;
    if (!record) {
      record = declined(x, direction, groups, reason_of(error), layer_text, name, rank, ranks);
      return;
    }
    expect_ok(allnorm_halves_decline(layer->halves.get(), direction, reason_of(error).c_str(), &memory, queue()),
              layer->name);
  }
};

// ---- forward
// ---------------------------------------------------------------------------------------------------------

Tensor forward_local(const Inputs& inputs, const State& state, const Text& layer, const Text& name, std::int64_t rank,
                     std::int64_t ranks) {
  FirstHalf half{forward_direction, ranks};
  try {
    Ready& own =
        half.begin(ready_for(inputs.x, state.running_mean, layer, name, rank, ranks), inputs.x, state.running_mean);
    Slots slots(own.name);
    inputs.add_to(slots);
    state.add_to(slots, own, false);
    own.look_at(inputs.x, inputs.conv_weight, slots);
    state.add_to(half.memory, false, own.name);
    half.memory.work = scratch(own.work);
    expect_ok(allnorm_halves_forward_local(own.halves.get(), slots.data(), slots.size(), &half.memory, queue()),
              own.name);
  } catch (const std::exception& error) {
    half.decline(error, inputs.x, channels_of(inputs.x, state.running_mean), layer, name, rank);
  }
  return *half.record;
}

std::tuple<Tensor, Tensor, Tensor> forward_finish(const Inputs& inputs, const State& state, const Tensor* records,
                                                  const Text& layer, const Text& name, std::int64_t rank,
                                                  std::int64_t ranks) {
  Ready& own = ready_for(inputs.x, state.running_mean, layer, name, rank, ranks);
  Slots slots(own.name);
  inputs.add_to(slots);
  state.add_to(slots, own, true);
  own.look_at(inputs.x, inputs.conv_weight, slots);
  Tensor y = new_like(inputs.x), mask = mask_for(inputs, own);
  Tensor frame = new_array(inputs.x, frame_size(own), ScalarType::Double);
  allnorm_memory memory{};
  state.add_to(memory, true, own.name);
  memory.work = scratch(own.work);
  memory.frame = static_cast<double*>(frame.data_ptr());
  memory.mask = data_of(mask);
  if (records != nullptr && own.sizes.exchanges != 0)
    memory.records = records_of(*records, record_bytes(own, own.sizes.forward_record, inputs.x, state.running_mean),
                                ranks, own.name);
  Slots output(own.name);
  output.add("output", y, inputs.is_channels_last(), true);
  expect_ok(
      allnorm_halves_forward_finish(own.halves.get(), slots.data(), slots.size(), output.data(), &memory, queue()),
      own.name);
  return {y, frame, mask};
}

// ---- backward
// --------------------------------------------------------------------------------------------------------

struct Backward {
  const Tensor &dy, &x;
  const Optional &weight, &bias, &tau, &eps_learned;
  const Tensor &frame, &mask;
  Gradients gradients;

  bool is_channels_last() const { return !is_dense(x, false) && is_dense(x, true); }
  void add_to(Slots& slots) const {
    const bool last = is_channels_last();
    slots.add("input", x, last);
    if (gradients.wants(Gradients::dresidual) || mask.numel() > 0) slots.add("residual", x, last);  // is not read
    slots.add("weight", weight);
    slots.add("bias", bias);
    slots.add("tau", tau);
    slots.add("eps_learned", eps_learned);
    slots.add("grad_output", dy, last);
  }
  void add_to(allnorm_memory& memory, const Ready& layer) const {
    memory.work = scratch(layer.work);
    memory.frame = frame_of(frame, layer);
    if (mask.numel() > 0) expect_array("mask", mask, ScalarType::Byte, (x.numel() + 7) / 8, layer.name);
    memory.mask = data_of(mask);
  }
  /// Those of parameters, which the first half writes: dweight, dbias, dtau, deps.
  struct Parameters {
    Optional dweight, dbias, dtau, deps;
  };
  Parameters parameters() const {
    return {like_if(gradients.wants(Gradients::dweight), weight), like_if(gradients.wants(Gradients::dbias), bias),
            like_if(gradients.wants(Gradients::dtau), tau), like_if(gradients.wants(Gradients::deps), eps_learned)};
  }
  static void add(Slots& slots, const Parameters& made) {
    const auto add_one = [&](const char* slot, const Optional& tensor) {
      if (tensor && tensor->numel() > 0) slots.add(slot, *tensor, false, true);
    };
    add_one("grad_weight", made.dweight);
    add_one("grad_bias", made.dbias);
    add_one("grad_tau", made.dtau);
    add_one("grad_eps_learned", made.deps);
  }
  Optional of_activation(Gradients::Wanted which) const {
    return gradients.wants(which) ? Optional(new_like(x)) : std::nullopt;
  }
  void add(Slots& slots, const Optional& dx, const Optional& dresidual) const {
    const bool last = is_channels_last();
    slots.add("grad_input", dx, last, true);
    slots.add("grad_residual", dresidual, last, true);
  }
};

using OfParameters = std::tuple<Tensor, Optional, Optional, Optional, Optional>;  // after the record

OfParameters backward_local(const Backward& call, const Text& layer, const Text& name, std::int64_t rank,
                            std::int64_t ranks) {
  FirstHalf half{backward_direction, ranks};
  const Backward::Parameters made = call.parameters();
  try {
    Ready& own = half.begin(ready_for(call.x, std::nullopt, layer, name, rank, ranks), call.x, std::nullopt);
    Slots slots(own.name), gradients(own.name);
    call.add_to(slots);
    own.look_at(call.x, std::nullopt, slots);
    call.add_to(half.memory, own);
    Backward::add(gradients, made);
    expect_ok(allnorm_halves_backward_local(own.halves.get(), slots.data(), slots.size(), gradients.data(),
                                            gradients.size(), &half.memory, queue()),
              own.name);
  } catch (const std::exception& error) {
    half.decline(error, call.x, channels_of(call.x, std::nullopt), layer, name, rank);
  }
  return {*half.record, made.dweight, made.dbias, made.dtau, made.deps};
}

/// `made`: where nothing is exchanged, the gradients of parameters too.
std::tuple<Optional, Optional> backward_finish(const Backward& call, const Tensor* records,
                                               const Backward::Parameters* made, const Text& layer, const Text& name,
                                               std::int64_t rank, std::int64_t ranks) {
  Ready& own = ready_for(call.x, std::nullopt, layer, name, rank, ranks);
  Slots slots(own.name), gradients(own.name);
  call.add_to(slots);
  own.look_at(call.x, std::nullopt, slots);
  allnorm_memory memory{};
  call.add_to(memory, own);
  Optional dx = call.of_activation(Gradients::dx), dresidual = call.of_activation(Gradients::dresidual);
  call.add(gradients, dx, dresidual);
  if (made != nullptr) Backward::add(gradients, *made);
  if (records != nullptr && own.sizes.exchanges != 0)
    memory.records =
        records_of(*records, record_bytes(own, own.sizes.backward_record, call.x, std::nullopt), ranks, own.name);
  expect_ok(allnorm_halves_backward_finish(own.halves.get(), slots.data(), slots.size(), gradients.data(),
                                           gradients.size(), &memory, queue()),
            own.name);
  return {dx, dresidual};
}

// ---- as torch calls them
// ---------------------------------------------------------------------------------------------

using ForwardResults = std::tuple<Tensor, Tensor, Tensor>;

ForwardResults forward_op(const Tensor& x, const Optional& residual, const Optional& weight, const Optional& bias,
                          const Optional& tau, const Optional& eps_learned, const Optional& conv_input,
                          const Optional& conv_weight, const Optional& state, const Optional& running_mean,
                          const Optional& running_var, const Optional& num_batches_tracked, const Text& layer,
                          const Text& name) {
  return forward_finish({x, residual, weight, bias, tau, eps_learned, conv_input, conv_weight},
                        {state, running_mean, running_var, num_batches_tracked}, nullptr, layer, name, 0, 1);
}

Tensor forward_local_op(const Tensor& x, const Optional& residual, const Optional& weight, const Optional& bias,
                        const Optional& tau, const Optional& eps_learned, const Optional& conv_input,
                        const Optional& conv_weight, const Optional& state, const Optional& running_mean,
                        const Optional& running_var, const Optional& num_batches_tracked, const Text& layer,
                        const Text& name, std::int64_t rank, std::int64_t ranks) {
  return forward_local({x, residual, weight, bias, tau, eps_learned, conv_input, conv_weight},
                       {state, running_mean, running_var, num_batches_tracked}, layer, name, rank, ranks);
}

ForwardResults forward_finish_op(const Tensor& x, const Optional& residual, const Optional& weight,
                                 const Optional& bias, const Optional& tau, const Optional& eps_learned,
                                 const Optional& conv_input, const Optional& conv_weight, const Optional& state,
                                 const Optional& running_mean, const Optional& running_var,
                                 const Optional& num_batches_tracked, const Tensor& records, const Text& layer,
                                 const Text& name, std::int64_t rank, std::int64_t ranks) {
  return forward_finish({x, residual, weight, bias, tau, eps_learned, conv_input, conv_weight},
                        {state, running_mean, running_var, num_batches_tracked}, &records, layer, name, rank, ranks);
}

std::tuple<Tensor, Tensor> replay_op(const Tensor& x, const Optional& residual, const Optional& weight,
                                     const Optional& bias, const Optional& tau, const Optional& eps_learned,
                                     const Tensor& frame, const Text& layer, const Text& name) {
  const Inputs inputs{x, residual, weight, bias, tau, eps_learned, std::nullopt, std::nullopt};
  Ready& own = ready_for(x, std::nullopt, layer, name, 0, 1);
  Slots slots(own.name), output(own.name);
  inputs.add_to(slots);
  own.look_at(x, std::nullopt, slots);
  Tensor y = new_like(x), mask = mask_for(inputs, own);
  output.add("output", y, inputs.is_channels_last(), true);
  allnorm_memory memory{};
  memory.frame = frame_of(frame, own);
  memory.mask = data_of(mask);
  expect_ok(allnorm_halves_replay(own.halves.get(), slots.data(), slots.size(), output.data(), &memory, queue()),
            own.name);
  return {y, mask};
}

std::tuple<Optional, Optional, Optional, Optional, Optional, Optional> backward_op(
    const Tensor& dy, const Tensor& x, const Optional& weight, const Optional& bias, const Optional& tau,
    const Optional& eps_learned, const Tensor& frame, const Tensor& mask, const std::vector<bool>& wanted,
    const Text& layer, const Text& name) {
  const Backward call{dy, x, weight, bias, tau, eps_learned, frame, mask, {wanted}};
  const Backward::Parameters made = call.parameters();
  const auto [dx, dresidual] = backward_finish(call, nullptr, &made, layer, name, 0, 1);
  return {dx, dresidual, made.dweight, made.dbias, made.dtau, made.deps};
}

OfParameters backward_local_op(const Tensor& dy, const Tensor& x, const Optional& weight, const Optional& bias,
                               const Optional& tau, const Optional& eps_learned, const Tensor& frame,
                               const Tensor& mask, const std::vector<bool>& wanted, const Text& layer, const Text& name,
                               std::int64_t rank, std::int64_t ranks) {
  return backward_local({dy, x, weight, bias, tau, eps_learned, frame, mask, {wanted}}, layer, name, rank, ranks);
}

std::tuple<Optional, Optional> backward_finish_op(const Tensor& dy, const Tensor& x, const Optional& weight,
                                                  const Optional& bias, const Optional& tau,
                                                  const Optional& eps_learned, const Tensor& frame, const Tensor& mask,
                                                  const Tensor& records, const std::vector<bool>& wanted,
                                                  const Text& layer, const Text& name, std::int64_t rank,
                                                  std::int64_t ranks) {
  return backward_finish({dy, x, weight, bias, tau, eps_learned, frame, mask, {wanted}}, &records, nullptr, layer, name,
                         rank, ranks);
}

void check_heads_op(const Tensor& heads, const Text& layer, const Text& name, std::int64_t rank) {
  if (heads.dim() != 2) refuse("heads have " + std::to_string(heads.dim()) + " axes, must have 2", name.value);
  Ready& own = ready(layer.value, name.value, 0, rank, heads.size(0));
  expect_array("heads", heads, ScalarType::Byte, heads.numel(), name.value);
  if (const std::int64_t each = heads.size(1); each < own.sizes.head || each % 8 != 0)
    refuse("heads have " + std::to_string(each) + " bytes each, must have at least " + std::to_string(own.sizes.head) +
               " and a multiple of 8",
           name.value);
  expect_ok(allnorm_halves_check_heads(own.halves.get(), heads.const_data_ptr(), heads.size(1)), name.value);
}

Tensor decline_op(const Tensor& like, std::int64_t direction, std::int64_t groups, const Text& why, const Text& layer,
                  const Text& name, std::int64_t rank, std::int64_t ranks) {
  return declined(like, direction == 0 ? forward_direction : backward_direction, groups, why.value, layer, name, rank,
                  ranks);
}

void begin_batch_op(const Optional& state, const Tensor& running_mean, const Optional& running_var,
                    const Optional& num_batches_tracked, const Text& layer, const Text& name) {
  const Optional mean = running_mean;
  const State kept{state, mean, running_var, num_batches_tracked};
  Ready& own = ready_for(running_mean, mean, layer, name, 0, 1);
  Slots slots(own.name);
  kept.add_to(slots, own, true);
  allnorm_memory memory{};
  kept.add_to(memory, true, own.name);
  expect_ok(allnorm_halves_begin_batch(own.halves.get(), slots.data(), slots.size(), &memory, queue()), own.name);
}

constexpr const char* forward_arguments =
    "Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? tau, Tensor? eps_learned, Tensor? conv_input, "
    "Tensor? conv_weight, ";
constexpr const char* state_read =
    "Tensor? state, Tensor? running_mean, Tensor? running_var, Tensor? num_batches_tracked, ";
constexpr const char* state_written =
    "Tensor(a!)? state, Tensor(b!)? running_mean, Tensor(c!)? running_var, Tensor(d!)? num_batches_tracked, ";
constexpr const char* backward_arguments =
    "Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? tau, Tensor? eps_learned, Tensor frame, Tensor mask, ";
constexpr const char* layer_arguments = "str layer, str name";
constexpr const char* rank_arguments = ", int rank, int ranks";

}  // namespace

STABLE_TORCH_LIBRARY(allnorm, m) {
  using Words = std::vector<const char*>;
  const auto define = [&m](const char* name, const Words& arguments, const char* results) {
    std::string schema = std::string(name) + "(";
    for (const char* part : arguments) schema += part;
    m.def((schema + ") -> " + results).c_str());
  };
  const char* const three = "(Tensor y, Tensor frame, Tensor mask)";
  define("forward", {forward_arguments, state_written, layer_arguments}, three);
  define("forward_local", {forward_arguments, state_read, layer_arguments, rank_arguments}, "Tensor record");
  define("forward_finish", {forward_arguments, state_written, "Tensor records, ", layer_arguments, rank_arguments},
         three);
  define("replay",
         {"Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? tau, Tensor? eps_learned, Tensor frame, ",
          layer_arguments},
         "(Tensor y, Tensor mask)");
  define("backward", {backward_arguments, "bool[] wanted, ", layer_arguments},
         "(Tensor? dx, Tensor? dresidual, Tensor? dweight, Tensor? dbias, Tensor? dtau, Tensor? deps)");
  define("backward_local", {backward_arguments, "bool[] wanted, ", layer_arguments, rank_arguments},
         "(Tensor record, Tensor? dweight, Tensor? dbias, Tensor? dtau, Tensor? deps)");
  define("backward_finish", {backward_arguments, "Tensor records, bool[] wanted, ", layer_arguments, rank_arguments},
         "(Tensor? dx, Tensor? dresidual)");
  define("check_heads", {"Tensor heads, ", layer_arguments, ", int rank"}, "()");
  define("decline", {"Tensor like, int direction, int groups, str why, ", layer_arguments, rank_arguments},
         "Tensor record");
  define("begin_batch",
         {"Tensor(a!)? state, Tensor(b!) running_mean, Tensor(c!)? running_var, Tensor(d!)? num_batches_tracked, ",
          layer_arguments},
         "()");
}

STABLE_TORCH_LIBRARY_IMPL(allnorm, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward_op));
  m.impl("forward_local", TORCH_BOX(&forward_local_op));
  m.impl("forward_finish", TORCH_BOX(&forward_finish_op));
  m.impl("replay", TORCH_BOX(&replay_op));
  m.impl("backward", TORCH_BOX(&backward_op));
  m.impl("backward_local", TORCH_BOX(&backward_local_op));
  m.impl("backward_finish", TORCH_BOX(&backward_finish_op));
  m.impl("check_heads", TORCH_BOX(&check_heads_op));
  m.impl("decline", TORCH_BOX(&decline_op));
  m.impl("begin_batch", TORCH_BOX(&begin_batch_op));
}

}  // namespace allnorm_torch
