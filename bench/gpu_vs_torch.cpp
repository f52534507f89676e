// Normalization layers on a GPU, forward and backward: the library and torch in one run. docs/performance.md has the
// meaning of every column.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/version.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "bench/gpu_subjects.hpp"
#include "bench/gpu_timing.hpp"
#include "kernels/ops.hpp"

namespace {

using namespace allnorm;
using namespace allnorm::bench;

struct Case {
  Kind kind;
  std::vector<std::int64_t> shape;  // (N, C, H, W) or (rows, columns)
  at::ScalarType dtype;
  Order order;

  double bytes() const {
    double product = static_cast<double>(at::elementSize(dtype));
    for (const std::int64_t extent : shape) product *= static_cast<double>(extent);
    return product;
  }
  std::string layer() const {
    constexpr const char* names[] = {"batch_norm", "layer_norm", "rms_norm", "group_norm"};
    return names[static_cast<std::size_t>(kind)];
  }
  std::string shape_text() const { return to_string(Shape(std::span(shape.data(), shape.size()))); }
  std::string order_text() const {
    return shape.size() == 2 ? "rows" : order == Order::channels_last ? "NHWC" : "NCHW";
  }
  std::string dtype_text() const { return dtype == at::kFloat ? "f32" : "bf16"; }
  std::string text() const { return layer() + " " + shape_text() + " " + dtype_text() + " " + order_text(); }
};

std::vector<Case> all_cases() {
  const auto both = {Order::channels_last, Order::channels_first};
  std::vector<Case> cases;
  for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{32, 256, 56, 56},
                                                 {256, 256, 56, 56},
                                                 {32, 64, 112, 112},
                                                 {32, 512, 28, 28},
                                                 {32, 1024, 14, 14},
                                                 {32, 2048, 7, 7},
                                                 {2, 256, 200, 336},
                                                 {2, 2048, 25, 42},
                                                 {2, 1024, 14, 14},
                                                 {2, 2048, 7, 7}})
    for (const Order order : both) cases.push_back({Kind::batch_norm, shape, at::kBFloat16, order});
  for (const Order order : both) cases.push_back({Kind::batch_norm, {32, 256, 56, 56}, at::kFloat, order});
  for (const Kind kind : {Kind::layer_norm, Kind::rms_norm})
    for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{4096, 1024}, {16384, 4096}})
      cases.push_back({kind, shape, at::kBFloat16, Order::channels_first});
  for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{32, 256, 56, 56}, {2, 256, 200, 336}})
    for (const Order order : both) cases.push_back({Kind::group_norm, shape, at::kBFloat16, order});
  return cases;
}

struct Options {
  bool quick = false, list = false;
  std::size_t samples = 101;
  std::uint64_t seed = 1;
  std::string only{}, json{};
};

constexpr const char* usage =
    "usage: %s [--quick] [--list] [--only TEXT] [--samples N] [--seed N] [--json FILE]\n"
    "  --quick      the first case alone\n"
    "  --list       the cases, one a line, and nothing else\n"
    "  --only TEXT  cases whose line in --list contains TEXT\n"
    "  --samples N  a time is the median of N (101), at least 50\n"
    "  --seed N     of the random data (1)\n"
    "  --json FILE  the rows, one JSON object a line, too\n";

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--quick") {
      options.quick = true;
    } else if (flag == "--list") {
      options.list = true;
    } else if (i + 1 == argc) {
      return false;
    } else if (flag == "--only") {
      options.only = argv[++i];
    } else if (flag == "--json") {
      options.json = argv[++i];
    } else if (flag == "--samples" || flag == "--seed") {
      char* end = nullptr;
      const unsigned long long value = std::strtoull(argv[++i], &end, 10);
      if (*argv[i] == '\0' || *end != '\0') return false;
      if (flag == "--seed")
        options.seed = value;
      else
        options.samples = value;
    } else {
      return false;
    }
  }
  return options.samples >= 50;
}

