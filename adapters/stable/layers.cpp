#include "layers.hpp"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace allnorm_torch {

namespace {

allnorm_dtype dtype_of(const Tensor& tensor, const char* slot, const std::string& name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return ALLNORM_F64;
    case ScalarType::Float:
      return ALLNORM_F32;
    case ScalarType::Half:
      return ALLNORM_F16;
    case ScalarType::BFloat16:
      return ALLNORM_BF16;
    case ScalarType::Long:
      return ALLNORM_I64;
    default:
      refuse(std::string(slot) + " is of torch's type " + torch::headeronly::toString(tensor.scalar_type()) +
                 ", must be " +
                 (std::string_view(slot) == "num_batches_tracked" ? "int64" : "float64, float32, float16 or bfloat16"),
             name);
  }
}

void run_in_torch(void*, std::int64_t tasks, allnorm_task task, void* argument) {
  torch::stable::parallel_for(0, tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) task(argument, i);
  });
}

}  // namespace

void refuse(const std::string& what, const std::string& name) {
  throw std::runtime_error(what + " [allnorm: code=" + std::to_string(int{ALLNORM_INVALID_ARGUMENT}) +
                           " layer=" + name + "]");
}

void expect_ok(allnorm_status status, const std::string& name) {
  if (status != ALLNORM_OK)
    throw std::runtime_error(std::string(allnorm_error()) + " [allnorm: code=" + std::to_string(status) +
                             " layer=" + name + "]");
}

// An axis of one index has any stride.
bool is_dense(const Tensor& tensor, bool channels_last) {
  if (!channels_last || tensor.dim() < 2) return tensor.is_contiguous();
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  std::int64_t expected = 1;
  const auto is_next = [&](std::size_t axis) {
    const bool is = sizes[axis] == 1 || strides[axis] == expected;
    expected *= sizes[axis];
    return is;
  };
  bool dense = is_next(1);
  for (std::size_t axis = sizes.size(); axis-- > 0;)
    if (axis != 1) dense = is_next(axis) && dense;
  return dense || tensor.numel() == 0;
}

void expect_array(const char* what, const Tensor& tensor, ScalarType type, std::int64_t size, const std::string& name) {
  const auto text = [](std::int64_t values, bool contiguous, ScalarType of, bool on_host) {
    return std::to_string(values) + (contiguous ? " contiguous" : " scattered") + " values of " +
           torch::headeronly::toString(of) + (on_host ? " on the CPU" : " on another device");
  };
  const bool contiguous = tensor.is_contiguous(), on_host = tensor.is_cpu();
  const ScalarType is = tensor.scalar_type();
  if (contiguous && on_host && is == type && tensor.numel() == size) return;
  refuse(std::string(what) + " is " + text(tensor.numel(), contiguous, is, on_host) + ", must be " +
             text(size, true, type, true),
         name);
}

namespace {

Tensor empty_strided(const Tensor& like, std::size_t axes, const std::int64_t* sizes, const std::int64_t* strides,
                     ScalarType type) {
  std::int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<std::int64_t>(axes), sizes, strides,
      torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(type)), device, index, &made));
  return Tensor(made);
}

}  // namespace

Tensor new_array(const Tensor& like, std::int64_t size, ScalarType type) {
  const std::int64_t stride = 1;
  return empty_strided(like, 1, &size, &stride, type);
}

Tensor new_like(const Tensor& like) {
  const auto sizes = like.sizes(), strides = like.strides();
  return empty_strided(like, sizes.size(), sizes.data(), strides.data(), like.scalar_type());
}

void Slots::add(const char* slot, const Tensor& tensor, bool channels_last, bool writes) {
  if (size_ == most) refuse("too many tensors are given", name_);
  if (!is_dense(tensor, channels_last))
    refuse(std::string(slot) + " is not dense, must be " + (channels_last ? "with its channels last" : "contiguous"),
           name_);
  void* const data = writes ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  slots_[size_++] = {slot,
                     data,
                     tensor.sizes().data(),
                     static_cast<std::int32_t>(tensor.dim()),
                     dtype_of(tensor, slot, name_),
                     channels_last ? 1 : 0,
                     -1};
}

