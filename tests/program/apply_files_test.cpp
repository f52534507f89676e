// `allnorm apply` and bad files: exit code 3, one line that names the file, nothing written.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "launch/files/npy_convert.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

using launch::NpyType;

// x (3,4,5) and whatever the case replaces; the first word of `words` is the layer.
struct Bad {
  const char* file;
  Shape shape;
  const char* words;
};

class BadTensor : public testing::TestWithParam<Bad> {};

TEST_P(BadTensor, IsExitThreeAndNothingIsWritten) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.make("a.npy", {3, 2, 7});
  place.make("w.npy", {4, 2, 3});
  place.make(GetParam().file, GetParam().shape);
  const Outcome outcome = place.run("apply " + std::string(GetParam().words) + " --input x.npy --out o");
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find(GetParam().file), std::string::npos) << outcome.err;
  EXPECT_FALSE(place.exists("o"));
}

INSTANTIATE_TEST_SUITE_P(
    Apply, BadTensor,
    testing::Values(
        Bad{"b.npy", {3, 5, 4}, "batch_norm --grad-output b.npy"},
        Bad{"b.npy", {3, 4, 5, 1}, "batch_norm --tensor residual=b.npy"},
        Bad{"b.npy", {5}, "batch_norm --weight b.npy"}, Bad{"b.npy", {4, 1}, "batch_norm --bias b.npy"},
        Bad{"b.npy", {}, "batch_norm --bias b.npy"}, Bad{"b.npy", {3}, "batch_norm --tensor running_mean=b.npy"},
        Bad{"b.npy", {4}, "batch_norm --tensor running_var=b.npy"},  // starts with -1
        Bad{"b.npy", {4}, "batch_renorm --tensor running_std=b.npy"},
        Bad{"b.npy", {2}, "batch_norm --tensor num_batches_tracked=b.npy"},
        Bad{"b.npy", {}, "batch_norm --tensor num_batches_tracked=b.npy"},  // not an integer
        Bad{"b.npy", {4, 4}, "layer_norm --weight b.npy"},
        Bad{"b.npy", {5}, "group_norm --set groups=2 --weight b.npy"}, Bad{"x.npy", {7}, "batch_norm"},
        Bad{"x.npy", {}, "batch_norm"}, Bad{"x.npy", {}, "layer_norm"}, Bad{"x.npy", {3, 0, 5}, "batch_norm"},
        Bad{"a.npy", {2, 2, 7}, "cross_iteration_batch_norm --tensor conv_input=a.npy --tensor conv_weight=w.npy"},
        Bad{"w.npy", {5, 2, 3}, "cross_iteration_batch_norm --tensor conv_input=a.npy --tensor conv_weight=w.npy"},
        Bad{"w.npy", {4, 2}, "cross_iteration_batch_norm --tensor conv_input=a.npy --tensor conv_weight=w.npy"}));

// The header of a .npy file, padded, and `data` after it.
std::string npy_bytes(std::string header, std::string_view data) {
  header.append((64 - (10 + header.size() + 1) % 64) % 64, ' ');
  header += '\n';
  std::string bytes = "\x93NUMPY\x01";
  bytes.push_back('\0');
  bytes.push_back(static_cast<char>(header.size() & 0xff));
  bytes.push_back(static_cast<char>(header.size() >> 8));
  return bytes + header + std::string(data);
}

