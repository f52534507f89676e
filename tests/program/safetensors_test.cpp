// Safetensors: round trips, the reference implementation's bytes, and refusal of everything that it refuses.
#include "launch/files/safetensors.hpp"

#include <algorithm>
#include <span>

#include "files_support.hpp"

namespace allnorm::launch {
namespace {

using files_support::bytes_of;
using files_support::damage;
using files_support::expect_refused;
using files_support::little;
using files_support::TemporaryFolder;

std::string file_bytes(const std::string& header, const std::string& data) {
  return little(header.size(), 8) + header + data;
}
TensorFile read_bytes(const TemporaryFolder& folder, const std::string& bytes) {
  return read_safetensors(folder.put("a.safetensors", bytes));
}

TensorFile example() {
  const double doubles[] = {1.5, -2.0};
  const float floats[] = {0, 1, 2, 3, 4, 5};
  const std::int64_t integers[] = {-7};
  const std::uint8_t bytes[] = {1, 2, 3};
  TensorFile content;
  content.tensors.push_back(stored<float>("weight", Shape{2, 3}, floats));
  content.tensors.push_back(stored<std::uint8_t>("mask", Shape{3}, bytes));
  content.tensors.push_back(stored<double>("running_mean", Shape{2}, doubles));
  content.tensors.push_back(stored<std::int64_t>("num_batches_tracked", Shape{}, integers));
  content.tensors.push_back(stored<float>("empty", Shape{0, 3}, {}));
  content.metadata = {{"layer", "batch_norm"}, {"text", "quotes \" and \n lines"}};
  return content;
}

TEST(Safetensors, ReadsBackWhatItWrote) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  const TensorFile content = example();
  write_safetensors(path, content);
  const TensorFile back = read_safetensors(path);
  EXPECT_EQ(back.metadata, content.metadata);
  EXPECT_EQ(back.file, path);
  ASSERT_EQ(back.tensors.size(), content.tensors.size());
  for (const StoredTensor& tensor : content.tensors) {
    const StoredTensor& other = back.require(tensor.name, tensor.dtype, tensor.shape);
    EXPECT_EQ(other.data, tensor.data) << tensor.name;
  }
  EXPECT_EQ(values_of<double>(back, "running_mean", Shape{2}), (std::vector<double>{1.5, -2.0}));
  EXPECT_TRUE(values_of<float>(back, "empty", Shape{0, 3}).empty());
  EXPECT_EQ(back.find("weigh"), nullptr);
}

TEST(Safetensors, WritesTheSameBytesForTheSameContent) {
  const TemporaryFolder folder;
  TensorFile content = example();
  write_safetensors(folder / "a", content);
  std::reverse(content.tensors.begin(), content.tensors.end());
  write_safetensors(folder / "b", content);
  EXPECT_EQ(bytes_of(folder / "a"), bytes_of(folder / "b"));
}

// Wider types first and then names, compact JSON, spaces up to a multiple of 8: worked out by hand from the format, the
// checksums with Python's zlib.
TEST(Safetensors, WritesTheFormatsOrderAndPadding) {
  const TemporaryFolder folder;
  TensorFile content;
  const float floats[] = {1, 2};
  const double doubles[] = {3};
  content.tensors.push_back(stored<float>("b", Shape{2}, floats));
  content.tensors.push_back(stored<float>("a", Shape{}, std::span(floats).first(1)));
  content.tensors.push_back(stored<double>("c", Shape{1, 1}, doubles));
  content.metadata = {{"k", "v"}};
  write_safetensors(folder / "a", content);
  std::string header =
      R"({"__metadata__":{"allnorm.crc32":"59c819f9","allnorm.crc32:a":"aca16a6a",)"
      R"("allnorm.crc32:b":"2e3fa576","allnorm.crc32:c":"db2714f1","k":"v"},"c":{"dtype":"F64","shape":[1,1],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[8,12]},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}})";
  header.append((8 - header.size() % 8) % 8, ' ');
  const auto raw = [](const auto& values) {
    return std::string(reinterpret_cast<const char*>(values), sizeof(values));
  };
  EXPECT_EQ(bytes_of(folder / "a"), file_bytes(header, raw(doubles) + raw(floats).substr(0, 4) + raw(floats)));
}

TEST(Safetensors, ReadsTensorsInAnyOrderOfTheHeader) {
  const TemporaryFolder folder;
  const TensorFile file = read_bytes(
      folder, file_bytes(R"({"b":{"shape":[2],"data_offsets":[3,5],"dtype":"U8"} , "e":{"dtype":"F64","shape":[0],)"
                         R"("data_offsets":[3,3]}, "a":{"dtype":"BOOL","shape":[3,1],"data_offsets":[0,3]}}   )",
                         "abcde"));
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].name, "a");
  EXPECT_EQ(values_of<std::uint8_t>(file, "b", Shape{2}), (std::vector<std::uint8_t>{'d', 'e'}));
}

