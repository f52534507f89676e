// Names of kernels: from the symbol tables of the program and its libraries, which also hold those that are not
// exported.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

#include "runtime.hpp"

namespace cuda_emulation::detail {
namespace {

/// Functions of a module by their address in the file.
using Symbols = std::map<std::uint64_t, std::string>;

template <class T>
bool read(std::ifstream& file, std::uint64_t offset, std::vector<T>& items, std::size_t count) {
  items.resize(count);
  file.seekg(static_cast<std::streamoff>(offset));
  return static_cast<bool>(
      file.read(reinterpret_cast<char*>(items.data()), static_cast<std::streamsize>(count * sizeof(T))));
}

/// Of a 64-bit ELF file with a symbol table; empty for any other.
Symbols read_symbols(const char* path, bool& relocated) {
  Symbols result;
  std::ifstream file(path, std::ios::binary);
  std::vector<Elf64_Ehdr> header;
  std::vector<Elf64_Shdr> sections;
  if (!read(file, 0, header, 1) || std::memcmp(header[0].e_ident, ELFMAG, SELFMAG) != 0 ||
      header[0].e_ident[EI_CLASS] != ELFCLASS64 || !read(file, header[0].e_shoff, sections, header[0].e_shnum))
    return result;
  relocated = header[0].e_type == ET_DYN;
  for (const Elf64_Shdr& section : sections) {
    std::vector<Elf64_Sym> symbols;
    std::vector<char> strings;
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size() ||
        !read(file, section.sh_offset, symbols, section.sh_size / sizeof(Elf64_Sym)) ||
        !read(file, sections[section.sh_link].sh_offset, strings, sections[section.sh_link].sh_size))
      continue;
    strings.push_back('\0');
    for (const Elf64_Sym& symbol : symbols)
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_name < strings.size())
        result.emplace(symbol.st_value, &strings[symbol.st_name]);
  }
  return result;
}

struct Module {
  Symbols symbols;
  bool relocated = true;
};

std::string look_up(const void* kernel) {
  static std::map<std::string, Module> modules;  // under the lock of mangled_name
  Dl_info info{};
  if (dladdr(kernel, &info) != 0) {
    const std::string path = info.dli_fname;
    auto found = modules.find(path);
    if (found == modules.end()) {
      Module module;
      module.symbols = read_symbols(path.c_str(), module.relocated);
      if (module.symbols.empty()) module.symbols = read_symbols("/proc/self/exe", module.relocated);
      found = modules.emplace(path, std::move(module)).first;
    }
    const auto base = found->second.relocated ? reinterpret_cast<std::uintptr_t>(info.dli_fbase) : 0;
    const auto symbol = found->second.symbols.find(reinterpret_cast<std::uintptr_t>(kernel) - base);
    if (symbol != found->second.symbols.end()) return symbol->second;
    if (info.dli_sname != nullptr && info.dli_saddr == kernel) return info.dli_sname;
  }
  char text[32];
  std::snprintf(text, sizeof(text), "at %p", kernel);
  return text;
}

}  // namespace

const char* mangled_name(const void* kernel) {
  static std::mutex mutex;
  static auto* const names = new std::map<const void*, std::string>;
  const std::lock_guard lock(mutex);
  auto found = names->find(kernel);
  if (found == names->end()) found = names->emplace(kernel, look_up(kernel)).first;
  return found->second.c_str();
}

std::string kernel_name(const void* kernel) {
  const char* const mangled = mangled_name(kernel);
  int status = 0;
  char* const readable = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = readable != nullptr ? readable : mangled;
  std::free(readable);
  return name;
}

}  // namespace cuda_emulation::detail
