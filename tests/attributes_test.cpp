// Attributes: one row each, from which the message's words and what a rank is told of a difference follow.
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/message.hpp"
#include "harness.hpp"

namespace attributes_test {
namespace {

using namespace allnorm;
using harness::error_of;

Header header_of(const Layer& layer) {
  Header header("bn", Direction::forward, 3);
  write_layer(layer, header);
  return header;
}

// The layer with another value of the attribute.
Layer with_another(const Layer& layer, const Attribute& attribute) {
  for (const char* value : {"true",          "false",  "0.5",   "2",     "3",       "relu",  "var",
                            "drop",          "window", "count", "every", "outside", "world", "2,3",
                            "instance_norm", "half",   "space", "onnx",  "max",     "fail"}) {
    Layer other = layer;
    const bool fits = error_of([&] { other.set(attribute.name, value); }).empty();
    if (fits && attribute.get(other.options) != attribute.get(layer.options)) return other;
  }
  ADD_FAILURE() << attribute.name << " takes none of the values";
  return layer;
}

TEST(Attributes, ThatMustAgreeAreToldByName) {
  for (const Row& row : catalogue())
    for (const Attribute& attribute : row.attributes) {
      SCOPED_TRACE(std::string(row.name) + ", " + std::string(attribute.name));
      const Layer layer(row.name), other = with_another(layer, attribute);
      const std::string told = differences(header_of(layer), "rank 0", header_of(other)), name(attribute.name);
      if (attribute.agreement != Agreement::same)
        EXPECT_EQ(told, "");
      else if (attribute.text == nullptr)
        EXPECT_EQ(told, name + " differs, must be the same as on rank 0");
      else
        EXPECT_EQ(told, name + " is " + attribute.get(other.options) + ", must be " + attribute.get(layer.options) +
                            " as on rank 0");
    }
}

TEST(Attributes, OfRowsOfOneFamilyMeanTheSame) {
  EXPECT_EQ(header_of(parse_layer("batch_norm:window=4")), header_of(Layer("cross_iteration_batch_norm")));
  EXPECT_EQ(header_of(Layer("batch_norm")), header_of(Layer("sync_batch_norm")));
  EXPECT_EQ(header_of(parse_layer("batch_norm:conv_padding=1")), header_of(parse_layer("batch_norm:conv_padding=1,1")));
  EXPECT_EQ(differences(header_of(parse_layer("batch_norm:conv_padding=1")), "rank 0",
                        header_of(parse_layer("batch_norm:conv_padding=1,0:eps=1"))),
            "eps is 1, must be 1e-05 as on rank 0; conv_padding differs, must be the same as on rank 0");
}

TEST(Attributes, OfAnotherFamilyAreNotCompared) {
  EXPECT_EQ(differences(header_of(Layer("batch_norm")), "rank 2", header_of(parse_layer("group_norm:eps=1"))),
            "kind is group_norm, must be the batch_norm family as on rank 2");
}

TEST(Attributes, ThatTheRowDoesNotListAreNotSet) {
  Layer layer("group_norm");
  layer.options.window = 3;
  EXPECT_EQ(error_of([&] { layer.check(); }), "invalid argument: window is set, must not be for group_norm");
  Layer rows("layer_norm");
  rows.options.eps_place = EpsPlace::outside;
  EXPECT_EQ(error_of([&] { rows.check(); }), "invalid argument: eps_place is set, must not be for layer_norm");
}

TEST(Attributes, ThatFollowAScheduleAreReadBackFromText) {
  Layer layer = parse_layer("batch_renorm:r_max=1@5000,2.5@40000");
  EXPECT_EQ(layer.options.r_max_ramp, (Ramp{{5000, 1}, {40000, 2.5}}));
  const Attribute& r_max = *layer.row->attribute("r_max");
  EXPECT_EQ(r_max.get(layer.options), "1@5000,2.5@40000");
  layer.set("r_max", "2");
  EXPECT_EQ(r_max.get(layer.options), "2");
  for (const char* value : {"1@", "@1", "1@2@3", "1@2,", "1@2,1@2", "1@3,1@2", "1@-1", "0.5@1", "nan@1", "1,2", ""})
    EXPECT_EQ(error_of([&] { layer.set("r_max", value); }),
              "invalid argument: attribute r_max is '" + std::string(value) +
                  "', must be a number of at least 1, or points VALUE@CALL, separated by commas");
  EXPECT_EQ(error_of([] { parse_layer("group_norm:r_max=1@2"); }).substr(0, 17), "invalid argument:");
}

TEST(Attributes, ThatStatisticsFollowAreNamed) {
  for (const Row& row : catalogue())
    EXPECT_EQ(row.attribute(row.statistics_by) != nullptr, row.statistics_with != nullptr) << row.name;
}

TEST(Attributes, ThatDoNotFitIntoAMessageAreRefused) {
  const Row& batch_norm = *Layer("batch_norm").row;
  const std::vector<Attribute> many(Header::attributes_size + 1, *batch_norm.attribute("eps"));
  Row row = batch_norm;
  row.name = "a row of a test";
  row.attributes = many;
  EXPECT_EQ(error_of([&] { Layer(row).check(); }),
            "invalid argument: a row of a test has too many attributes that ranks must agree on, must have at most 24");
}

// What --nonfinite relies on.
TEST(Catalogue, RowsWithAStateHaveTheRulesForInputThatIsNotFinite) {
  for (const Row& row : catalogue()) {
    if (row.state("running_mean") != nullptr) {
      EXPECT_NE(row.attribute("nonfinite"), nullptr) << row.name;
    }
  }
}

}  // namespace
}  // namespace attributes_test