TEST(Safetensors, ReadsAFileWithoutTensors) {
  const TemporaryFolder folder;
  EXPECT_TRUE(read_bytes(folder, file_bytes("{}", "")).tensors.empty());
  write_safetensors(folder / "empty", TensorFile{});
  EXPECT_TRUE(read_safetensors(folder / "empty").tensors.empty());
}

// The header of one tensor "a" with the given members.
std::string tensor(const std::string& members) { return "{\"a\":{" + members + "}}"; }

TEST(Safetensors, RefusesHeadersThatBreakTheFormat) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  const std::string good = R"("dtype":"U8","shape":[4],"data_offsets":[0,4])";
  const struct {
    std::string header, part;
  } rows[] = {
      {"", "does not start with '{'"},
      {" " + tensor(good), "does not start with '{'"},
      {"\xef\xbb\xbf" + tensor(good), "does not start with '{'"},
      {"[]", "does not start with '{'"},
      {"{", "is not JSON"},
      {tensor(good) + "x", "is not JSON"},
      {tensor(good) + std::string("\0x", 2), "has a zero"},
      {"{\"a\xff\":{}}", "is not JSON"},
      {"{\"a\":{" + good + "},}", "is not JSON"},
      {"{\"a\":1}", "has a number at 'a'"},
      {"{\"a\":null}", "has null at 'a'"},
      {"{\"a\":[]}", "has an array at 'a'"},
      {"{\"a\":\"x\"}", "has text at 'a'"},
      {"{\"a\":{}}", "lacks 'dtype'"},
      {tensor(R"("dtype":"U8","shape":[4])"), "lacks 'data_offsets'"},
      {tensor(R"("dtype":"U8","data_offsets":[0,4])"), "lacks 'shape'"},
      {tensor(good + R"(,"extra":1)"), "has the key 'extra'"},
      {tensor(good + R"(,"dtype":"U8")"), "'dtype' twice"},
      {"{\"a\":{" + good + "},\"a\":{" + good + "}}", "'a' twice"},
      {R"({"__metadata__":{"k":"v","k":"w"}})", "'k' twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", "'__metadata__' twice"},
      {R"({"__metadata__":{"k":1}})", "has a number at 'k'"},
      {R"({"__metadata__":{"k":{}}})", "has an object at 'k'"},
      {R"({"__metadata__":"text"})", "has text at '__metadata__'"},
      {tensor(R"("dtype":8,"shape":[4],"data_offsets":[0,4])"), "has a number at 'dtype'"},
      {tensor(R"("dtype":"Q8","shape":[4],"data_offsets":[0,4])"), "the dtype 'Q8'"},
      {tensor(R"("dtype":"u8","shape":[4],"data_offsets":[0,4])"), "the dtype 'u8'"},
      {tensor(R"("dtype":"U8","shape":4,"data_offsets":[0,4])"), "has a number at 'shape'"},
      {tensor(R"("dtype":"U8","shape":[-4],"data_offsets":[0,4])"), "a negative number at 'shape'"},
      {tensor(R"("dtype":"U8","shape":[4.0],"data_offsets":[0,4])"), "no 64-bit integer at 'shape'"},
      {tensor(R"("dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,4])"), "no 64-bit integer"},
      {tensor(R"("dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,4])"), "a number over 2^63-1"},
      {tensor(R"("dtype":"U8","shape":[[4]],"data_offsets":[0,4])"), "has an array at 'shape'"},
      {tensor(R"("dtype":"U8","shape":["4"],"data_offsets":[0,4])"), "has text at 'shape'"},
      {tensor(R"("dtype":"U8","shape":[true],"data_offsets":[0,4])"), "has a boolean at 'shape'"},
      {tensor(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4])"), "more than 8 axes"},
      {tensor(R"("dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,4])"), "more than 2^63-1 bytes"},
      {tensor(R"("dtype":"F64","shape":[0,4294967296,4294967296],"data_offsets":[0,0])"), "more than 2^63-1 bytes"},
      {tensor(R"("dtype":"U8","shape":[4],"data_offsets":[4])"), "has 1 data_offsets"},
      {tensor(R"("dtype":"U8","shape":[4],"data_offsets":[])"), "has 0 data_offsets"},
      {tensor(R"("dtype":"U8","shape":[4],"data_offsets":[0,4,8])"), "more than 2 data_offsets"},
      {tensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,0])"), "must be 4 bytes apart"},
      {tensor(R"("dtype":"U8","shape":[3],"data_offsets":[0,4])"), "must be 3 bytes apart"},
      {tensor(R"("dtype":"U16","shape":[4],"data_offsets":[0,4])"), "must be 8 bytes apart"},
      {tensor(R"("dtype":"U8","shape":[3],"data_offsets":[1,4])"), "must begin at 0"},
      {tensor(R"("dtype":"U8","shape":[3],"data_offsets":[0,3])"), "has 4 bytes of data, must have 3"},
      {tensor(R"("dtype":"U8","shape":[5],"data_offsets":[0,5])"), "has 4 bytes of data, must have 5"},
      {tensor(R"("dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807])"), "has 4 bytes"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       "'b' begins at byte 2 of the data, must begin at 3"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       "'b' begins at byte 2 of the data, must begin at 1"},
      {R"({"new\nline\u001b":1})", "'new\\x0aline\\x1b'"},
  };
  for (const auto& row : rows)
    expect_refused([&] { read_bytes(folder, file_bytes(row.header, "abcd")); }, path, row.part);
}

