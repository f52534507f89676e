// The text inside a .npy file that says what its bytes are.
#include "launch/files/npy_header.hpp"

#include <array>
#include <bit>
#include <limits>
#include <optional>

#include "launch/files/input_file.hpp"

namespace allnorm::launch {
namespace {

struct TypeRow {
  NpyType type;
  std::string_view name;
  std::string_view code;  // NumPy's, without the byte order
};
constexpr std::array<TypeRow, 12> type_rows{{{NpyType::f64, "f64", "f8"},
                                             {NpyType::f32, "f32", "f4"},
                                             {NpyType::f16, "f16", "f2"},
                                             {NpyType::i8, "i8", "i1"},
                                             {NpyType::i16, "i16", "i2"},
                                             {NpyType::i32, "i32", "i4"},
                                             {NpyType::i64, "i64", "i8"},
                                             {NpyType::u8, "u8", "u1"},
                                             {NpyType::u16, "u16", "u2"},
                                             {NpyType::u32, "u32", "u4"},
                                             {NpyType::u64, "u64", "u8"},
                                             {NpyType::b1, "b1", "b1"}}};

constexpr const TypeRow& row_of(NpyType type) { return type_rows[static_cast<std::size_t>(type)]; }

constexpr char native_order = std::endian::native == std::endian::little ? '<' : '>';

std::string known_types() {
  std::string text;
  for (const TypeRow& row : type_rows)
    text += (text.empty() ? "" : &row == &type_rows.back() ? " or " : ", ") + std::string(row.name);
  return text;
}

// A recursive-descent parser of the few Python literals that a header may hold.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  NpyHeader parse() {
    require('{');
    while (!take('}')) {
      parse_entry();
      if (take('}')) break;
      require(',');
    }
    skip_space();
    if (at_ < text_.size()) bad("has " + printable(text_.substr(at_)) + " after its dictionary, must have nothing");
    for (const std::string_view key : {"descr", "fortran_order", "shape"})
      if (!seen(key)) bad("lacks the key '" + std::string(key) + "', must have it");
    return header_;
  }

 private:
  [[noreturn]] void bad(const std::string& what) const { bad_file(path_, "the .npy header " + what); }
  [[noreturn]] void bad_here(const std::string& wanted) const {
    bad("has " + (at_ < text_.size() ? printable(text_.substr(at_, 12)) : std::string("its end")) + " at character " +
        std::to_string(at_) + ", must have " + wanted);
  }

  void skip_space() {
    constexpr std::string_view space = " \t\n\r\f";
    while (at_ < text_.size() && space.find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool take(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void require(char c) {
    if (!take(c)) bad_here(std::string("'") + c + "'");
  }

  bool seen(std::string_view key) const {
    return key == "descr" ? seen_descr_ : key == "shape" ? seen_shape_ : seen_order_;
  }

  void parse_entry() {
    const std::string_view key = parse_string("a key in quotes");
    bool* const first = key == "descr"           ? &seen_descr_
                        : key == "shape"         ? &seen_shape_
                        : key == "fortran_order" ? &seen_order_
                                                 : nullptr;
    if (first == nullptr) bad("has the key " + printable(key) + ", must have descr, fortran_order and shape only");
    if (*first) bad("has the key '" + std::string(key) + "' twice, must have it once");
    *first = true;
    require(':');
    skip_space();
    if (key == "descr")
      parse_descr();
    else if (key == "shape")
      parse_shape();
    else
      header_.fortran_order = parse_bool();
  }

  // A literal in either kind of quotes. A backslash is refused: no name or type that is accepted contains one.
  std::string_view parse_string(const std::string& wanted) {
    skip_space();
    const char quote = at_ < text_.size() ? text_[at_] : '\0';
    if (quote != '\'' && quote != '"') bad_here(wanted);
    const std::size_t begin = at_ + 1;
    std::size_t end = begin;
    while (end < text_.size() && text_[end] != quote && text_[end] != '\\' && text_[end] != '\n') ++end;
    if (end >= text_.size() || text_[end] != quote) bad_here(wanted);
    at_ = end + 1;
    return text_.substr(begin, end - begin);
  }

  bool parse_bool() {
    for (const auto& [word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}})
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();  // a longer word fails at the comma or brace that must follow
        return value;
      }
    bad_here("True or False");
  }

  void parse_descr() {
    if (at_ < text_.size() && (text_[at_] == '[' || text_[at_] == '('))
      bad("describes a structured type, must be one of " + known_types());
    const std::string_view descr = parse_string("a type in quotes");
    if (descr.size() >= 2)
      for (const TypeRow& row : type_rows) {
        if (descr.substr(1) != row.code) continue;
        const bool one_byte = row.code[1] == '1';
        const char order = descr[0];
        if (order != '<' && order != '>' && !(order == '|' && one_byte)) break;
        header_.type = row.type;
        header_.swapped = !one_byte && order != native_order;
        return;
      }
    const char kind = descr.size() >= 2 ? descr[1] : descr.empty() ? '\0' : descr[0];
    const char* name = kind == 'O'                  ? " (Python objects)"
                       : kind == 'c'                ? " (complex)"
                       : kind == 'V'                ? " (structured)"
                       : kind == 'U' || kind == 'S' ? " (text)"
                       : kind == 'M' || kind == 'm' ? " (dates)"
                                                    : "";
    bad("has the type " + printable(descr) + name + ", must be one of " + known_types() + ", little or big endian");
  }

  // (), (3,), (3, 4) or (3, 4,). As in Python, (3) is a number and not a tuple.
  void parse_shape() {
    require('(');
    bool comma = true;
    while (!take(')')) {
      if (!comma) bad_here("',' or ')'");
      if (header_.shape.size() == static_cast<std::size_t>(Shape::max_rank))
        bad("has more than " + std::to_string(Shape::max_rank) + " axes, must have at most that");
      header_.shape.push_back(parse_extent());
      comma = take(',');
    }
    if (header_.shape.size() == 1 && !comma) bad("has a shape that is a number in brackets, must be a tuple");
  }

  std::int64_t parse_extent() {
    skip_space();
    const std::size_t begin = at_;
    std::int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
      if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, text_[at_] - '0', &value))
        bad("has an axis of more than 2^63-1 elements, must have at most that");
    const bool leading_zero = at_ - begin > 1 && text_[begin] == '0';
    if (at_ == begin || leading_zero) {
      at_ = begin;
      bad_here("a number of elements, at least 0");
    }
    return value;
  }

  std::string_view text_;
  const std::string& path_;
  std::size_t at_ = 0;
  NpyHeader header_;
  bool seen_descr_ = false, seen_order_ = false, seen_shape_ = false;
};

}  // namespace

std::string_view to_string(NpyType type) noexcept { return row_of(type).name; }

std::size_t size_of(NpyType type) noexcept { return static_cast<std::size_t>(row_of(type).code[1] - '0'); }

bool is_integer(NpyType type) noexcept { return row_of(type).code[0] == 'i' || row_of(type).code[0] == 'u'; }

NpyHeader parse_npy_header(std::string_view text, const std::string& path) { return HeaderParser(text, path).parse(); }

std::string npy_header_text(NpyType type, const Shape& shape) {
  std::string text = "{'descr': '";
  text += size_of(type) == 1 ? '|' : native_order;
  text += std::string(row_of(type).code) + "', 'fortran_order': False, 'shape': (";
  for (int i = 0; i < shape.rank(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.rank() == 1 ? ",), }" : "), }");
}

}  // namespace allnorm::launch
