// The C interface: operations behind slots, errors as codes and texts.
#include "allnorm/allnorm.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/communicator.hpp"
#include "allnorm/error.hpp"
#include "allnorm/halves.hpp"
#include "allnorm/operation.hpp"
#include "allnorm/pool.hpp"
#include "allnorm/version.h"

struct allnorm_queue {
  allnorm::Queue queue;
};
struct allnorm_group {
  std::shared_ptr<allnorm::Communicator> communicator;
};
struct allnorm_operation {
  std::unique_ptr<allnorm::Operation> operation;
};
struct allnorm_call {
  std::unique_ptr<allnorm::SavedCall> saved;
};
struct allnorm_state {
  allnorm::State state;
};
struct allnorm_halves {
  allnorm::Halves halves;
};

namespace {

using namespace allnorm;

std::string& last_error() {
  thread_local std::string text;
  return text;
}

allnorm_status failed(allnorm_status status, const char* text) noexcept {
  try {
    last_error() = text;
  } catch (const std::bad_alloc&) {
    last_error().clear();
  }
  return status;
}

template <class Work>
allnorm_status guarded(const Work& work) noexcept {
  try {
    work();
    return ALLNORM_OK;
  } catch (const Error& error) {
    return failed(1 + static_cast<allnorm_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return failed(ALLNORM_DEVICE, "there is not enough memory");
  } catch (const std::exception& error) {
    return failed(ALLNORM_TRANSPORT, error.what());
  }
}
static_assert(ALLNORM_INVALID_ARGUMENT == 1 + static_cast<int>(Code::invalid_argument) &&
              ALLNORM_NON_FINITE == 1 + static_cast<int>(Code::non_finite));
static_assert(ALLNORM_F64 == static_cast<int>(DType::f64) && ALLNORM_I64 == static_cast<int>(DType::i64));

template <class T>
T& given(T* pointer, const char* what) {
  expect(pointer != nullptr, Code::invalid_argument, [&] { return std::string(what) + " is NULL, must be given"; });
  return *pointer;
}

Shape shape_of(const int64_t* extents, int32_t rank, const char* what) {
  expect(rank >= 0 && rank <= Shape::max_rank && (rank == 0 || extents != nullptr), Code::invalid_argument, [&] {
    return "rank of " + std::string(what) + " is " + std::to_string(rank) + ", must be 0 to 8, with as many extents";
  });
  return Shape(std::span<const std::int64_t>(extents, static_cast<std::size_t>(rank)));
}

TensorView view_of(const allnorm_tensor& tensor) {
  const char* const name = &given(tensor.slot, "the slot of a tensor");
  expect(tensor.dtype >= ALLNORM_F64 && tensor.dtype <= ALLNORM_I64, Code::invalid_argument, [&] {
    return "dtype of " + std::string(name) + " is " + std::to_string(tensor.dtype) + ", must be one of allnorm_dtype";
  });
  const Device device{tensor.gpu < 0 ? DeviceKind::cpu : DeviceKind::cuda, std::max(tensor.gpu, 0)};
  return {tensor.data, static_cast<DType>(tensor.dtype), device, shape_of(tensor.shape, tensor.rank, name),
          tensor.channels_last != 0 ? Order::channels_last : Order::channels_first};
}

template <class Views>
Views slots_of(const allnorm_tensor* tensors, std::size_t count) {
  Views slots;
  for (std::size_t i = 0; i < count; ++i)
    slots.add((&given(tensors, "an array of tensors"))[i].slot, view_of(tensors[i]));
  return slots;
}

void give(const Shape& made, int64_t* shape, int32_t* rank) {
  std::copy(made.begin(), made.end(), &given(shape, "shape"));
  given(rank, "rank") = made.rank();
}

void keep(std::unique_ptr<SavedCall> saved, allnorm_call** made) {
  if (made != nullptr) *made = new allnorm_call{std::move(saved)};
}

constexpr std::pair<StateType, allnorm_dtype> state_types[] = {{StateType::f64, ALLNORM_F64},
                                                               {StateType::f32, ALLNORM_F32},
                                                               {StateType::i64, ALLNORM_I64},
                                                               {StateType::f16, ALLNORM_F16},
                                                               {StateType::bf16, ALLNORM_BF16}};

StateEntry entry_of(const allnorm_tensor& tensor, bool per_rank) {
  const TensorView view = view_of(tensor);
  const auto* const type = std::find_if(std::begin(state_types), std::end(state_types),
                                        [&](const auto& pair) { return pair.second == tensor.dtype; });
  const auto bytes = static_cast<std::size_t>(view.elements()) * size_of(view.dtype);
  StateEntry entry{tensor.slot, type->first, view.shape, std::vector<std::byte>(bytes), per_rank};
  if (bytes > 0) std::memcpy(entry.data.data(), &given(static_cast<std::byte*>(tensor.data), tensor.slot), bytes);
  return entry;
}

State state_of(const allnorm_tensor* entries, const int32_t* per_rank, std::size_t count) {
  State state;
  for (std::size_t i = 0; i < count; ++i)
    state.entries.push_back(entry_of((&given(entries, "entries"))[i], per_rank != nullptr && per_rank[i] != 0));
  return state;
}

KeptState kept_by(const Halves& halves, const OutputSlots& slots, const allnorm_memory& memory) {
  KeptState kept;
  kept.running_mean = slots["running_mean"];
  kept.running_spread = slots[halves.layer().keeps_std() ? "running_std" : "running_var"];
  kept.tracked = slots["num_batches_tracked"];
  kept.history = {static_cast<std::byte*>(memory.history), static_cast<std::size_t>(memory.history_bytes)};
  return kept;
}
KeptFrame frame_of(const allnorm_memory& memory) { return {memory.frame, memory.mask}; }

ConstTensorView view_of(const allnorm_tensor* optional) {
  return optional != nullptr ? ConstTensorView(view_of(*optional)) : ConstTensorView{};
}

allnorm_slot slot_of(const TensorSpec& tensor) {
  const TensorRole role = tensor.role;
  const bool in_order = role == TensorRole::activation || role == TensorRole::map || role == TensorRole::conv_input ||
                        role == TensorRole::style;
  const int32_t kind = tensor.is_state()              ? ALLNORM_STATE
                       : role == TensorRole::gradient ? ALLNORM_UPSTREAM
                                                      : ALLNORM_INPUT;
  return {tensor.name.data(), tensor.help.data(), kind, in_order ? 1 : 0};
}

/// The slots of a row that exist with the layer's options, in order.
std::vector<allnorm_slot> slots_of(const Layer& layer) {
  std::vector<allnorm_slot> slots;
  for (const TensorSpec& tensor : layer.row->tensors)
    if (layer.has(tensor)) slots.push_back(slot_of(tensor));
  for (const OutputSpec& output : layer.row->outputs)
    if (layer.has(output) && layer.row->state(output.name) == nullptr)
      slots.push_back({output.name.data(), output.help.data(),
                       layer.row->gradient(output.name) != nullptr ? ALLNORM_GRADIENT : ALLNORM_STATISTIC, 0});
  return slots;
}

/// Throws unsupported for a slot whose shape is the caller's choice, invalid_argument for one that is not there.
Shape shape_of(const Layer& layer, std::string_view slot, const Shape& input) {
  const OutputSpec* const output = layer.row->output(slot);
  const TensorSpec* const tensor = output != nullptr ? layer.row->gradient(slot) : layer.row->tensor(slot);
  expect(tensor != nullptr || output != nullptr, Code::invalid_argument,
         [&] { return std::string(layer.row->name) + " has no slot '" + std::string(slot) + "'"; });
  if (tensor == nullptr) return layer.shape_of(output->axes, input);
  switch (tensor->role) {
    case TensorRole::activation:
      return input;
    case TensorRole::parameter:
    case TensorRole::map:
    case TensorRole::gradient:
    case TensorRole::state:
    case TensorRole::counter:
      return layer.shape_of(tensor->axes, input);
    default:
      fail(Code::unsupported, "the shape of " + std::string(slot) + " is not the layer's, but its caller's choice");
  }
}

}  // namespace

extern "C" {

const char* allnorm_version(void) { return ALLNORM_VERSION; }
const char* allnorm_error(void) { return last_error().c_str(); }

const char* allnorm_layer_name(size_t index) {
  return index < catalogue().size() ? catalogue()[index].name.data() : nullptr;
}
const char* allnorm_layer_summary(size_t index) {
  return index < catalogue().size() ? catalogue()[index].summary.data() : nullptr;
}

allnorm_status allnorm_queue_cpu(int32_t threads, allnorm_queue** made) {
  return guarded([&] { given(made, "made") = new allnorm_queue{Queue::cpu(threads)}; });
}
allnorm_status allnorm_queue_pool(int32_t threads, allnorm_run run, void* context, allnorm_queue** made) {
  return guarded([&] { given(made, "made") = new allnorm_queue{cpu_queue({threads, run, context})}; });
}
allnorm_status allnorm_queue_cuda(int32_t gpu, allnorm_queue** made) {
  return guarded([&] { given(made, "made") = new allnorm_queue{Queue::cuda(gpu)}; });
}
allnorm_status allnorm_queue_over(int32_t gpu, void* stream, allnorm_queue** made) {
  return guarded([&] { given(made, "made") = new allnorm_queue{Queue::cuda(gpu, stream)}; });
}
allnorm_status allnorm_queue_wait(allnorm_queue* queue) {
  return guarded([&] { given(queue, "queue").queue.wait(); });
}
void allnorm_queue_free(allnorm_queue* queue) { delete queue; }

allnorm_status allnorm_threads(int32_t ranks, double timeout, allnorm_group** made) {
  return guarded([&] {
    given(made, "made");
    Patience patience;
    patience.timeout = patience.first_timeout = timeout;
    std::vector<std::unique_ptr<allnorm_group>> groups;
    for (auto& communicator : threads(ranks, patience))
      groups.push_back(std::make_unique<allnorm_group>(allnorm_group{std::move(communicator)}));
    for (std::size_t r = 0; r < groups.size(); ++r) made[r] = groups[r].release();
  });
}
void allnorm_group_free(allnorm_group* group) { delete group; }

allnorm_status allnorm_operation_make(const char* layer, int64_t channels, allnorm_group* group, allnorm_queue* queue,
                                      const char* name, allnorm_operation** made) {
  return guarded([&] {
    given(made, "made") = new allnorm_operation{
        make_operation(parse_layer(&given(layer, "layer")), channels, group != nullptr ? group->communicator : nullptr,
                       given(queue, "queue").queue, name != nullptr ? name : "")};
  });
}
void allnorm_operation_free(allnorm_operation* operation) { delete operation; }
void allnorm_set_training(allnorm_operation* operation, int32_t training) {
  if (operation != nullptr) operation->operation->set_training(training != 0);
}

int32_t allnorm_operation_slot(const allnorm_operation* operation, size_t index, allnorm_slot* slot) {
  std::vector<allnorm_slot> slots;
  const auto status = guarded([&] { slots = slots_of(given(operation, "operation").operation->layer()); });
  if (status != ALLNORM_OK || slot == nullptr || index >= slots.size()) return 0;
  *slot = slots[index];
  return 1;
}

allnorm_status allnorm_slot_shape(const allnorm_operation* operation, const char* slot, const int64_t* input_shape,
                                  int32_t input_rank, int64_t* shape, int32_t* rank) {
  return guarded([&] {
    give(shape_of(given(operation, "operation").operation->layer(), &given(slot, "slot"),
                  shape_of(input_shape, input_rank, "the input")),
         shape, rank);
  });
}

allnorm_status allnorm_output_shape(const allnorm_operation* operation, const allnorm_tensor* inputs,
                                    size_t input_count, int64_t* shape, int32_t* rank) {
  return guarded([&] {
    const Row& row = *given(operation, "operation").operation->layer().row;
    give(output_shape(row, slots_of<InputSlots>(inputs, input_count)), shape, rank);
  });
}

allnorm_status allnorm_forward(allnorm_operation* operation, const allnorm_tensor* inputs, size_t input_count,
                               const allnorm_tensor* outputs, size_t output_count, allnorm_queue* queue,
                               allnorm_call** made) {
  return guarded([&] {
    keep(given(operation, "operation")
             .operation->forward(slots_of<InputSlots>(inputs, input_count),
                                 slots_of<OutputSlots>(outputs, output_count), given(queue, "queue").queue),
         made);
  });
}
allnorm_status allnorm_replay(allnorm_operation* operation, const allnorm_call* earlier, const allnorm_tensor* inputs,
                              size_t input_count, const allnorm_tensor* outputs, size_t output_count,
                              allnorm_queue* queue, allnorm_call** made) {
  return guarded([&] {
    keep(given(operation, "operation")
             .operation->replay(*given(earlier, "earlier").saved, slots_of<InputSlots>(inputs, input_count),
                                slots_of<OutputSlots>(outputs, output_count), given(queue, "queue").queue),
         made);
  });
}
allnorm_status allnorm_infer(allnorm_operation* operation, const allnorm_tensor* inputs, size_t input_count,
                             const allnorm_tensor* outputs, size_t output_count, allnorm_queue* queue) {
  return guarded([&] {
    given(operation, "operation")
        .operation->infer(slots_of<InputSlots>(inputs, input_count), slots_of<OutputSlots>(outputs, output_count),
                          given(queue, "queue").queue);
  });
}
allnorm_status allnorm_backward(allnorm_operation* operation, const allnorm_call* call, const allnorm_tensor* inputs,
                                size_t input_count, const allnorm_tensor* gradients, size_t gradient_count,
                                allnorm_queue* queue) {
  return guarded([&] {
    given(operation, "operation")
        .operation->backward(*given(call, "call").saved, slots_of<InputSlots>(inputs, input_count),
                             slots_of<OutputSlots>(gradients, gradient_count), given(queue, "queue").queue);
  });
}
allnorm_status allnorm_check(allnorm_operation* operation) {
  return guarded([&] { given(operation, "operation").operation->check(); });
}
void allnorm_call_free(allnorm_call* call) { delete call; }

allnorm_status allnorm_statistic(const allnorm_call* call, const char* name, allnorm_queue* queue, double* values,
                                 size_t capacity, size_t* count) {
  return guarded([&] {
    const std::span<const double> found = given(call, "call").saved->statistic(&given(name, "name"));
    given(count, "count") = found.size();
    if (values == nullptr) return;
    Queue& on = given(queue, "queue").queue;
    copy_to_host(values, found.data(), std::min(capacity, found.size()) * sizeof(double), on);
    on.wait();
  });
}

allnorm_status allnorm_save(const allnorm_operation* operation, allnorm_queue* queue, allnorm_state** made) {
  return guarded([&] {
    given(made, "made") = new allnorm_state{given(operation, "operation").operation->save(given(queue, "queue").queue)};
  });
}
int32_t allnorm_state_entry(const allnorm_state* state, size_t index, allnorm_tensor* entry, int32_t* per_rank) {
  if (state == nullptr || entry == nullptr || index >= state->state.entries.size()) return 0;
  const StateEntry& found = state->state.entries[index];
  const auto* const type = std::find_if(std::begin(state_types), std::end(state_types),
                                        [&](const auto& pair) { return pair.first == found.type; });
  *entry = {found.name.c_str(),
            const_cast<std::byte*>(found.data.data()),
            found.shape.begin(),
            found.shape.rank(),
            type->second,
            0,
            -1};
  if (per_rank != nullptr) *per_rank = found.per_rank ? 1 : 0;
  return 1;
}
void allnorm_state_free(allnorm_state* state) { delete state; }

allnorm_status allnorm_load(allnorm_operation* operation, const allnorm_tensor* entries, const int32_t* per_rank,
                            size_t count, int32_t drop_window, allnorm_queue* queue) {
  return guarded([&] {
    given(operation, "operation")
        .operation->load(state_of(entries, per_rank, count), given(queue, "queue").queue, {drop_window != 0});
  });
}

allnorm_status allnorm_halves_make(const char* layer, int64_t channels, int32_t rank, int32_t ranks, const char* name,
                                   allnorm_queue* queue, allnorm_halves** made) {
  return guarded([&] {
    given(made, "made") = new allnorm_halves{Halves(parse_layer(&given(layer, "layer")), channels, rank, ranks,
                                                    given(queue, "queue").queue, name != nullptr ? name : "")};
  });
}
void allnorm_halves_free(allnorm_halves* halves) { delete halves; }

allnorm_status allnorm_halves_sizes_of(const allnorm_halves* made, allnorm_halves_sizes* sizes) {
  return guarded([&] {
    const Halves& halves = given(made, "halves").halves;
    const auto linear = [](const auto& of_groups) {
      const auto fixed = static_cast<std::int64_t>(of_groups(0));
      return allnorm_length{fixed, static_cast<std::int64_t>(of_groups(1)) - fixed};
    };
    allnorm_halves_sizes& to = given(sizes, "sizes");
    to.exchanges = halves.exchanges() ? 1 : 0;
    to.of_channels = halves.layer().statistics() == Axes{Axis::channel} ? 1 : 0;
    to.keeps_running = !halves.layer().has_state() ? 0 : halves.layer().keeps_std() ? 2 : 1;
    to.gates = halves.layer().options.activation.kind != ActivationKind::identity ? 1 : 0;
    to.head = static_cast<std::int64_t>(Halves::head_bytes);
    to.forward_record = linear([&](std::int64_t g) { return halves.record_bytes(Direction::forward, g); });
    to.backward_record = linear([&](std::int64_t g) { return halves.record_bytes(Direction::backward, g); });
    to.frame = linear([&](std::int64_t g) { return halves.frame_size(g); });
    const bool renorm = halves.layer().options.renorm, has_std = halves.layer().row->output("std") != nullptr;
    to.r = renorm ? 4 : -1;
    to.d = renorm ? 5 : -1;
    to.std = has_std ? (renorm ? 6 : 4) : -1;
  });
}
allnorm_status allnorm_halves_groups(const allnorm_halves* halves, const int64_t* input_shape, int32_t input_rank,
                                     int64_t* groups) {
  return guarded([&] {
    ConstTensorView input;
    input.shape = shape_of(input_shape, input_rank, "the input");
    given(groups, "groups") = given(halves, "halves").halves.groups(input);
  });
}
allnorm_status allnorm_halves_work(const allnorm_halves* halves, const allnorm_tensor* inputs, size_t input_count,
                                   int64_t* bytes) {
  return guarded([&] {
    const ForwardInputs typed = forward_inputs(slots_of<InputSlots>(inputs, input_count));
    given(bytes, "bytes") = static_cast<std::int64_t>(given(halves, "halves").halves.work_bytes(typed));
  });
}

allnorm_status allnorm_halves_history(const allnorm_halves* halves, const allnorm_tensor* conv_weight, int32_t wide,
                                      int64_t* bytes) {
  return guarded([&] {
    given(bytes, "bytes") =
        static_cast<std::int64_t>(given(halves, "halves").halves.history_bytes(view_of(conv_weight), wide != 0));
  });
}
allnorm_status allnorm_halves_start(const allnorm_halves* halves, const allnorm_tensor* conv_weight, int32_t wide,
                                    void* history, int64_t bytes, allnorm_queue* queue) {
  return guarded([&] {
    given(halves, "halves")
        .halves.start_history({static_cast<std::byte*>(history), static_cast<std::size_t>(bytes)},
                              given(queue, "queue").queue, view_of(conv_weight), wide != 0);
  });
}
allnorm_status allnorm_halves_has_entries(const allnorm_halves* halves, const void* history, int64_t bytes,
                                          int32_t* has) {
  return guarded([&] {
    const std::span memory(static_cast<const std::byte*>(history), static_cast<std::size_t>(bytes));
    given(has, "has") = given(halves, "halves").halves.has_entries(memory) ? 1 : 0;
  });
}

allnorm_status allnorm_halves_forward_local(const allnorm_halves* made, const allnorm_tensor* inputs,
                                            size_t input_count, const allnorm_memory* memory, allnorm_queue* queue) {
  return guarded([&] {
    const Halves& halves = given(made, "halves").halves;
    const allnorm_memory& own = given(memory, "memory");
    halves.forward_local(forward_inputs(slots_of<InputSlots>(inputs, input_count)),
                         kept_by(halves, slots_of<OutputSlots>(inputs, input_count), own),
                         static_cast<std::byte*>(own.work), static_cast<std::byte*>(own.record),
                         given(queue, "queue").queue);
  });
}
allnorm_status allnorm_halves_forward_finish(const allnorm_halves* made, const allnorm_tensor* inputs,
                                             size_t input_count, const allnorm_tensor* output,
                                             const allnorm_memory* memory, allnorm_queue* queue) {
  return guarded([&] {
    const Halves& halves = given(made, "halves").halves;
    const allnorm_memory& own = given(memory, "memory");
    halves.forward_finish(forward_inputs(slots_of<InputSlots>(inputs, input_count)), view_of(given(output, "output")),
                          kept_by(halves, slots_of<OutputSlots>(inputs, input_count), own), frame_of(own),
                          static_cast<std::byte*>(own.work), static_cast<const std::byte*>(own.records),
                          given(queue, "queue").queue);
  });
}
allnorm_status allnorm_halves_replay(const allnorm_halves* halves, const allnorm_tensor* inputs, size_t input_count,
                                     const allnorm_tensor* output, const allnorm_memory* memory, allnorm_queue* queue) {
  return guarded([&] {
    given(halves, "halves")
        .halves.replay(forward_inputs(slots_of<InputSlots>(inputs, input_count)), view_of(given(output, "output")),
                       frame_of(given(memory, "memory")), given(queue, "queue").queue);
  });
}
allnorm_status allnorm_halves_backward_local(const allnorm_halves* halves, const allnorm_tensor* inputs,
                                             size_t input_count, const allnorm_tensor* gradients, size_t gradient_count,
                                             const allnorm_memory* memory, allnorm_queue* queue) {
  return guarded([&] {
    const InputSlots slots = slots_of<InputSlots>(inputs, input_count);
    const allnorm_memory& own = given(memory, "memory");
    given(halves, "halves")
        .halves.backward_local(forward_inputs(slots), backward_inputs(slots),
                               backward_outputs(slots_of<OutputSlots>(gradients, gradient_count)), frame_of(own),
                               static_cast<std::byte*>(own.work), static_cast<std::byte*>(own.record),
                               given(queue, "queue").queue);
  });
}
allnorm_status allnorm_halves_backward_finish(const allnorm_halves* halves, const allnorm_tensor* inputs,
                                              size_t input_count, const allnorm_tensor* gradients,
                                              size_t gradient_count, const allnorm_memory* memory,
                                              allnorm_queue* queue) {
  return guarded([&] {
    const InputSlots slots = slots_of<InputSlots>(inputs, input_count);
    const allnorm_memory& own = given(memory, "memory");
    given(halves, "halves")
        .halves.backward_finish(forward_inputs(slots), backward_inputs(slots),
                                backward_outputs(slots_of<OutputSlots>(gradients, gradient_count)), frame_of(own),
                                static_cast<std::byte*>(own.work), static_cast<const std::byte*>(own.records),
                                given(queue, "queue").queue);
  });
}
allnorm_status allnorm_halves_begin_batch(const allnorm_halves* made, const allnorm_tensor* state, size_t state_count,
                                          const allnorm_memory* memory, allnorm_queue* queue) {
  return guarded([&] {
    const Halves& halves = given(made, "halves").halves;
    const allnorm_memory& own = given(memory, "memory");
    halves.begin_batch(kept_by(halves, slots_of<OutputSlots>(state, state_count), own), given(queue, "queue").queue);
  });
}
allnorm_status allnorm_halves_decline(const allnorm_halves* halves, int32_t direction, const char* reason,
                                      const allnorm_memory* memory, allnorm_queue* queue) {
  return guarded([&] {
    auto* const record = static_cast<std::byte*>(given(memory, "memory").record);
    given(halves, "halves")
        .halves.decline(direction == 0 ? Direction::forward : Direction::backward, &given(reason, "reason"),
                        &given(record, "record"), given(queue, "queue").queue);
  });
}
allnorm_status allnorm_halves_check_heads(const allnorm_halves* halves, const void* heads, int64_t stride) {
  return guarded([&] {
    given(halves, "halves")
        .halves.expect_agreement(&given(static_cast<const std::byte*>(heads), "heads"),
                                 static_cast<std::size_t>(stride));
  });
}

allnorm_status allnorm_halves_save(const allnorm_halves* made, const allnorm_tensor* state, size_t state_count,
                                   const allnorm_memory* memory, allnorm_queue* queue, allnorm_state** saved) {
  return guarded([&] {
    const Halves& halves = given(made, "halves").halves;
    const KeptState kept = kept_by(halves, slots_of<OutputSlots>(state, state_count), given(memory, "memory"));
    given(saved, "made") = new allnorm_state{halves.save(kept, given(queue, "queue").queue)};
  });
}
allnorm_status allnorm_halves_load(const allnorm_halves* made, const allnorm_tensor* entries, const int32_t* per_rank,
                                   size_t count, int32_t drop_window, const allnorm_tensor* state, size_t state_count,
                                   const allnorm_memory* memory, allnorm_queue* queue) {
  return guarded([&] {
    const Halves& halves = given(made, "halves").halves;
    halves.load(state_of(entries, per_rank, count),
                kept_by(halves, slots_of<OutputSlots>(state, state_count), given(memory, "memory")),
                given(queue, "queue").queue, {drop_window != 0});
  });
}

}  // extern "C"
