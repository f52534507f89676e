// Labelled images for training: digits, IDX and CIFAR-10 files.
#include "launch/files/data_sets.hpp"

#include <array>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

#include "launch/files/input_file.hpp"

namespace allnorm::launch {
namespace {

constexpr int all_classes = 10;                                 // of each data set here
constexpr std::uint64_t largest_file = std::uint64_t{1} << 28;  // bytes, decompressed; the largest of MNIST has 2^25.5

bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

int checked_label(int label, std::int64_t image, const std::string& path) {
  if (label < 0 || label >= all_classes)
    bad_file(path, "image " + std::to_string(image) + " has the label " + std::to_string(label) + ", must have 0 to " +
                       std::to_string(all_classes - 1));
  return label;
}

void append_pixels(ImageSet& set, std::span<const std::byte> bytes) {
  for (const std::byte b : bytes) set.pixels.push_back(static_cast<float>(std::to_integer<int>(b)) / 255.0f);
}

// ---- digits ---------------------------------------------------------------------------------------------------------

// One line of comma-separated numbers: 64 pixels and a label.
class DigitsLine {
 public:
  DigitsLine(std::string_view text, std::int64_t line, const std::string& path)
      : text_(text), line_(line), path_(path) {}

  int next(int largest, bool last) {
    int value = 0;
    const std::size_t begin = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9' && at_ - begin < 2; ++at_)
      value = 10 * value + (text_[at_] - '0');
    if (at_ == begin || value > largest) bad(begin, "a number from 0 to " + std::to_string(largest));
    if (last && at_ != text_.size()) bad(at_, "its end");
    if (!last && (at_ == text_.size() || text_[at_++] != ',')) bad(begin, "a comma after 1 or 2 digits");
    return value;
  }

 private:
  [[noreturn]] void bad(std::size_t at, const std::string& wanted) const {
    bad_file(path_, "line " + std::to_string(line_) + " has " +
                        (at < text_.size() ? printable(text_.substr(at, 8)) : std::string("its end")) +
                        " at character " + std::to_string(at + 1) + ", must have " + wanted);
  }

  std::string_view text_;
  std::int64_t line_;
  const std::string& path_;
  std::size_t at_ = 0;
};

DataSet load_digits(const std::string& folder) {
  constexpr int side = 8, brightest = 16;
  constexpr std::uint64_t largest_text = std::uint64_t{1} << 24;  // bytes; the file has 2^18
  const std::string path = folder + "/digits.csv.gz";
  const std::vector<std::byte> bytes = read_gzip_file(path, largest_text);
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());

  ImageSet set{0, 1, side, side, all_classes, {}, {}, "digits"};
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    DigitsLine line(text.substr(0, end), set.count + 1, path);
    for (int i = 0; i < side * side; ++i)
      set.pixels.push_back(static_cast<float>(line.next(brightest, false)) / static_cast<float>(brightest));
    set.labels.push_back(line.next(all_classes - 1, true));
    ++set.count;
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  if (set.count == 0) bad_file(path, "has no images, must have at least 1");
  return {std::move(set), std::nullopt};
}

// ---- IDX ------------------------------------------------------------------------------------------------------------

// The file "train-images-idx3-ubyte" of a folder (part "train-images", kind "idx3-ubyte") under any name that it
// usually has; that name where it has none, for the message.
std::string idx_path(const std::string& folder, const std::string& part, const std::string& kind) {
  for (const char* mark : {"-", "."})
    for (const char* end : {"", ".gz"})
      if (std::string path = folder + "/" + part + mark + kind + end; exists(path)) return path;
  return folder + "/" + part + "-" + kind;
}
constexpr const char *image_kind = "idx3-ubyte", *label_kind = "idx1-ubyte";

struct Idx {
  std::string path;
  std::vector<std::byte> bytes;
  std::vector<std::int64_t> extent;