void Ready::look_at(const Tensor& input, const Optional& conv_weight, const Slots& inputs) {
  const auto is = [](const std::vector<std::int64_t>& seen, const Tensor& tensor) {
    const auto extents = tensor.sizes();
    return std::equal(seen.begin(), seen.end(), extents.begin(), extents.end());
  };
  if (work > 0 && is(shape, input) && (conv_weight ? is(conv_shape, *conv_weight) : conv_shape.empty())) return;
  work = 0;  // until all is known of these
  const auto extents = input.sizes();
  expect_ok(allnorm_halves_groups(halves.get(), extents.data(), static_cast<std::int32_t>(extents.size()), &groups),
            name);
  std::int64_t needed = 0;
  expect_ok(allnorm_halves_work(halves.get(), inputs.data(), inputs.size(), &needed), name);
  shape.assign(extents.begin(), extents.end());
  conv_shape.clear();
  if (conv_weight) conv_shape.assign(conv_weight->sizes().begin(), conv_weight->sizes().end());
  work = needed;
}

allnorm_queue* queue() {
  struct Free {
    void operator()(allnorm_queue* made) const noexcept { allnorm_queue_free(made); }
  };
  thread_local std::unique_ptr<allnorm_queue, Free> own;
  thread_local std::uint32_t own_threads = 0;
  if (const std::uint32_t threads = torch::stable::get_num_threads(); threads != own_threads) {
    allnorm_queue* made = nullptr;
    expect_ok(allnorm_queue_pool(static_cast<std::int32_t>(threads), run_in_torch, nullptr, &made), "a queue");
    own.reset(made);
    own_threads = threads;
  }
  return own.get();
}

namespace {

/// Which layer of this thread. A call looks it up without making a text.
struct Key {
  std::string_view layer, name;
  std::int64_t channels, rank, ranks;
  bool operator==(const Key&) const = default;
};
struct Kept {
  std::string layer{};  // of this and of the name the key has views
  Ready ready{};
};
struct HashOf {
  std::size_t operator()(const Key& key) const noexcept {
    std::size_t hash = std::hash<std::string_view>{}(key.layer);
    for (const std::size_t more : {std::hash<std::string_view>{}(key.name), static_cast<std::size_t>(key.channels),
                                   static_cast<std::size_t>(key.rank), static_cast<std::size_t>(key.ranks)})
      hash = hash * 0x9e3779b97f4a7c15ULL + more;
    return hash;
  }
};

}  // namespace

Ready& ready(const std::string& layer, const std::string& name, std::int64_t channels, std::int64_t rank,
             std::int64_t ranks) {
  constexpr std::size_t most = 4096;  // a program that makes new names for ever begins anew
  thread_local std::unordered_map<Key, std::unique_ptr<Kept>, HashOf> layers;
  const auto found = layers.find({layer, name, channels, rank, ranks});
  if (found != layers.end()) return found->second->ready;
  if (layers.size() == most) layers.clear();
  auto kept = std::make_unique<Kept>();
  kept->layer = layer;
  allnorm_halves* halves = nullptr;
  expect_ok(allnorm_halves_make(layer.c_str(), channels, static_cast<std::int32_t>(rank),
                                static_cast<std::int32_t>(ranks), name.c_str(), queue(), &halves),
            name);
  Ready& made = kept->ready;
  made.halves.reset(halves);
  expect_ok(allnorm_halves_sizes_of(halves, &made.sizes), name);
  made.name = name;
  const Key key{kept->layer, made.name, channels, rank, ranks};
  layers.emplace(key, std::move(kept));
  return made;
}

void* scratch(std::int64_t bytes) {
  thread_local std::vector<double> memory;
  const auto doubles = static_cast<std::size_t>((bytes + 7) / 8);
  if (memory.size() < doubles) memory.resize(doubles);
  return memory.data();
}

}  // namespace allnorm_torch