TEST(Safetensors, SurvivesDeepNesting) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  std::string objects;
  for (int i = 0; i < 200000; ++i) objects += "{\"dtype\":";
  expect_refused([&] { read_bytes(folder, file_bytes(objects, "")); }, path, "has an object at 'dtype'");
  const std::string arrays = "{\"a\":{\"shape\":" + std::string(1000000, '[');
  expect_refused([&] { read_bytes(folder, file_bytes(arrays, "")); }, path, "has an array at 'shape'");
}

TEST(Safetensors, RefusesFilesThatAreLongerOrShorterThanTheySay) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  write_safetensors(folder / "good", example());
  const std::string good = bytes_of(folder / "good");
  for (std::size_t length = 0; length < good.size(); ++length)
    expect_refused([&] { read_bytes(folder, good.substr(0, length)); }, path, "must");
  expect_refused([&] { read_bytes(folder, good + "x"); }, path, "bytes of data, must have");
  expect_refused([&] { read_bytes(folder, little(~std::uint64_t{0}, 8) + "{}"); }, path, "18446744073709551615 bytes");
  expect_refused([&] { read_bytes(folder, little(100'000'001, 8) + "{}"); }, path, "100000001 bytes");
  expect_refused([&] { read_safetensors(folder.path()); }, folder.path(), "is a directory");
}