  std::span<const std::byte> values() const { return std::span(bytes).subspan(4 + 4 * extent.size()); }
};

// A file of unsigned bytes with `axes` axes: 0, 0, 8 (the type), axes, then each extent as a big-endian 32-bit number.
Idx read_idx(std::string path, std::size_t axes) {
  Idx idx{std::move(path), {}, {}};
  idx.bytes = read_gzip_file(idx.path, largest_file);
  const auto number = [&](std::size_t i) {
    std::uint32_t value = 0;
    for (std::size_t b = 4 * i; b < 4 * i + 4; ++b) value = value << 8 | std::to_integer<std::uint32_t>(idx.bytes[b]);
    return value;
  };
  const std::size_t header = 4 + 4 * axes;
  if (idx.bytes.size() < header)
    bad_file(idx.path,
             "has " + std::to_string(idx.bytes.size()) + " bytes, must have at least " + std::to_string(header));
  const std::uint32_t magic = 0x800 + static_cast<std::uint32_t>(axes);
  if (number(0) != magic)
    bad_file(idx.path,
             "starts with the number " + std::to_string(number(0)) + ", must start with " + std::to_string(magic));
  for (std::size_t axis = 0; axis < axes; ++axis) {
    idx.extent.push_back(number(1 + axis));
    if (idx.extent.back() == 0)
      bad_file(idx.path, "has 0 elements along axis " + std::to_string(axis) + ", must have at least 1");
  }
  const auto values = storage_bytes(idx.extent, 1);
  if (!values) bad_file(idx.path, "has a shape of more than 2^63-1 bytes, must have at most that");
  if (*values != idx.bytes.size() - header)
    bad_file(idx.path, "has " + std::to_string(idx.bytes.size() - header) + " bytes after its header, must have " +
                           std::to_string(*values));
  return idx;
}

ImageSet load_idx_part(const std::string& folder, const std::string& part) {
  const Idx images = read_idx(idx_path(folder, part + "-images", image_kind), 3);
  const Idx labels = read_idx(idx_path(folder, part + "-labels", label_kind), 1);
  if (labels.extent[0] != images.extent[0])
    bad_file(labels.path, "has " + std::to_string(labels.extent[0]) + " labels, must have " +
                              std::to_string(images.extent[0]) + ", one per image");
  ImageSet set{images.extent[0], 1, images.extent[1], images.extent[2], all_classes, {}, {}, "idx"};
  set.pixels.reserve(images.values().size());
  append_pixels(set, images.values());
  for (const std::byte b : labels.values())
    set.labels.push_back(
        checked_label(std::to_integer<int>(b), static_cast<std::int64_t>(set.labels.size()), labels.path));
  return set;
}

DataSet load_idx(const std::string& folder) {
  DataSet data{load_idx_part(folder, "train"), std::nullopt};
  const std::string test_images = idx_path(folder, "t10k-images", image_kind);
  if (!exists(test_images) && !exists(idx_path(folder, "t10k-labels", label_kind))) return data;
  data.test = load_idx_part(folder, "t10k");
  if (data.test->height != data.train.height || data.test->width != data.train.width)
    bad_file(test_images, "has images of " + std::to_string(data.test->height) + "x" +
                              std::to_string(data.test->width) + ", must have " + std::to_string(data.train.height) +
                              "x" + std::to_string(data.train.width) + " as the training images");
  return data;
}

// ---- CIFAR-10 -------------------------------------------------------------------------------------------------------

// Each record is a label and then 32x32 red, green and blue bytes.
void append_cifar(ImageSet& set, const std::string& path) {
  constexpr std::size_t record = 1 + 3 * 32 * 32;
  const std::vector<std::byte> bytes = read_gzip_file(path, largest_file);
  if (bytes.empty() || bytes.size() % record != 0)
    bad_file(path, "has " + std::to_string(bytes.size()) + " bytes, must have a multiple of " + std::to_string(record) +
                       " that is not 0");
  const std::size_t images = bytes.size() / record;
  set.pixels.reserve(set.pixels.size() + images * (record - 1));
  for (std::size_t i = 0; i < images; ++i) {
    const auto image = std::span(bytes).subspan(i * record, record);
    set.labels.push_back(checked_label(std::to_integer<int>(image[0]), static_cast<std::int64_t>(i), path));
    append_pixels(set, image.subspan(1));
    ++set.count;
  }
}

DataSet load_cifar(const std::string& folder) {
  ImageSet train{0, 3, 32, 32, all_classes, {}, {}, "cifar-10"};
  ImageSet test = train;
  for (int batch = 1; batch <= 5; ++batch)
    append_cifar(train, folder + "/data_batch_" + std::to_string(batch) + ".bin");
  append_cifar(test, folder + "/test_batch.bin");
  return {std::move(train), std::move(test)};
}

struct Format {
  const char* sign;  // the file that tells this format from the others
  bool (*found)(const std::string& folder);
  DataSet (*load)(const std::string& folder);
};
constexpr std::array<Format, 3> formats{
    {{"digits.csv.gz", [](const std::string& folder) { return exists(folder + "/digits.csv.gz"); }, load_digits},
     {"train-images-idx3-ubyte",
      [](const std::string& folder) { return exists(idx_path(folder, "train-images", image_kind)); }, load_idx},
     {"data_batch_1.bin", [](const std::string& folder) { return exists(folder + "/data_batch_1.bin"); }, load_cifar}}};

}  // namespace

DataSet load_data_set(const std::string& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) bad_file(folder, "is not a folder, must be one");
  const Format* found = nullptr;
  for (const Format& format : formats) {
    if (!format.found(folder)) continue;
    if (found != nullptr)
      bad_file(folder, std::string("holds both ") + found->sign + " and " + format.sign + ", must hold one data set");
    found = &format;
  }
  if (found == nullptr)
    bad_file(folder,
             "holds no known data set, must hold digits.csv.gz, train-images-idx3-ubyte[.gz] (MNIST, Fashion-MNIST) or "
             "data_batch_1.bin (CIFAR-10)");
  return found->load(folder);
}

}  // namespace allnorm::launch
