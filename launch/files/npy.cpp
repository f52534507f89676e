// NumPy's .npy files: reading and writing.
#include "launch/files/npy.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "launch/files/input_file.hpp"
#include "launch/files/npy_header.hpp"

namespace allnorm::launch {
namespace {

constexpr std::array<unsigned char, 6> magic{0x93, 'N', 'U', 'M', 'P', 'Y'};
// Eight extents of 19 digits and three keys need less than 300 bytes; what is longer is an attack or a mistake.
constexpr std::size_t longest_npy_header = 65535;

std::string read_header_text(InputFile& file) {
  std::array<unsigned char, 8> preface{};  // magic, major and minor version
  file.read(std::as_writable_bytes(std::span(preface)));
  if (!std::equal(magic.begin(), magic.end(), preface.begin()))
    bad_file(file.path(), "does not start with \\x93NUMPY, must be a .npy file");
  const int major = preface[6], minor = preface[7];
  if (major < 1 || major > 3 || minor != 0)
    bad_file(file.path(),
             "has .npy version " + std::to_string(major) + "." + std::to_string(minor) + ", must be 1.0, 2.0 or 3.0");
  std::array<unsigned char, 4> count{};  // little endian; two bytes in version 1
  file.read(std::as_writable_bytes(std::span(count).first(major == 1 ? 2 : 4)));
  std::size_t length = 0;
  for (std::size_t i = 0; i < count.size(); ++i) length |= static_cast<std::size_t>(count[i]) << (8 * i);
  if (length > longest_npy_header || length > file.remaining())
    bad_file(file.path(), "has a .npy header of " + std::to_string(length) + " bytes, must have at most " +
                              std::to_string(std::min<std::uint64_t>(longest_npy_header, file.remaining())));
  std::string text(length, ' ');
  file.read(std::as_writable_bytes(std::span(text)));
  return text;
}

void swap_elements(std::span<std::byte> data, std::size_t item) {
  for (std::size_t i = 0; i < data.size(); i += item)
    std::reverse(data.begin() + static_cast<std::ptrdiff_t>(i), data.begin() + static_cast<std::ptrdiff_t>(i + item));
}

// Steps through the elements in Fortran order and knows where each lies in C order.
class FortranWalk {
 public:
  explicit FortranWalk(const Shape& shape) : shape_(shape) {
    for (int axis = 0; axis < shape.rank(); ++axis)
      stride_[static_cast<std::size_t>(axis)] = shape.product(axis + 1, shape.rank());
  }
  std::size_t offset() const { return static_cast<std::size_t>(offset_); }
  void next() {
    for (int axis = 0; axis < shape_.rank(); ++axis) {
      const auto a = static_cast<std::size_t>(axis);
      offset_ += stride_[a];
      if (++index_[a] < shape_[axis]) return;
      offset_ -= shape_[axis] * stride_[a];
      index_[a] = 0;
    }
  }

 private:
  const Shape& shape_;
  std::array<std::int64_t, Shape::max_rank> stride_{};  // elements
  std::array<std::int64_t, Shape::max_rank> index_{};
  std::int64_t offset_ = 0;  // elements
};

// Reordered piece by piece, so that no second copy of the array is needed.
void read_fortran(InputFile& file, NpyArray& array, std::size_t item) {
  std::array<std::byte, 1 << 16> piece{};
  FortranWalk walk(array.shape);
  for (std::size_t left = array.data.size(); left > 0;) {
    const std::size_t count = std::min(left, piece.size());  // a multiple of `item`, since 2^16 is
    file.read(std::span(piece).first(count));
    for (std::size_t i = 0; i < count; i += item, walk.next())
      std::memcpy(array.data.data() + walk.offset() * item, piece.data() + i, item);
    left -= count;
  }
}

}  // namespace

NpyArray read_npy(const std::string& path) {
  InputFile file(path);
  const NpyHeader header = parse_npy_header(read_header_text(file), path);
  const std::size_t item = size_of(header.type);
  const auto bytes = storage_bytes(header.shape, item);
  if (!bytes) bad_file(path, "has a shape of more than 2^63-1 bytes, must have at most that");
  if (*bytes != file.remaining())
    bad_file(path, "has " + std::to_string(file.remaining()) + " bytes of data, must have " + std::to_string(*bytes) +
                       " for its shape");

  NpyArray array{header.type, Shape(header.shape), std::vector<std::byte>(static_cast<std::size_t>(*bytes)), path};
  if (header.fortran_order && header.shape.size() > 1)
    read_fortran(file, array, item);
  else
    file.read(array.data);
  if (header.swapped) swap_elements(array.data, item);
  if (array.type == NpyType::b1)
    for (const std::byte b : array.data)
      if (b > std::byte{1})
        bad_file(path, "has the boolean " + std::to_string(std::to_integer<int>(b)) + ", must be 0 or 1");
  return array;
}

void write_npy(AtomicFile& file, const NpyArray& array) {
  const auto bytes = storage_bytes(std::span(array.shape.begin(), array.shape.end()), size_of(array.type));
  if (!bytes || array.data.size() != *bytes)
    bad_file(file.path(), "would get " + std::to_string(array.data.size()) + " bytes, must get as many as the shape " +
                              to_string(array.shape) + " of " + std::string(to_string(array.type)) + " needs");
  std::string text = npy_header_text(array.type, array.shape);
  constexpr std::size_t preface = magic.size() + 4;  // magic, version, length
  constexpr std::size_t alignment = 64;
  text.append((alignment - (preface + text.size() + 1) % alignment) % alignment, ' ');
  text += '\n';
  file.write(std::as_bytes(std::span(magic)));
  const std::array<unsigned char, 4> version_and_length{1, 0, static_cast<unsigned char>(text.size() & 0xff),
                                                        static_cast<unsigned char>(text.size() >> 8)};
  file.write(std::as_bytes(std::span(version_and_length)));
  file.write(text);
  file.write(array.data);
}

void write_npy(const std::string& path, const NpyArray& array) {
  AtomicFile file(path);
  write_npy(file, array);
  file.commit();
}

}  // namespace allnorm::launch
