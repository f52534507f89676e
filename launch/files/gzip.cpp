// Files that may be compressed: gzip through zlib. The only file of the project that includes zlib.h.
#include <zlib.h>

#include <algorithm>
#include <array>

#include "launch/files/input_file.hpp"

namespace allnorm::launch {
namespace {

// Owns zlib's state for the length of one file.
struct Inflater {
  z_stream stream{};
  explicit Inflater(const std::string& path) {
    constexpr int gzip_only = 16 + MAX_WBITS;
    if (inflateInit2(&stream, gzip_only) != Z_OK) bad_file(path, "cannot be decompressed: zlib has no memory");
  }
  ~Inflater() { inflateEnd(&stream); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
};

}  // namespace

std::vector<std::byte> read_gzip_file(const std::string& path, std::uint64_t max_bytes) {
  InputFile file(path);
  std::array<std::byte, 1 << 16> input{};  // bytes, compressed
  const auto first = static_cast<std::size_t>(std::min<std::uint64_t>(2, file.remaining()));
  file.read(std::span(input).first(first));
  if (first < 2 || input[0] != std::byte{0x1f} || input[1] != std::byte{0x8b}) return read_file(path, max_bytes);

  Inflater inflater(path);
  z_stream& stream = inflater.stream;
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(first);
  std::array<std::byte, 1 << 16> output{};  // bytes, decompressed
  std::vector<std::byte> content;
  bool at_member_end = false;
  while (stream.avail_in > 0 || file.remaining() > 0) {
    if (stream.avail_in == 0) {
      const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(input.size(), file.remaining()));
      file.read(std::span(input).first(count));
      stream.next_in = reinterpret_cast<Bytef*>(input.data());
      stream.avail_in = static_cast<uInt>(count);
    }
    if (at_member_end) inflateReset(&stream);  // a gzip file is one or more members, one after the other
    int status = Z_OK;
    do {  // until this input is used up or the member ends
      stream.next_out = reinterpret_cast<Bytef*>(output.data());
      stream.avail_out = static_cast<uInt>(output.size());
      status = inflate(&stream, Z_NO_FLUSH);
      if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
        bad_file(path, std::string("is not a valid gzip file: ") + (stream.msg ? stream.msg : "corrupt"));
      const std::size_t made = output.size() - stream.avail_out;
      if (content.size() + made > max_bytes)
        bad_file(path, "decompresses to more than " + std::to_string(max_bytes) + " bytes, must be at most that");
      content.insert(content.end(), output.begin(), output.begin() + static_cast<std::ptrdiff_t>(made));
    } while (status == Z_OK && (stream.avail_in > 0 || stream.avail_out == 0));
    at_member_end = status == Z_STREAM_END;
  }
  if (!at_member_end) bad_file(path, "is a truncated gzip file, must be complete");
  return content;
}

}  // namespace allnorm::launch
