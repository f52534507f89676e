// Extreme sizes: every integer attribute, every extent. Refused by name, or they work; nothing overflows on the way.
#include "allnorm/sizes.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "allnorm/operation.hpp"
#include "harness.hpp"

namespace sizes_test {
namespace {

using namespace allnorm;
using harness::error_of;

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

TEST(Sizes, ProductsThatDoNotFitAreNone) {
  EXPECT_EQ(product({}), 1);
  EXPECT_EQ(product({3, 5, 7}), 105);
  EXPECT_EQ(product({most, 1}), most);
  EXPECT_EQ(product({most, 0}), 0);
  EXPECT_EQ(product({most, 2}), std::nullopt);
  EXPECT_EQ(product({most, 0, 2}), std::nullopt);  // no partial product may overflow either
  EXPECT_EQ(product({2, -1}), std::nullopt);
  EXPECT_EQ(error_of([] { expect_fits("x", most / 6, {2, 3}); }), "");
  EXPECT_EQ(
      error_of([] {
        expect_fits("x", most / 6 + 1, {2, 3});
      }),
      "invalid argument: x is 1537228672809129302, must be at most 1537228672809129301: sizes that follow from it "
      "would pass 2^63-1");
  EXPECT_EQ(error_of([] { bytes_of(std::size_t{1} << 59, 8); }), "");
  EXPECT_NE(error_of([] { bytes_of((std::size_t{1} << 61) + 1, 8); }), "");
}

// Calls of the layer with what it requires, and with a convolution where it can have one.
std::string calling(const Layer& layer) {
  std::vector<double> x{1, 2, 3, 4, 5, 6, 7, 8}, y(8), weight{1, 2, 3, 4};
  std::vector<std::int64_t> labels{0, 0};
  const TensorSpec* vectors = layer.row->vectors();
  InputSlots in{{"input", view(x.data(), vectors != nullptr ? Shape{2, 4} : Shape{2, 2, 2})}};
  for (const TensorSpec& tensor : layer.row->tensors) {
    const bool required = tensor.required != nullptr && tensor.required(layer.options);
    if (&tensor == vectors)
      in.add(tensor.name, view(weight.data(), Shape{1, 4}));
    else if (tensor.role == TensorRole::conv_weight)
      in.add(tensor.name, view(weight.data(), Shape{2, 2, 1}));
    else if (required && (tensor.role == TensorRole::labels || tensor.role == TensorRole::mixture))
      in.add(tensor.name, view(labels.data(), Shape{2}));
    else if (required || tensor.role == TensorRole::conv_input)
      in.add(tensor.name, view(x.data(), Shape{2, 2, 2}));
  }
  return error_of([&] {
    Queue queue = Queue::cpu();
    const auto operation = make_operation(layer, 2, self(), queue);
    for (int i = 0; i < 3; ++i)
      operation->forward(in, {{"output", view(y.data(), output_shape(*layer.row, in))}}, queue);
  });
}

TEST(Sizes, ExtremeAttributesAreNamedOrWork) {
  for (const Row& row : catalogue())
    for (const Attribute& attribute : row.attributes)
      for (const char* value : {"9223372036854775807", "4611686018427387904", "2184482850834025855"}) {
        std::string error;
        try {
          Layer layer = Layer(row.name);
          if (layer.row->statistics.has(Axis::group)) layer.set("groups", "2");
          if (layer.row->statistics.has(Axis::partner)) layer.set("group_size", "2");
          error = calling(layer.set(attribute.name, value));
        } catch (const Error& refused) {
          error = "invalid argument: " + refused.message();
        }
        const bool named = error.find("attribute") != error.npos && error.find(attribute.name) != error.npos;
        EXPECT_TRUE(error.empty() || named) << row.name << " " << attribute.name << ": " << error;
      }
  EXPECT_NE(calling(parse_layer("batch_norm:compensate=false:window=2184482850834025855")).find("attribute window"),
            std::string::npos);
  EXPECT_EQ(calling(parse_layer("batch_norm:minibatches=9223372036854775807:burn_in=9223372036854775807")), "");
}

// Tensors without elements whose extents are not small.
TEST(Sizes, ExtremeShapesAreRefused) {
  constexpr std::int64_t large = std::int64_t{1} << 60;
  Queue queue = Queue::cpu();
  for (const char* layer : {"batch_norm", "cross_iteration_batch_norm"})
    EXPECT_NE(error_of([&] { Norm(Layer(layer), large, nullptr, queue); }).find("channels is 1152921504606846976"),
              std::string::npos);
  const auto forward = [&](std::string_view layer, const Shape& shape) {
    Norm norm(parse_layer(layer), shape[1], nullptr, queue);
    double none = 0;
    ForwardInputs in;
    in.input = view(&none, shape);
    return error_of([&] { norm.forward(in, view(&none, shape), queue); });
  };
  for (const Shape& shape : {Shape{large, 0, 4}, Shape{0, large, 4}, Shape{large, 4, 0}, Shape{4, large, 0}}) {
    EXPECT_EQ(forward("group_norm:groups=2", shape).substr(0, 32), "invalid input: input has shape (")
        << to_string(shape);
    if (shape[0] == large) {
      EXPECT_NE(forward("layer_norm", shape), "") << to_string(shape);
    }
  }
  EXPECT_NE(forward("group_norm:groups=4611686018427387904", Shape{4, 0, 3}).find("attribute groups is 4611686"),
            std::string::npos);
}

}  // namespace
}  // namespace sizes_test
