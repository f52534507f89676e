#include "launch/installed.hpp"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "allnorm/error.hpp"

namespace allnorm::launch {

namespace fs = std::filesystem;

namespace {

std::string program(const char* name, const char* purpose) {
  std::error_code error;
  const fs::path here = fs::path(this_program()).parent_path();
  for (const fs::path& folder : {here, here / ALLNORM_LIBEXEC})
    if (fs::exists(folder / name, error)) return (folder / name).string();
  fail(Code::unsupported, std::string(name) + " is neither in " + here.string() + " nor in " +
                              (here / ALLNORM_LIBEXEC).lexically_normal().string() + ", must be there " + purpose);
}

}  // namespace

std::string this_program() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).string();
}

std::string train_program() { return program("allnorm-train", "to train"); }

std::string simulator_program() { return program("allnorm-simulator", "to simulate"); }

std::string data_folder(const char* name, const char* installed) {
  std::error_code error;
  const fs::path here = fs::path(this_program()).parent_path();
  return (fs::is_directory(here / name, error) ? here / name : (here / installed).lexically_normal()).string();
}

std::vector<std::string> json_names(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& file : fs::directory_iterator(folder, error))
    if (file.path().extension() == ".json") names.push_back(file.path().stem().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string digits_folder() {
  const fs::path in_tree = "data/digits", in_installation = "share/allnorm/digits";
  std::error_code error;
  if (fs::exists(in_tree, error)) return in_tree.string();
  for (fs::path folder = fs::path(this_program()).parent_path(); folder.has_relative_path();
       folder = folder.parent_path())
    for (const fs::path& inside : {in_tree, in_installation})
      if (fs::exists(folder / inside, error)) return (folder / inside).string();
  return in_tree.string();
}

}  // namespace allnorm::launch
