// `allnorm apply`: what is written, and how all ranks write it or none.
#include "launch/apply_outputs.hpp"

#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "launch/files/input_file.hpp"
#include "launch/files/leftovers.hpp"
#include "launch/files/npy_convert.hpp"
#include "launch/files/staged_files.hpp"
#include "launch/terminal.hpp"
#include "launch/watch/rank_watch.hpp"

namespace allnorm::launch {

namespace {

// What calls read and write, in the memory of the queue's device.
class StepMemory {
 public:
  explicit StepMemory(Queue& queue) : queue_(&queue) {}

  ConstTensorView upload(ConstTensorView view) {
    view.device = queue_->device();
    if (view.device.kind == DeviceKind::cpu || view.elements() == 0) return view;
    const std::size_t bytes = static_cast<std::size_t>(view.elements()) * size_of(view.dtype);
    inputs_.emplace_back(bytes, *queue_, Fill::none);
    copy_to_device(inputs_.back().data(), view.data, bytes, *queue_);
    view.data = inputs_.back().data();
    return view;
  }
  /// Room for an output that is shaped like `tensor`, or in its order but of another shape, which files have too.
  TensorView room(std::string_view output, const LoadedTensor& tensor, DType dtype) {
    return room(output, tensor, dtype, tensor.shape);
  }
  TensorView room(std::string_view output, const LoadedTensor& tensor, DType dtype, const Shape& shape) {
    const auto elements = static_cast<std::size_t>(shape.elements());
    Made& made = outputs_.emplace_back(Made{output, dtype, shape == tensor.shape ? tensor.file_shape : shape,
                                            Buffer<std::byte>(elements * size_of(dtype), *queue_)});
    return {made.data.data(), dtype, queue_->device(), shape, tensor.order};
  }
  /// The output as a file has it; nothing where no room was made for it.
  std::optional<NpyArray> result(std::string_view output) const {
    for (const Made& made : outputs_)
      if (made.name == output) return from_dtype(to_host(made.data, *queue_).data(), made.dtype, made.file_shape);
    return {};
  }