// Whatever bit is wrong, a file that was written with checksums never gives other names, shapes, values or text.
TEST(Safetensors, NoticesEveryFlippedBit) {
  const TemporaryFolder folder;
  const TensorFile content = example();
  write_safetensors(folder / "good", content);
  const std::string good = bytes_of(folder / "good"), path = folder / "a.safetensors";
  const std::size_t header = good.rfind('}') + 1;
  int accepted = 0;
  for (std::size_t bit = 0; bit < 8 * good.size(); bit += 3) {
    std::string bytes = good;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    try {
      const TensorFile back = read_bytes(folder, bytes);
      ++accepted;
      EXPECT_EQ(back.metadata, content.metadata) << bit;
      ASSERT_EQ(back.tensors.size(), content.tensors.size()) << bit;
      for (const StoredTensor& tensor : content.tensors)
        EXPECT_EQ(back.require(tensor.name, tensor.dtype, tensor.shape).data, tensor.data) << bit;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_input) << error.message();
      EXPECT_EQ(error.message().rfind(path, 0), 0u) << error.message();
      if (bit / 8 >= header + 8) {
        EXPECT_NE(error.message().find("tensor '"), std::string::npos) << error.message();
      }
    }
  }
  EXPECT_EQ(accepted, 0);
  // the text of a checksum in the metadata, and a value
  const std::size_t at = good.find("running_mean") + std::string("running_mean\":\"").size();
  std::string bytes = good;
  bytes[at] = bytes[at] == '0' ? '1' : '0';
  expect_refused([&] { read_bytes(folder, bytes); }, path, "metadata has the checksum");
  bytes = good;
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  expect_refused([&] { read_bytes(folder, bytes); }, path, "tensor 'mask' has the checksum");
}

TEST(Safetensors, SurvivesRandomDamage) {
  const TemporaryFolder folder;
  write_safetensors(folder / "good", example());
  const auto read = [&](const std::string& bytes) { read_bytes(folder, bytes); };
  EXPECT_GT(damage(bytes_of(folder / "good"), 6000, 3, read), 0);
}

TEST(Safetensors, RefusesToWriteWhatItWouldNotRead) {
  const TemporaryFolder folder;
  const std::string path = folder / "out";
  const float floats[] = {1, 2};
  const auto write = [&](std::initializer_list<StoredTensor> tensors, const std::string& metadata = "") {
    write_safetensors(path, TensorFile{tensors, {{"k", metadata}}, ""});
  };
  const StoredTensor a = stored<float>("a", Shape{2}, floats);
  StoredTensor unknown = a;
  unknown.dtype = "F31";
  expect_refused([&] { write({a, a}); }, path, "'a' has a name that is taken");
  expect_refused([&] { write({stored<float>("__metadata__", Shape{2}, floats)}); }, path, "name that is taken");
  expect_refused([&] { write({stored<float>("b", Shape{3}, floats)}); }, path, "holds 8 bytes");
  expect_refused([&] { write({unknown}); }, path, "the dtype 'F31'");
  expect_refused([&] { write({stored<float>("\xff", Shape{2}, floats)}); }, path, "not UTF-8");
  expect_refused([&] { write({a}, "\xff"); }, path, "not UTF-8");
  EXPECT_EQ(folder.entries(), 0u);
}

TEST(Safetensors, NamesWhatATensorShouldBe) {
  TensorFile file = example();
  file.file = "state";
  expect_refused([&] { values_of<float>(file, "bias", Shape{2}); }, "state", "lacks the tensor 'bias'");
  expect_refused([&] { values_of<double>(file, "weight", Shape{2, 3}); }, "state", "has the dtype F32, must have F64");
  expect_refused([&] { values_of<float>(file, "weight", Shape{3, 2}); }, "state", "the shape (2,3), must have (3,2)");
}

}  // namespace
}  // namespace allnorm::launch