at::Tensor laid_out(const at::Tensor& tensor, const Case& c) {
  const bool last = c.order == Order::channels_last;
  return tensor.to(c.dtype).contiguous(last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

/// As many sets as sets_beyond() says.
Data draw(const Case& c, double l2_bytes) {
  const auto f32 = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  Data data{c.kind, c.order, {}, {}, {}, {}};
  const std::size_t sets = sets_beyond(l2_bytes, c.bytes());
  for (std::size_t i = 0; i < sets; ++i) {
    data.x.push_back(laid_out(at::randn(c.shape, f32) * 2 + 0.5, c));
    data.dy.push_back(laid_out(at::randn(c.shape, f32), c));
  }
  data.weight = (1 + 0.1 * at::randn({c.shape[1]}, f32)).to(at::kBFloat16).to(at::kFloat);
  data.bias = (0.1 * at::randn({c.shape[1]}, f32)).to(at::kBFloat16).to(at::kFloat);
  return data;
}

/// What torch makes of the first set in double precision.
struct Truth {
  at::Tensor y, dx;
  double values = 0;  // that share a mean
};

Truth truth(const Data& data) {
  const at::Tensor x = data.x[0].to(at::kDouble).contiguous();
  Data wide{data.kind,
            Order::channels_first,
            {x},
            {data.dy[0].to(at::kDouble).contiguous()},
            data.weight.to(at::kDouble),
            data.bias.to(at::kDouble)};
  std::unique_ptr<Subject> subject;
  double values = static_cast<double>(x.numel());
  if (data.kind == Kind::batch_norm) {
    subject = std::make_unique<TorchBatchNorm>(wide);
    values /= static_cast<double>(wide.channels());
  } else if (data.kind == Kind::layer_norm) {
    subject = std::make_unique<TorchLayerNorm>(wide);
    values = static_cast<double>(wide.channels());
  } else if (data.kind == Kind::rms_norm) {
    subject = std::make_unique<TorchRmsNorm>(wide);
    values = static_cast<double>(wide.channels());
  } else {
    subject = std::make_unique<TorchGroupNorm>(wide);
    values /= static_cast<double>(x.size(0) * norm_groups);
  }
  subject->forward(0);
  subject->backward(0);
  return {subject->y(0), subject->dx(0), values};
}

double largest_error(const at::Tensor& result, const at::Tensor& reference) {
  const double worst = (result.to(at::kDouble) - reference).abs().max().item<double>();
  return worst == worst ? worst : std::numeric_limits<double>::infinity();
}

/// `roundings` to the type of the data (the result's, and for torch those of a mean and an invstd that it may keep in
/// that type), and f32 sums of `values` terms before that.
double tolerance(const at::Tensor& reference, at::ScalarType dtype, int roundings, double values) {
  const double unit = dtype == at::kBFloat16 ? 0x1p-8 : 0x1p-24;
  return (roundings * unit + 0x1p-24 * std::sqrt(values)) * reference.abs().max().item<double>();
}

struct Row {
  std::string what, mode;
  Time forward{}, backward{};
  double error_y = 0, error_dx = 0;
  bool wrong = false;
  std::string failure() const {
    if (wrong) return "wrong result";
    return forward.failure.empty() ? backward.failure : forward.failure;
  }
};

/// Rows of one subject, eager and replayed. A subject that gives wrong results is not timed.
std::vector<Row> measure(Subject& subject, const Case& c, const Truth& reference, int roundings, std::size_t sets,
                         std::size_t samples) {
  Row eager_row{std::string(subject.name()), "eager"}, graph_row{std::string(subject.name()), "graph"};
  const auto check = [&](Row& row) {
    row.error_y = largest_error(subject.y(0), reference.y);
    row.error_dx = largest_error(subject.dx(0), reference.dx);
    row.wrong = row.error_y > tolerance(reference.y, c.dtype, roundings, reference.values) ||
                row.error_dx > tolerance(reference.dx, c.dtype, roundings, reference.values);
  };
  const Call forward = [&](std::size_t set) { subject.forward(set); };
  const Call backward = [&](std::size_t set) { subject.backward(set); };
  const auto forward_all = [&] {  // backward has notes to read for every set, none of them from a graph
    for (std::size_t set = 0; set < sets; ++set) subject.forward(set);
  };
  try {
    forward_all();
    subject.backward(0);
    check(eager_row);
    if (eager_row.wrong) return {eager_row};
    eager_row.forward = eager(forward, sets, samples);
    eager_row.backward = eager(backward, sets, samples);
    graph_row.forward = replayed(forward, sets, samples);
    forward_all();
    graph_row.backward = replayed(backward, sets, samples);
    if (graph_row.failure().empty()) check(graph_row);
  } catch (const std::exception& error) {
    eager_row.forward.failure = error.what();
    return {eager_row};
  }
  return {eager_row, graph_row};
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

void print(const Case& c, const Row& row, const Row* ours, double copy_rate, std::ofstream* json) {
  // Microseconds of n transfers of the tensor at the rate of the copy.
  const auto transfers = [&](double n) { return n * c.bytes() / copy_rate * 1e6; };
  const std::string head = "| " + c.layer() + " | " + c.shape_text() + " | " + c.dtype_text() + " | " + c.order_text() +
                           " | " + row.what + " | " + row.mode + " |";
  const std::string failure = first_line(row.failure());
  nlohmann::json object{
      {"layer", c.layer()}, {"shape", c.shape}, {"dtype", c.dtype_text()},       {"order", c.order_text()},
      {"what", row.what},   {"mode", row.mode}, {"copy_gb_s", copy_rate * 1e-9}, {"bytes", c.bytes()}};
  if (failure.empty()) {
    const double f = row.forward.us, b = row.backward.us;
    std::printf("%s %.2f | %.2f | %.2f | %.2f | %.2f | %.2f |", head.c_str(), f, f / transfers(2), f / transfers(3), b,
                b / transfers(3), b / transfers(5));
    object.update({{"forward_us", f}, {"backward_us", b}, {"error_y", row.error_y}, {"error_dx", row.error_dx}});
    if (ours != nullptr && ours->failure().empty()) {
      std::printf(" %.2f | %.2f |", f / ours->forward.us, b / ours->backward.us);
      object.update({{"forward_over_ours", f / ours->forward.us}, {"backward_over_ours", b / ours->backward.us}});
    } else {
      std::printf(" | |");
    }
    std::printf(" %.1e | %.1e |\n", row.error_y, row.error_dx);
  } else {
    std::printf("%s %s | | | | | | | | %.1e | %.1e |\n", head.c_str(), failure.c_str(), row.error_y, row.error_dx);
    object["failure"] = failure;
  }
  std::fflush(stdout);
  if (json != nullptr) *json << object.dump() << std::endl;
}

/// False where a result of ours is wrong or missing.
bool compare(const Case& c, const Options& options, Queue& queue, double l2_bytes, std::ofstream* json) {
  at::manual_seed(options.seed);
  const Data data = draw(c, l2_bytes);
  const std::size_t sets = data.x.size();
  const Truth reference = truth(data);
  std::vector<at::Tensor> copies(sets);
  const Time copy = replayed([&](std::size_t set) { copies[set] = data.x[set].clone(); }, sets, options.samples);
  expect(copy.failure.empty(), Code::device, [&] { return "copy on the GPU is not possible: " + copy.failure; });
  copies.clear();
  const double copy_rate = 2 * c.bytes() / (copy.us * 1e-6);
  std::printf("| %s | %s | %s | %s | copy, %.0f GB/s | graph | %.2f | 1.00 | | | | | | | | |\n", c.layer().c_str(),
              c.shape_text().c_str(), c.dtype_text().c_str(), c.order_text().c_str(), copy_rate * 1e-9, copy.us);
  bool good = true;
  std::vector<Row> ours;
  for (const auto& subject : subjects(data, queue)) {
    const bool is_first = ours.empty(), is_ours = subject->is_ours();
    const std::vector<Row> rows = measure(*subject, c, reference, is_ours ? 1 : 3, sets, options.samples);
    if (is_first) ours = rows;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      print(c, rows[i], is_first || i >= ours.size() ? nullptr : &ours[i], copy_rate, json);
      good = good && (!is_ours || rows[i].failure().empty());
    }
  }
  return good;
}

int run(const Options& options, const std::vector<Case>& cases) {
  const at::NoGradGuard no_grad;
  const auto stream = c10::cuda::getStreamFromPool();  // the default stream cannot be captured
  const c10::cuda::CUDAStreamGuard guard(stream);
  Queue queue = Queue::cuda(stream.device_index(), stream.stream());
  int l2_bytes = 0, driver = 0;
  expect(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, stream.device_index()) == cudaSuccess &&
             cudaDriverGetVersion(&driver) == cudaSuccess,
         Code::device, "CUDA driver is out of reach, must be loaded");
  std::unique_ptr<std::ofstream> json;
  if (!options.json.empty()) {
    json = std::make_unique<std::ofstream>(options.json);
    expect(json->good(), Code::invalid_argument, [&] { return options.json + " is not writable, must be"; });
  }
  std::printf("%s against libtorch %s, CUDA driver %d.%d, L2 %.0f MB, medians of %zu samples, seed %llu\n\n",
              queue.ops().name, TORCH_VERSION, driver / 1000, driver % 1000 / 10, l2_bytes * 1e-6, options.samples,
              static_cast<unsigned long long>(options.seed));
  std::printf(
      "| layer | shape | dtype | order | what | mode | forward us | / 2 transfers | / 3 transfers | backward us | / 3 "
      "transfers | / 5 transfers | forward/ours | backward/ours | error y | error dx |\n"
      "|---|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
  bool good = true;
  for (const Case& c : cases) good = compare(c, options, queue, l2_bytes, json.get()) && good;
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr, usage, argv[0]);
    return 2;
  }
  std::vector<Case> cases;
  for (const Case& c : all_cases())
    if (c.text().find(options.only) != std::string::npos && !(options.quick && !cases.empty())) cases.push_back(c);
  if (options.list) {
    for (const Case& c : cases) std::printf("%s\n", c.text().c_str());
    return 0;
  }
  try {
    return run(options, cases);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", first_line(error.what()).c_str());
    return 1;
  }
}
