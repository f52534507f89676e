#include "src/mixture.hpp"

#include <string>

#include "src/parameters.hpp"

namespace allnorm {

namespace {

std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

}  // namespace

Mixture::Mixture(const TensorSpec& spec, const ConstTensorView& view, std::int64_t samples, const Queue& queue)
    : name_(spec.name.data()), samples_(samples) {
  if (!view.given()) return;
  const std::string name(spec.name), each = std::to_string(samples);
  weighted_ = spec.role == TensorRole::mixture && view.shape.rank() == 2;
  labelled_ = !weighted_;
  if (labelled_) {
    expect(view.shape == Shape{samples}, Code::invalid_input, [&] {
      return name + " has shape " + to_string(view.shape) + ", must have (" + each + ",)" +
             (spec.role == TensorRole::mixture ? " or (" + each + ",K)" : "");
    });
    expect(view.dtype == DType::i64, Code::invalid_argument,
           [&] { return name + " has dtype " + std::string(to_string(view.dtype)) + ", must have i64"; });
    expect(view.data != nullptr || samples == 0, Code::invalid_argument, [&] { return name + " has no data"; });
  } else {
    width_ = view.shape[1];
    expect(view.shape[0] == samples, Code::invalid_input,
           [&] { return name + " has shape " + to_string(view.shape) + ", must have (" + each + ",K)"; });
    expect_floats(view, name_);
  }
  expect(view.device == queue.device(), Code::device,
         [&] { return name + " is on " + to_string(view.device) + ", must be on " + to_string(queue.device()); });
  expect_memory(view.data, queue, name_);
  if (labelled_) {
    const auto* from = static_cast<const std::int64_t*>(view.data);
    labels_.assign(from, from + samples);
    for (std::int64_t n = 0; n < samples; ++n)
      expect(from[n] >= 0, Code::invalid_input, [&] {
        return name + " has " + std::to_string(from[n]) + " at " + std::to_string(n) + ", must be at least 0";
      });
  } else {
    const Parameter from = parameter(view, 0);
    weights_.resize(index(view.elements()));
    for (std::size_t i = 0; i < weights_.size(); ++i) weights_[i] = from[static_cast<std::int64_t>(i)];
  }
}

void Mixture::expect_table(const ConstTensorView& table, std::int64_t channels, const Queue& queue,
                           const char* name) const {
  if (!table.given()) return;
  if (!labelled_ && !weighted_) return expect_parameter(table, Shape{channels}, queue, name);
  const bool fits = table.shape.rank() == 2 && table.shape[1] == channels && (labelled_ || table.shape[0] == width_);
  expect(fits, Code::invalid_input, [&] {
    const std::string rows = weighted_ ? std::to_string(width_) : "K";
    return std::string(name) + " has shape " + to_string(table.shape) + ", must have (" + rows + "," +
           std::to_string(channels) + ") with " + name_;
  });
  expect_parameter(table, table.shape, queue, name);
  const std::int64_t rows = table.shape[0];
  for (std::size_t n = 0; n < labels_.size(); ++n)
    expect(labels_[n] < rows, Code::invalid_input, [&] {
      return std::string(name_) + " has " + std::to_string(labels_[n]) + " at " + std::to_string(n) +
             ", must be less than the " + std::to_string(rows) + " rows of " + name;
    });
}

template <class F>
void Mixture::for_rows(std::int64_t n, const F& f) const {
  if (!weighted_) return f(labelled_ ? labels_[index(n)] : 0, 1.0);
  for (std::int64_t k = 0; k < width_; ++k) f(k, weights_[index(n * width_ + k)]);
}

void Mixture::add_rows(const ConstTensorView& table, double otherwise, std::vector<double>& values) const {
  if (samples_ == 0) return;
  const std::int64_t channels = static_cast<std::int64_t>(values.size()) / samples_;
  const Parameter from = parameter(table, otherwise);
  for (std::int64_t n = 0; n < samples_; ++n)
    for_rows(n, [&](std::int64_t row, double share) {
      for (std::int64_t c = 0; c < channels; ++c) values[index(n * channels + c)] += share * from[row * channels + c];
    });
}

void Mixture::add_up(const std::vector<double>& gradients, const TensorView& table) const {
  std::vector<double> sums(index(table.elements()));
  const std::int64_t channels = table.shape[table.shape.rank() - 1];
  for (std::int64_t n = 0; n < samples_; ++n)
    for_rows(n, [&](std::int64_t row, double share) {
      for (std::int64_t c = 0; c < channels; ++c)
        sums[index(row * channels + c)] += share * gradients[index(n * channels + c)];
    });
  const ParameterGrad to = parameter_grad(table);
  for (std::size_t i = 0; i < sums.size(); ++i) to.set(static_cast<std::int64_t>(i), sums[i]);
}

}  // namespace allnorm