TEST(HostileNpy, IsExitThreeOfOneLine) {
  const std::string eight(8, '\0');
  const std::string hostile[] = {
      "",
      "\x93NUMPY",
      "PK\x03\x04 something else",
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,4), }", eight),
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904,4611686018427387904), }",
                eight),
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807,0,9223372036854775807), }", ""),
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (0,576460752303423488), }", ""),
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (576460752303423488,0), }", ""),
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,-1), }", eight),
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (1,1), }", "short"),
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (1,1), }", eight + "long"),
      npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,1), }", eight),
      npy_bytes("{'descr': '<c16', 'fortran_order': False, 'shape': (1,1), }", eight + eight),
      npy_bytes("{'descr': '|b1', 'fortran_order': False, 'shape': (2,4), }", eight),
      npy_bytes("{'descr': '<i8', 'fortran_order': False, 'shape': (1,1), }", eight),  // no float type, no --dtype
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1), }", eight),
      npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (1,1)", eight),
      npy_bytes(std::string(3000, '('), eight),
  };
  Workplace place;
  for (const std::string& bytes : hostile) {
    place.write_bytes("x.npy", bytes);
    for (const char* layer : {"batch_norm", "layer_norm", "group_norm"}) {
      const Outcome outcome = place.run("apply " + std::string(layer) + " --input x.npy --out o");
      EXPECT_EQ(outcome.code, 3) << bytes << outcome.err;
      EXPECT_TRUE(outcome.one_line()) << outcome.err;
      EXPECT_FALSE(place.exists("o"));
    }
  }
}

TEST(MissingFiles, AreExitThree) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.make("x.0.npy", {3, 4, 5});
  for (const char* words :
       {"--input nowhere.npy", "--input .", "--input x.npy --weight nowhere.npy",
        "--input x.npy --load-state nowhere.st", "--input x.{rank}.npy --ranks 2", "--input x.{step}.npy --steps 2",
        "--input x.npy --out x.npy", "--input x.npy --save-state nowhere/s.st"}) {
    const std::string out = std::string(words).find("--out") == std::string::npos ? " --out o" : "";
    const Outcome outcome = place.run("apply batch_norm " + std::string(words) + out);
    EXPECT_EQ(outcome.code, 3) << words << ": " << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << words << ": " << outcome.err;
    EXPECT_TRUE(!place.exists("o") || place.list("o").empty()) << words;  // it may have been made
  }
}

TEST(Steps, MustAgreeInChannelsAndType) {
  Workplace place;
  place.make("x.0.npy", {3, 4, 5});
  place.make("x.1.npy", {3, 5, 5});
  place.make("z.0.npy", {3, 4, 5});
  place.make("z.1.npy", {3, 4, 5}, NpyType::f32);
  EXPECT_EQ(place.run("apply batch_norm --steps 2 --input x.{step}.npy --out o").code, 3);
  EXPECT_EQ(place.run("apply batch_norm --steps 2 --input z.{step}.npy --out o").code, 3);
  EXPECT_EQ(place.run("apply batch_norm --steps 2 --input z.{step}.npy --dtype f32 --out o").code, 0);
}

TEST(RunningVariance, MustBeFiniteAndNotNegative) {
  Workplace place;
  place.make("x.npy", {3, 2, 5});
  for (const double value :
       {-1e-9, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const double values[] = {1, value};
    place.write("v.npy", launch::from_doubles(values, {2}));
    const Outcome outcome = place.run("apply batch_norm --input x.npy --tensor running_var=v.npy --out o");
    EXPECT_EQ(outcome.code, 3) << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
  }
}

TEST(State, OfAnotherLayerOrSizeIsExitThree) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.make("y.npy", {3, 2, 5});
  ASSERT_EQ(place.run("apply batch_norm --input x.npy --out o --save-state s.st").code, 0);
  for (const char* words : {"batch_norm --input y.npy", "batch_renorm --input x.npy", "layer_norm --input x.npy"}) {
    const Outcome outcome = place.run("apply " + std::string(words) + " --load-state s.st --out p");
    EXPECT_EQ(outcome.code, 3) << words << ": " << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_NE(outcome.err.find("s.st"), std::string::npos) << outcome.err;
  }
  place.write_bytes("s.st", std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + "{");
  EXPECT_EQ(place.run("apply batch_norm --input x.npy --load-state s.st --out p").code, 3);
  EXPECT_FALSE(place.exists("p"));
}

}  // namespace
}  // namespace allnorm::test