 private:
  struct Made {
    std::string_view name;
    DType dtype;
    Shape file_shape;
    Buffer<std::byte> data;
  };
  Queue* queue_;
  std::vector<Buffer<std::byte>> inputs_;
  std::vector<Made> outputs_;
};

// A tensor of the input's type, as its gradient is.
bool is_of_input_type(TensorRole role) {
  return role == TensorRole::activation || role == TensorRole::style || role == TensorRole::map;
}

NpyArray array_of(const StateEntry& entry) {
  if (entry.type != StateType::i64) return from_dtype(entry.data.data(), DType::f64, entry.shape);
  std::vector<std::int64_t> values(static_cast<std::size_t>(entry.shape.elements()));
  std::memcpy(values.data(), entry.data.data(), entry.data.size());
  return from_int64(values, entry.shape);
}

// True on every rank when all ranks say so. Collective.
bool all_agree(Rank& rank, std::uint64_t call, bool well) {
  const Message answer = rank.world->exchange(
      Message{Header("apply", Direction::agreement, call), {}, well ? 0u : std::uint64_t{flag_stop}, {}}, rank.queue);
  return (answer.flags & flag_stop) == 0;
}

// A name that all ranks have for the run: rank 0's, which the exchange adds to zeros. Collective.
std::string name_of_run(Rank& rank) {
  const double own = rank.rank == 0 ? static_cast<double>(new_number()) : 0;
  const Message sum = rank.world->exchange(Message{Header("apply", Direction::agreement, 0), {own}, 0, {}}, rank.queue);
  return stem_of(static_cast<std::uint64_t>(sum.payload[0]));
}

void make_out(const std::string& out) {
  std::error_code error;
  std::filesystem::create_directories(out, error);
  if (!std::filesystem::is_directory(out))
    bad_file(out, "cannot be made: " + (error ? error.message() : std::string("something else has that name")));
}

std::string file_name(const ApplyPlan& plan, const NamedArray& result, int rank, int ranks) {
  return result.name + (ranks > 1 ? ".r" + std::to_string(rank) : "") +
         (plan.steps > 1 ? ".s" + std::to_string(result.step) : "") + ".npy";
}

// The state must not take the name of an output, of another rank either.
void check_name_of_state(const ApplyPlan& plan, const Rank& rank, const std::vector<NamedArray>& results,
                         const AtomicFile& state) {
  if (state.folder() != std::filesystem::canonical(plan.out)) return;
  for (int r = 0; r < rank.size; ++r)
    for (const NamedArray& result : results)
      if (state.name() == file_name(plan, result, r, rank.size))
        bad_file(state.path(), "is the output " + result.name + ", must be another file");
}

// `state`: null where none is written.
void stage(std::optional<StagedFiles>& files, const std::string& run, const ApplyPlan& plan, const Rank& rank,
           const std::vector<NamedArray>& results, const State* state) {
  make_out(plan.out);
  files.emplace(plan.out, run, rank.rank);
  const std::filesystem::path directory(plan.out);
  for (const NamedArray& result : results) {
    AtomicFile file = files->make((directory / file_name(plan, result, rank.rank, rank.size)).string());
    write_npy(file, result.array);
    files->add(std::move(file));
  }
  if (state != nullptr) {
    AtomicFile file = files->make(expand(plan.save_state, rank.rank, 0));
    check_name_of_state(plan, rank, results, file);
    write_safetensors(file, to_file(*state, rank.size));
    files->add(std::move(file));
  }
  files->prepare();
}

}  // namespace

std::vector<NamedArray> run_step(const ApplyPlan& plan, const StepTensors& tensors, Operation& operation, Rank& rank,
                                 std::int64_t step) {
  Queue& queue = rank.queue;
  const Layer& layer = tensors.layer();
  const Row& row = *layer.row;
  const LoadedTensor& x = tensors.input();
  StepMemory memory(queue);
  InputSlots inputs = tensors.inputs();
  for (auto& [name, view] : inputs) view = memory.upload(view);
  const TensorView y = memory.room("output", x, x.dtype, output_shape(row, inputs));
  const auto saved = [&] {
    const WatchCall call(rank.watch, operation.name(), Direction::forward);
    return operation.forward(inputs, {{"output", y}}, queue);
  }();
  if (plan.wants_gradients()) {
    OutputSlots gradients{{"grad_input", memory.room("grad_input", x, x.dtype)}};
    for (const OutputSpec& output : row.outputs)
      if (const TensorSpec* of = row.gradient(output.name); of != nullptr && plan.gives(of->name))
        gradients.add(output.name, memory.room(output.name, *tensors.find(of->name),
                                               is_of_input_type(of->role) ? x.dtype : DType::f64));
    InputSlots given = tensors.gradients();
    for (auto& [name, view] : given) view = memory.upload(view);
    const WatchCall call(rank.watch, operation.name(), Direction::backward);
    operation.backward(*saved, given, gradients, queue);
  }

  std::vector<NamedArray> results;
  const auto add = [&](std::string_view name, std::optional<NpyArray> array) {
    if (array) results.push_back({std::string(name), step, *std::move(array)});
  };
  add("output", memory.result("output"));
  add("grad_input", memory.result("grad_input"));
  const State state = layer.options.training ? operation.state(queue) : State{};
  for (const OutputSpec& output : row.outputs) {
    if (!layer.has(output)) continue;
    const StateEntry* entry = state.find(output.name);
    if (row.gradient(output.name) != nullptr)
      add(output.name, memory.result(output.name));
    else if (entry != nullptr)
      add(output.name, array_of(*entry));
    else if (row.state(output.name) == nullptr)
      add(output.name,
          from_doubles(to_host(saved->statistic(output.name), queue), layer.shape_of(output.axes, x.shape)));
  }
  operation.check();  // what the ranks' kernels found is not written as a result
  return results;
}

void write_results(const ApplyPlan& plan, Rank& rank, const std::vector<NamedArray>& results, const SavedState& saved) {
  // A rank that fails before this point ends its peers; nobody may have a temporary file by then.
  const std::string run = name_of_run(rank);
  const bool sound = all_agree(rank, 1, saved.wrong.empty());
  const bool own_file = !plan.save_state.empty() && (rank.rank == 0 || mentions(plan.save_state, "{rank}"));
  if (!saved.wrong.empty() && own_file)
    print_line(expand(plan.save_state, rank.rank, 0) + ": is not written, an older one stays" +
               (rank.size > 1 ? " on every rank: rank " + std::to_string(rank.rank) + "'s " : ": ") + saved.wrong);
  std::optional<StagedFiles> files;
  std::exception_ptr error;
  const auto attempt = [&error](const auto& work) {
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
  };
  attempt([&] { stage(files, run, plan, rank, results, own_file && sound ? &saved.state : nullptr); });
  bool well = all_agree(rank, 2, !error);
  if (well) {
    attempt([&] { files->rename(); });
    well = all_agree(rank, 3, !error);
  }
  const bool kept = files && files->settle(well);
  if (well && !kept) bad_file(plan.out, "cannot be written: what this run keeps cannot be noted there");
  if (well) return;
  all_agree(rank, 4, true);  // the failed rank ends the others only after their files are as they were
  if (error) std::rethrow_exception(error);
  fail(Code::aborted, "another rank could not write its results");
}

}  // namespace allnorm::launch
