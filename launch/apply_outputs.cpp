// `allnorm apply`: what is written, and how all ranks write it or none.
#include "launch/apply_outputs.hpp"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <span>
#include <utility>

#include "launch/files/input_file.hpp"
#include "launch/files/leftovers.hpp"
#include "launch/files/npy_convert.hpp"
#include "launch/files/staged_files.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {

namespace {

struct Context {
  const ApplyPlan& plan;
  const StepTensors& tensors;
  const StepResult& result;

  const Layer& layer() const { return plan.layer; }
  bool training() const { return layer().options.training; }
  bool gradient_of(std::string_view name) const { return plan.wants_gradients() && plan.gives(name); }
};

NpyArray doubles(const std::vector<double>& values, const Shape& shape) { return from_doubles(values, shape); }

NpyArray like_input(const Context& context, const std::vector<std::byte>& values) {
  const LoadedTensor& x = context.tensors.input();
  return from_dtype(values.data(), x.dtype, x.file_shape);
}

NpyArray statistics(const Context& context, const std::vector<double>& values) {
  const Layer& layer = context.tensors.layer();
  return doubles(values, layer.shape_of(layer.row->statistics, context.tensors.input().shape));
}

NpyArray running(const std::vector<double>& values) {
  return doubles(values, Shape{static_cast<std::int64_t>(values.size())});
}

// Where every output of the catalogue comes from, and when it is written.
struct Source {
  std::string_view name;
  bool (*written)(const Context&);
  NpyArray (*get)(const Context&);
};

constexpr Source sources[] = {
    {"output", [](const Context&) { return true; }, [](const Context& c) { return like_input(c, c.result.output); }},
    {"grad_input", [](const Context& c) { return c.gradient_of("input"); },
     [](const Context& c) { return like_input(c, c.result.grad_input); }},
    {"mean", [](const Context&) { return true; }, [](const Context& c) { return statistics(c, c.result.mean); }},
    {"var", [](const Context&) { return true; }, [](const Context& c) { return statistics(c, c.result.var); }},
    {"rstd", [](const Context&) { return true; }, [](const Context& c) { return statistics(c, c.result.rstd); }},
    {"r", [](const Context& c) { return !c.result.r.empty(); },
     [](const Context& c) { return statistics(c, c.result.r); }},
    {"d", [](const Context& c) { return !c.result.d.empty(); },
     [](const Context& c) { return statistics(c, c.result.d); }},
    {"running_mean", [](const Context& c) { return c.training(); },
     [](const Context& c) { return running(c.result.running.mean); }},
    {"running_var", [](const Context& c) { return c.training() && !c.layer().keeps_std(); },
     [](const Context& c) { return running(c.result.running.spread); }},
    {"running_std", [](const Context& c) { return c.training() && c.layer().keeps_std(); },
     [](const Context& c) { return running(c.result.running.spread); }},
    {"num_batches_tracked", [](const Context& c) { return c.training(); },
     [](const Context& c) {
       const std::int64_t count = c.result.running.tracked;
       return from_int64(std::span(&count, 1), Shape{});
     }},
    {"grad_weight", [](const Context& c) { return c.gradient_of("weight"); },
     [](const Context& c) { return doubles(c.result.grad_weight, c.tensors.find("weight")->shape); }},
    {"grad_bias", [](const Context& c) { return c.gradient_of("bias"); },
     [](const Context& c) { return doubles(c.result.grad_bias, c.tensors.find("bias")->shape); }},
    {"grad_residual", [](const Context& c) { return c.gradient_of("residual"); },
     [](const Context& c) { return like_input(c, c.result.grad_residual); }},
};

void add(std::vector<NamedArray>& results, std::string_view name, const Context& context, std::int64_t step) {
  for (const Source& source : sources)
    if (source.name == name) {
      if (source.written(context)) results.push_back({std::string(name), step, source.get(context)});
      return;
    }
  fail(Code::unsupported, "output " + std::string(name) + " is in the catalogue but not in apply's table");
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

StepResult run_step(const ApplyPlan& plan, const StepTensors& tensors, Norm& norm, Queue& queue) {
  const LoadedTensor& x = tensors.input();
  std::vector<Buffer<std::byte>> uploads;  // kept until the calls are done
  const auto upload = [&](ConstTensorView view) {
    if (!view.given() || view.elements() == 0) return view;
    const std::size_t bytes = static_cast<std::size_t>(view.elements()) * size_of(view.dtype);
    uploads.emplace_back(bytes, queue, Fill::none);
    copy_to_device(uploads.back().data(), view.data, bytes, queue);
    view.data = uploads.back().data();
    return view;
  };
  const auto on_device = [&](ConstTensorView view) {
    view.device = queue.device();
    return queue.device().kind == DeviceKind::cpu ? view : upload(view);
  };
  const auto like_x = [&](Buffer<std::byte>& buffer) {
    buffer = Buffer<std::byte>(x.data.size(), queue);
    return TensorView{buffer.data(), x.dtype, queue.device(), x.shape, x.order};
  };
  ForwardInputs inputs = tensors.forward_inputs();
  for (ConstTensorView* view : {&inputs.input, &inputs.weight, &inputs.bias, &inputs.residual, &inputs.conv_input,
                                &inputs.conv_weight, &inputs.patch_sum, &inputs.patch_product})
    *view = on_device(*view);

  StepResult result;
  Buffer<std::byte> output, grad_input, grad_residual;
  const Saved saved = norm.forward(inputs, like_x(output), queue);
  if (plan.wants_gradients()) {
    BackwardOutputs gradients;
    gradients.input = like_x(grad_input);
    if (plan.gives("residual")) gradients.residual = like_x(grad_residual);
    Buffer<double> grad_weight, grad_bias;
    const auto of_parameter = [&](const char* name, Buffer<double>& buffer) {
      const LoadedTensor* parameter = tensors.find(name);
      if (!parameter) return TensorView{};
      buffer = Buffer<double>(static_cast<std::size_t>(parameter->shape.elements()), queue);
      return TensorView{buffer.data(), DType::f64, queue.device(), parameter->shape, Order::channels_first};
    };
    gradients.weight = of_parameter("weight", grad_weight);
    gradients.bias = of_parameter("bias", grad_bias);
    norm.backward(saved, on_device(tensors.view("grad_output")), gradients, queue);
    result.grad_weight = to_host(grad_weight, queue);
    result.grad_bias = to_host(grad_bias, queue);
  }
  result.output = to_host(output, queue);
  result.grad_input = to_host(grad_input, queue);
  result.grad_residual = to_host(grad_residual, queue);
  const Frame& frame = saved.frame();
  const auto take = [&queue](std::span<const double> values) { return to_host(values, queue); };
  result.mean = take(frame.mean);
  result.var = take(frame.var);
  result.rstd = take(frame.rstd);
  result.r = take(frame.r);
  result.d = take(frame.d);
  if (norm.has_running()) result.running = norm.running(queue);
  norm.group().check();  // what the ranks' kernels found is not written as a result
  return result;
}

std::vector<NamedArray> collect(const ApplyPlan& plan, const StepTensors& tensors, const StepResult& result,
                                std::int64_t step) {
  const Context context{plan, tensors, result};
  std::vector<NamedArray> results;
  for (const char* name : {"output", "grad_input"})
    if (std::string_view(name) == "output" || plan.wants_gradients()) add(results, name, context, step);
  for (const OutputSpec& output : plan.layer.row->outputs) add(results, output.name, context, step);
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
