// The public face of a layer.
#include "allnorm/norm.hpp"

#include "src/failures.hpp"
#include "src/norm_impl.hpp"

namespace allnorm {

Norm::Norm(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
           std::string name)
    : impl_(std::make_unique<NormImpl>(layer, channels, std::move(group), queue, std::move(name))) {}
Norm::Norm(Norm&&) noexcept = default;
Norm& Norm::operator=(Norm&&) noexcept = default;
Norm::~Norm() = default;

Saved Norm::forward(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  return with_named_errors([&] { return impl_->forward(inputs, output, queue); });
}
Saved Norm::replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue) {
  return impl_->replay(earlier, inputs, output, queue);
}
void Norm::backward(const Saved& saved, ConstTensorView grad_output, const BackwardOutputs& outputs, Queue& queue) {
  backward(saved, BackwardInputs{.output = grad_output}, outputs, queue);
}
void Norm::backward(const Saved& saved, const BackwardInputs& inputs, const BackwardOutputs& outputs, Queue& queue) {
  with_named_errors([&] { impl_->backward(saved, inputs, outputs, queue); });
}
void Norm::infer(const ForwardInputs& inputs, TensorView output, Queue& queue) { impl_->infer(inputs, output, queue); }
NonFiniteCalls Norm::nonfinite() const { return impl_->nonfinite(); }
void Norm::check() { impl_->expect_finite(); }
void Norm::begin_batch(Queue& queue) { impl_->begin_batch(queue); }

void Norm::set_training(bool training) noexcept { impl_->layer_.options.training = training; }
const Layer& Norm::layer() const noexcept { return impl_->layer_; }
const std::string& Norm::name() const noexcept { return impl_->name_; }
Communicator& Norm::group() const noexcept { return *impl_->group_; }
std::int64_t Norm::channels() const noexcept { return impl_->channels_; }

State Norm::save(Queue& queue) const { return impl_->save(queue); }
void Norm::load(const State& state, Queue& queue, const LoadOptions& options) { impl_->load(state, queue, options); }

RunningStatistics Norm::running(Queue& queue) const { return impl_->memory_.running(queue); }
void Norm::set_running(const RunningStatistics& running, Queue& queue) { impl_->memory_.set_running(running, queue); }
bool Norm::has_running() const noexcept { return impl_->has_running(); }
Norm::PastStatistics Norm::past(Queue& queue) const { return impl_->memory_.past(queue); }
std::pair<double, double> Norm::renorm_bounds(Queue& queue) const { return impl_->renorm_bounds(queue); }
std::size_t Norm::state_bytes() const noexcept { return impl_->memory_.bytes(); }

}  // namespace allnorm
