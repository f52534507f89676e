#include "tests/fuzz/targets.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "allnorm/error.hpp"
#include "launch/files/data_sets.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/npy.hpp"
#include "launch/files/npy_convert.hpp"
#include "launch/files/safetensors.hpp"
#include "launch/train/checkpoint_events.hpp"
#include "launch/watch/record.hpp"

namespace allnorm::fuzz {

namespace {

[[noreturn]] void fault(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::abort();
}

void write_file(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

// A folder of this process.
const std::string& folder() {
  struct Folder {
    std::string path = (std::filesystem::temp_directory_path() / "allnorm-fuzz-XXXXXX").string();
    Folder() {
      if (::mkdtemp(path.data()) == nullptr) fault("no temporary folder");
    }
    ~Folder() { std::filesystem::remove_all(path); }
  };
  static const Folder own;
  return own.path;
}

// Reads; what is refused is refused as the program promises: one line, which begins with the name of something in the
// folder.
template <class Read>
void expect_promise(const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    const std::string line = error.message();
    if (error.code() != Code::invalid_input) fault("another error than invalid_input: " + line);
    if (line.find('\n') != line.npos) fault("more than one line: " + line);
    if (!line.starts_with(folder())) fault("a line that does not name the file: " + line);
  }
}

void read_one(const char* name, std::span<const std::byte> bytes, void (*read)(const std::string& path)) {
  const std::string path = folder() + "/" + name;
  write_file(path, bytes);
  expect_promise([&] { read(path); });
  std::filesystem::remove(path);
}

void npy(std::span<const std::byte> bytes) {
  read_one("a.npy", bytes, [](const std::string& path) {
    const launch::NpyArray array = launch::read_npy(path);
    if (static_cast<std::size_t>(array.shape.elements()) * launch::size_of(array.type) != array.data.size())
      fault("an array of another size than its shape");
    if (array.data.size() <= 1 << 16) (void)launch::to_doubles(array);
  });
}

void safetensors(std::span<const std::byte> bytes) {
  read_one("a.safetensors", bytes, [](const std::string& path) { (void)launch::read_safetensors(path); });
}

void record(std::span<const std::byte> bytes) {
  read_one("record.r0.json", bytes,
           [](const std::string& path) { (void)launch::diagnosis_of({launch::read_record(path)}); });
}

void gzip(std::span<const std::byte> bytes) {
  read_one("a.gz", bytes, [](const std::string& path) { (void)launch::read_gzip_file(path, 1 << 20); });
}

// The first byte says which file of which data set the others are.
void data_set(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto rest = bytes.subspan(1);
  const std::string images = folder() + "/train-images-idx3-ubyte", labels = folder() + "/train-labels-idx1-ubyte";
  constexpr unsigned char one_image[] = {0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 7};
  constexpr unsigned char one_label[] = {0, 0, 8, 1, 0, 0, 0, 1, 3};
  switch (std::to_integer<int>(bytes[0]) % 4) {
    case 0:
      write_file(folder() + "/digits.csv.gz", rest);
      break;
    case 1:
      write_file(images, rest);
      write_file(labels, std::as_bytes(std::span(one_label)));
      break;
    case 2:
      write_file(images, std::as_bytes(std::span(one_image)));
      write_file(labels, rest);
      break;
    default:
      for (int batch = 1; batch <= 5; ++batch)
        write_file(folder() + "/data_batch_" + std::to_string(batch) + ".bin", rest);
      write_file(folder() + "/test_batch.bin", rest);
  }
  expect_promise([] {
    const launch::DataSet data = launch::load_data_set(folder());
    const auto expected = data.train.count * data.train.channels * data.train.height * data.train.width;
    if (static_cast<std::size_t>(expected) != data.train.pixels.size()) fault("images of another size than is said");
  });
  for (const auto& file : std::filesystem::directory_iterator(folder())) std::filesystem::remove(file.path());
}

// The texts of a checkpoint beside its tensors, of a run of two norms that stands in the second one's second epoch. The
// first byte says which text the others are.
void checkpoint(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  static const auto settings = [] {
    launch::train::Settings made;
    made.norms = launch::train::parse_norms("group_norm,cross_iteration_batch_norm:renorm=true");
    made.epochs = 2;
    return made;
  }();
  const launch::Json config{{"settings", {{"epochs", 2}, {"norms", {"group_norm", {{"eps", 1e-5}}}}}}};
  const launch::train::Position position{1, 1, 3};
  const std::string path = folder() + "/c", text(reinterpret_cast<const char*>(bytes.data()) + 1, bytes.size() - 1);
  expect_promise([&] {
    switch (std::to_integer<int>(bytes[0]) % 3) {
      case 0: {
        const auto read = launch::train::read_position(path, text, settings);
        if (read.job > 2 || read.epoch > 1 || read.update < 0) fault("a position beyond the run");
        break;
      }
      case 1:
        (void)launch::train::text_of(launch::train::read_partial(path, text, position));
        break;
      default:
        (void)launch::Json(launch::train::read_events(path, text, settings, config, position)).dump();
    }
  });
}

constexpr Target all[] = {{"npy", npy},   {"safetensors", safetensors}, {"record", record},
                          {"gzip", gzip}, {"data_set", data_set},       {"checkpoint", checkpoint}};

}  // namespace

std::span<const Target> targets() noexcept { return all; }

}  // namespace allnorm::fuzz
