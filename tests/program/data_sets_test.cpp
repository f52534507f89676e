// Image data sets: the real digits, small files of each format written by hand, and every way to get one wrong.
#include "launch/files/data_sets.hpp"

#include <zlib.h>

#include <algorithm>
#include <string>

#include "files_support.hpp"
#include "places.hpp"

namespace allnorm::launch {
namespace {

using files_support::big;
using files_support::bytes_of;
using files_support::damage;
using files_support::expect_refused;
using files_support::TemporaryFolder;

std::string gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string result(deflateBound(&stream, text.size()), '\0');
  std::string input = text;
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(result.data());
  stream.avail_out = static_cast<uInt>(result.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  result.resize(stream.total_out);
  deflateEnd(&stream);
  return result;
}

std::string digits_line(int pixel, int label) {
  std::string line;
  for (int i = 0; i < 64; ++i) line += std::to_string(pixel) + ",";
  return line + std::to_string(label) + "\n";
}

std::string idx_images(const std::string& pixels, std::uint64_t count, std::uint64_t height, std::uint64_t width) {
  return big(0x803, 4) + big(count, 4) + big(height, 4) + big(width, 4) + pixels;
}
std::string idx_labels(const std::string& labels, std::uint64_t count) {
  return big(0x801, 4) + big(count, 4) + labels;
}

std::string cifar_record(int label, char first, char rest) {
  return std::string(1, static_cast<char>(label)) + first + std::string(3071, rest);
}

// ---- digits ---------------------------------------------------------------------------------------------------------

TEST(DataSets, LoadsTheRealDigits) {
  const DataSet data = load_data_set(test::of_project("data/digits"));
  const ImageSet& set = data.train;
  EXPECT_FALSE(data.test.has_value());
  EXPECT_EQ(set.name, "digits");
  EXPECT_EQ(set.count, 1797);
  EXPECT_EQ(set.channels, 1);
  EXPECT_EQ(set.height, 8);
  EXPECT_EQ(set.width, 8);
  EXPECT_EQ(set.classes, 10);
  ASSERT_EQ(set.pixels.size(), 1797u * 64u);
  ASSERT_EQ(set.labels.size(), 1797u);
  EXPECT_EQ(*std::min_element(set.pixels.begin(), set.pixels.end()), 0.0f);
  EXPECT_EQ(*std::max_element(set.pixels.begin(), set.pixels.end()), 1.0f);
  EXPECT_EQ(set.pixels[2], 5.0f / 16.0f);  // the file starts 0,0,5,13,9,1
  EXPECT_EQ(set.pixels[3], 13.0f / 16.0f);
  EXPECT_EQ(set.labels.front(), 0);
  EXPECT_EQ(set.labels.back(), 8);
  for (int label = 0; label < 10; ++label) EXPECT_GT(std::count(set.labels.begin(), set.labels.end(), label), 170);
}

TEST(DataSets, ReadsDigitsOfSeveralGzipMembers) {
  const TemporaryFolder folder;
  folder.put("digits.csv.gz", gzip(digits_line(16, 3)) + gzip(digits_line(4, 9)));
  const ImageSet set = load_data_set(folder.path()).train;
  EXPECT_EQ(set.count, 2);
  EXPECT_EQ(set.labels, (std::vector<int>{3, 9}));
  EXPECT_EQ(set.pixels[64], 0.25f);
}

TEST(DataSets, RefusesWrongDigits) {
  const TemporaryFolder folder;
  const std::string good = digits_line(1, 2), path = folder / "digits.csv.gz";
  const struct {
    std::string text, part;
  } rows[] = {{"", "has no images"},
              {"\n", "line 1 has its end at character 1, must have a number from 0 to 16"},
              {good + "\n", "line 2 has its end"},
              {digits_line(17, 2), "must have a number from 0 to 16"},
              {digits_line(1, 10), "must have a number from 0 to 9"},
              {good + good.substr(2), "line 2 has '2' at character 127, must have a comma"},
              {good.substr(0, good.size() - 1) + ",1\n", "line 1 has ',1' at character 130, must have its end"},
              {"x" + good, "line 1 has 'x1,1,1,1'"},
              {"-1" + good.substr(1), "line 1 has '-1,1,1,1'"},
              {"001" + good.substr(1), "a comma after 1 or 2 digits"},
              {" " + good, "line 1 has ' 1,1,1,1'"},
              {good.substr(0, good.size() - 1) + "\r\n", "must have its end"}};
  for (const auto& row : rows) {
    folder.put("digits.csv.gz", gzip(row.text));
    expect_refused([&] { load_data_set(folder.path()); }, path, row.part);
  }
}

TEST(DataSets, RefusesDamagedGzip) {
  const TemporaryFolder folder;
  const std::string path = folder / "digits.csv.gz", good = gzip(digits_line(1, 2) + digits_line(3, 4));
  const auto load = [&](const std::string& bytes) {
    folder.put("digits.csv.gz", bytes);
    load_data_set(folder.path());
  };
  for (std::size_t length = 0; length < good.size(); ++length)  // two bytes tell that it is gzip
    expect_refused([&] { load(good.substr(0, length)); }, path, length < 2 ? "must have" : "truncated gzip");
  expect_refused([&] { load(good + "more"); }, path, "not a valid gzip file");
  std::string wrong_sum = good;
  wrong_sum[good.size() - 8] = static_cast<char>(wrong_sum[good.size() - 8] ^ 1);
  expect_refused([&] { load(wrong_sum); }, path, "incorrect data check");
  expect_refused([&] { load(gzip(std::string(std::size_t{1} << 25, '1'))); }, path, "decompresses to more than");
}

TEST(DataSets, KnowsGzipByItsContent) {
  const TemporaryFolder folder;
  folder.put("digits.csv.gz", digits_line(1, 2));
  EXPECT_EQ(load_data_set(folder.path()).train.labels, (std::vector<int>{2}));
}

// ---- IDX ------------------------------------------------------------------------------------------------------------

const std::string images_name = "train-images-idx3-ubyte", labels_name = "train-labels-idx1-ubyte";

TEST(DataSets, LoadsIdxUnderItsUsualNames) {
  for (const char* names :
       {"train-images-idx3-ubyte train-labels-idx1-ubyte", "train-images.idx3-ubyte train-labels.idx1-ubyte",
        "train-images.idx3-ubyte.gz train-labels-idx1-ubyte.gz"})
    for (const bool compressed : {false, true}) {
      const TemporaryFolder folder;
      const std::string both = names, images = both.substr(0, both.find(' ')), labels = both.substr(both.find(' ') + 1);
      const std::string bytes = idx_images(std::string(6, '\x01'), 1, 2, 3);
      folder.put(images, compressed ? gzip(bytes) : bytes);
      folder.put(labels, idx_labels("\x07", 1));
      EXPECT_EQ(load_data_set(folder.path()).train.labels, (std::vector<int>{7})) << names;
    }
}

TEST(DataSets, LoadsIdxPlainAndCompressed) {
  const std::string pixels = std::string("\x00\xff\x33\x66\x99\xcc", 6) + std::string(6, '\x01');
  for (const bool compressed : {false, true}) {
    const TemporaryFolder folder;
    const auto put = [&](const std::string& name, const std::string& bytes) {
      folder.put(compressed ? name + ".gz" : name, compressed ? gzip(bytes) : bytes);
    };
    put(images_name, idx_images(pixels, 2, 2, 3));
    put(labels_name, idx_labels("\x09\x01", 2));
    EXPECT_FALSE(load_data_set(folder.path()).test.has_value());
    put("t10k-images-idx3-ubyte", idx_images(pixels.substr(0, 6), 1, 2, 3));
    put("t10k-labels-idx1-ubyte", idx_labels("\x05", 1));
    const DataSet data = load_data_set(folder.path());
    EXPECT_EQ(data.train.name, "idx");
    EXPECT_EQ(data.train.count, 2);
    EXPECT_EQ(data.train.height, 2);
    EXPECT_EQ(data.train.width, 3);
    EXPECT_EQ(data.train.labels, (std::vector<int>{9, 1}));
    ASSERT_EQ(data.train.pixels.size(), 12u);
    EXPECT_EQ(data.train.pixels[0], 0.0f);
    EXPECT_EQ(data.train.pixels[1], 1.0f);
    EXPECT_EQ(data.train.pixels[2], 51.0f / 255.0f);
    ASSERT_TRUE(data.test.has_value());
    EXPECT_EQ(data.test->count, 1);
    EXPECT_EQ(data.test->labels, std::vector<int>{5});
  }
}

TEST(DataSets, RefusesWrongIdx) {
  const std::string pixels(12, '\x01');
  const std::string images = idx_images(pixels, 2, 2, 3), labels = idx_labels("\x09\x01", 2);
  const std::string test_images = "t10k-images-idx3-ubyte", test_labels = "t10k-labels-idx1-ubyte";
  const struct {
    std::string images, labels, test_images, named, part;
  } rows[] = {
      {"", labels, "", images_name, "has 0 bytes, must have at least 16"},
      {images.substr(0, 15), labels, "", images_name, "has 15 bytes"},
      {images.substr(0, 20), labels, "", images_name, "has 4 bytes after its header, must have 12"},
      {images + "x", labels, "", images_name, "has 13 bytes after its header, must have 12"},
      {labels + pixels, labels, "", images_name, "starts with the number 2049, must start with 2051"},
      {idx_images("", 0, 2, 3), labels, "", images_name, "has 0 elements along axis 0"},
      {idx_images("", 2, 0, 3), labels, "", images_name, "has 0 elements along axis 1"},
      {idx_images(pixels, 0xffffffff, 0xffffffff, 0xffffffff), labels, "", images_name, "more than 2^63-1 bytes"},
      {idx_images(pixels, 0xffffffff, 0xffff, 0xff), labels, "", images_name, "must have"},
      {images, "", "", labels_name, "has 0 bytes, must have at least 8"},
      {images, idx_labels("\x09", 2), "", labels_name, "has 1 bytes after its header"},
      {images, idx_labels("\x01\x02\x03", 3), "", labels_name, "has 3 labels, must have 2"},
      {images, idx_labels("\x09\x0a", 2), "", labels_name, "image 1 has the label 10, must have 0 to 9"},
      {images, images, "", labels_name, "starts with the number 2051, must start with 2049"},
      {images, labels, idx_images(pixels, 2, 3, 2), test_images, "has images of 3x2, must have 2x3"},
      {images, labels, idx_images(pixels, 1, 3, 4), test_labels, "has 2 labels, must have 1"},
  };
  for (const auto& row : rows) {
    const TemporaryFolder folder;
    folder.put(images_name, row.images);
    folder.put(labels_name, row.labels);
    if (!row.test_images.empty()) {
      folder.put(test_images, row.test_images);
      folder.put(test_labels, labels);
    }
    expect_refused([&] { load_data_set(folder.path()); }, folder / row.named, row.part);
  }
  const TemporaryFolder folder;
  folder.put(images_name, images);
  expect_refused([&] { load_data_set(folder.path()); }, folder / labels_name, "No such file");
  folder.put(labels_name, labels);
  folder.put(test_labels, labels);
  expect_refused([&] { load_data_set(folder.path()); }, folder / test_images, "No such file");
}

// ---- CIFAR-10 -------------------------------------------------------------------------------------------------------

void put_cifar(const TemporaryFolder& folder) {
  for (int batch = 1; batch <= 5; ++batch)
    folder.put("data_batch_" + std::to_string(batch) + ".bin",
               cifar_record(batch, '\x33', '\xff') + cifar_record(0, '\0', '\0'));
  folder.put("test_batch.bin", cifar_record(9, '\xff', '\0'));
}

TEST(DataSets, LoadsCifar10) {
  const TemporaryFolder folder;
  put_cifar(folder);
  const DataSet data = load_data_set(folder.path());
  EXPECT_EQ(data.train.name, "cifar-10");
  EXPECT_EQ(data.train.count, 10);
  EXPECT_EQ(data.train.channels, 3);
  EXPECT_EQ(data.train.height, 32);
  EXPECT_EQ(data.train.labels, (std::vector<int>{1, 0, 2, 0, 3, 0, 4, 0, 5, 0}));
  ASSERT_EQ(data.train.pixels.size(), 10u * 3072u);
  EXPECT_EQ(data.train.pixels[0], 51.0f / 255.0f);
  EXPECT_EQ(data.train.pixels[3071], 1.0f);
  EXPECT_EQ(data.train.pixels[3072], 0.0f);
  ASSERT_TRUE(data.test.has_value());
  EXPECT_EQ(data.test->labels, std::vector<int>{9});
  EXPECT_EQ(data.test->pixels[0], 1.0f);
}

TEST(DataSets, RefusesWrongCifar10) {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& name, const std::string& bytes, const std::string& part) {
    put_cifar(folder);
    folder.put(name, bytes);
    expect_refused([&] { load_data_set(folder.path()); }, folder / name, part);
  };
  refused("data_batch_3.bin", "", "has 0 bytes, must have a multiple of 3073");
  refused("data_batch_1.bin", cifar_record(1, '\0', '\0') + "x", "has 3074 bytes");
  refused("test_batch.bin", cifar_record(1, '\0', '\0') + cifar_record(10, '\0', '\0'), "image 1 has the label 10");
  put_cifar(folder);
  std::filesystem::remove(folder / "data_batch_5.bin");
  expect_refused([&] { load_data_set(folder.path()); }, folder / "data_batch_5.bin", "No such file");
}

// ---- folders --------------------------------------------------------------------------------------------------------

TEST(DataSets, RefusesFoldersThatHoldNoneOrTwo) {
  const TemporaryFolder folder;
  expect_refused([&] { load_data_set(folder.path()); }, folder.path(), "digits.csv.gz, train-images-idx3-ubyte[.gz]");
  expect_refused([&] { load_data_set(folder / "missing"); }, folder / "missing", "is not a folder");
  const std::string file = folder.put("file", "");
  expect_refused([&] { load_data_set(file); }, file, "is not a folder");
  put_cifar(folder);
  folder.put("digits.csv.gz", gzip(digits_line(1, 2)));
  expect_refused([&] { load_data_set(folder.path()); }, folder.path(), "holds both digits.csv.gz and data_batch_1.bin");
}

TEST(DataSets, SurviveRandomDamage) {
  const TemporaryFolder digits, idx, cifar;
  EXPECT_GT(damage(gzip(digits_line(1, 2) + digits_line(16, 9)), 2000, 4,
                   [&](const std::string& bytes) {
                     digits.put("digits.csv.gz", bytes);
                     load_data_set(digits.path());
                   }),
            0);
  EXPECT_GT(damage(digits_line(1, 2) + digits_line(16, 9), 2000, 5,
                   [&](const std::string& bytes) {
                     digits.put("digits.csv.gz", gzip(bytes));
                     load_data_set(digits.path());
                   }),
            0);
  idx.put(labels_name, idx_labels("\x09\x01", 2));
  EXPECT_GT(damage(idx_images(std::string(12, '\x07'), 2, 2, 3), 2000, 6,
                   [&](const std::string& bytes) {
                     idx.put(images_name, bytes);
                     load_data_set(idx.path());
                   }),
            0);
  put_cifar(cifar);
  EXPECT_GT(damage(bytes_of(cifar / "data_batch_2.bin"), 300, 7,
                   [&](const std::string& bytes) {
                     cifar.put("data_batch_2.bin", bytes);
                     load_data_set(cifar.path());
                   }),
            0);
}

}  // namespace
}  // namespace allnorm::launch
