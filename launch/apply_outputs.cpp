// `allnorm apply`: what is written, and how all ranks write it or none.
#include "launch/apply_outputs.hpp"

#include <algorithm>
#include <filesystem>
#include <span>
#include <utility>

#include "launch/files/atomic_file.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/npy_convert.hpp"

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

// `state`: null where none is written.
void stage(StagedFiles& files, const ApplyPlan& plan, const Rank& rank, const std::vector<NamedArray>& results,
           const State* state) {
  std::error_code error;
  std::filesystem::create_directories(plan.out, error);
  if (!std::filesystem::is_directory(plan.out))
    bad_file(plan.out, "cannot be made: " + (error ? error.message() : std::string("something else has that name")));
  const std::filesystem::path directory(plan.out);
  for (const NamedArray& result : results) {
    const std::string name = result.name + (rank.size > 1 ? ".r" + std::to_string(rank.rank) : "") +
                             (plan.steps > 1 ? ".s" + std::to_string(result.step) : "") + ".npy";
    AtomicFile file((directory / name).string());
    write_npy(file, result.array);
    files.add(std::move(file));
  }
  if (state == nullptr) return;
  AtomicFile file(expand(plan.save_state, rank.rank, 0));
  write_safetensors(file, to_file(*state, rank.size));
  files.add(std::move(file));
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
  const bool sound = all_agree(rank, 0, saved.wrong.empty());
  const bool own_file = !plan.save_state.empty() && (rank.rank == 0 || mentions(plan.save_state, "{rank}"));
  if (!saved.wrong.empty() && own_file)
    print_line(expand(plan.save_state, rank.rank, 0) + ": is not written, an older one stays" +
               (rank.size > 1 ? " on every rank: rank " + std::to_string(rank.rank) + "'s " : ": ") + saved.wrong);
  StagedFiles files;
  std::exception_ptr error;
  try {
    stage(files, plan, rank, results, own_file && sound ? &saved.state : nullptr);
  } catch (...) {
    error = std::current_exception();
  }
  const bool well = all_agree(rank, 1, !error);
  if (well) return files.commit();
  files = StagedFiles{};
  all_agree(rank, 2, true);  // the failed rank ends the others only after their temporaries are gone
  if (error) std::rethrow_exception(error);
  fail(Code::aborted, "another rank could not write its results");
}

}  // namespace allnorm::launch
