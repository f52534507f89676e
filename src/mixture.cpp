#include "src/mixture.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "kernels/group_steps.hpp"
#include "kernels/ops.hpp"
#include "src/parameters.hpp"

namespace allnorm {

namespace {

bool is_cpu(const Queue& queue) noexcept { return queue.device().kind == DeviceKind::cpu; }

// On a CPU tiles that are read and written along rows.
steps::Tiles tiles(std::int64_t rows, std::int64_t columns, std::int64_t tall, std::int64_t wide, const Queue& queue) {
  return is_cpu(queue) ? steps::Tiles{rows, columns, std::max<std::int64_t>(1, tall), wide}
                       : steps::Tiles{rows, columns, 1, 1};
}
std::int64_t rows_of(const Shape& table) { return table.rank() == 2 ? table[0] : 1; }
constexpr std::int64_t wide = 256;  // values of a tile's row

}  // namespace

Mixture::Mixture(const TensorSpec& spec, const ConstTensorView& view, std::int64_t samples, const Queue& queue)
    : name_(spec.name.data()), samples_(samples) {
  if (!view.given()) return;
  const std::string name(spec.name), each = std::to_string(samples);
  shares_.weighted = spec.role == TensorRole::mixture && view.shape.rank() == 2;
  labelled_ = !shares_.weighted;
  if (labelled_) {
    expect(view.shape == Shape{samples}, Code::invalid_input, [&] {
      return name + " has shape " + to_string(view.shape) + ", must have (" + each + ",)" +
             (spec.role == TensorRole::mixture ? " or (" + each + ",K)" : "");
    });
    expect(view.dtype == DType::i64, Code::invalid_argument,
           [&] { return name + " has dtype " + std::string(to_string(view.dtype)) + ", must have i64"; });
    expect(view.data != nullptr || samples == 0, Code::invalid_argument, [&] { return name + " has no data"; });
  } else {
    shares_.rows = view.shape[1];
    expect(view.shape[0] == samples, Code::invalid_input,
           [&] { return name + " has shape " + to_string(view.shape) + ", must have (" + each + ",K)"; });
    expect_floats(view, name_);
  }
  expect(view.device == queue.device(), Code::device,
         [&] { return name + " is on " + to_string(view.device) + ", must be on " + to_string(queue.device()); });
  expect_memory(view.data, queue, name_);
  if (!labelled_) {
    shares_.weights = parameter(view, 0);
    return;
  }
  shares_.labels = static_cast<const std::int64_t*>(view.data);
  for (std::int64_t n = 0; is_cpu(queue) && n < samples; ++n)
    expect(shares_.labels[n] >= 0, Code::invalid_input, [&] {
      return name + " has " + std::to_string(shares_.labels[n]) + " at " + std::to_string(n) + ", must be at least 0";
    });
}

void Mixture::expect_table(const ConstTensorView& table, std::int64_t channels, const Queue& queue,
                           const char* name) const {
  if (!table.given()) return;
  if (!labelled_ && !shares_.weighted) return expect_parameter(table, Shape{channels}, queue, name);
  const bool fits =
      table.shape.rank() == 2 && table.shape[1] == channels && (labelled_ || table.shape[0] == shares_.rows);
  expect(fits, Code::invalid_input, [&] {
    const std::string rows = labelled_ ? "K" : std::to_string(shares_.rows);
    return std::string(name) + " has shape " + to_string(table.shape) + ", must have (" + rows + "," +
           std::to_string(channels) + ") with " + name_;
  });
  expect_parameter(table, table.shape, queue, name);
  const std::int64_t rows = table.shape[0];
  for (std::int64_t n = 0; labelled_ && is_cpu(queue) && n < samples_; ++n)
    expect(shares_.labels[n] < rows, Code::invalid_input, [&] {
      return std::string(name_) + " has " + std::to_string(shares_.labels[n]) + " at " + std::to_string(n) +
             ", must be less than the " + std::to_string(rows) + " rows of " + name;
    });
}

void Mixture::take(const ConstTensorView& table, double otherwise, const ConstTensorView& delta, std::int64_t channels,
                   double* values, ExchangeReport* report, Queue& queue) const {
  const steps::Tiles cut = tiles(samples_, channels, 1, wide, queue);
  const std::int64_t rows = table.given() ? rows_of(table.shape) : std::numeric_limits<std::int64_t>::max();
  queue.ops().each(
      {steps::MixtureForward{shares_, cut, parameter(table, otherwise), parameter(delta, 0), rows, values, report}},
      cut.count(), queue);
}

void Mixture::add_up(const double* gradients, const TensorView& table, Queue& queue) const {
  const std::int64_t rows = rows_of(table.shape);
  const steps::Tiles cut = tiles(rows, table.shape[table.shape.rank() - 1], rows, wide, queue);
  Buffer<double> sums(static_cast<std::size_t>(table.elements()), queue, Fill::none);
  queue.ops().each({steps::MixtureBackward{shares_, cut, samples_, gradients, sums.data(), parameter_grad(table)}},
                   cut.count(), queue);
}

}  // namespace allnorm
