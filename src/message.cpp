#include "allnorm/message.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <span>

#include "allnorm/catalogue.hpp"

namespace allnorm {

namespace {

enum class Format : std::uint8_t { integer, real, choice, family, hash };

struct FieldSpec {
  Field field;
  std::string_view name;  // as the user set it, or what a person would call it
  Format format;
  std::span<const std::string_view> choices{};
};

constexpr std::string_view directions[] = {"forward", "backward", "gradients", "agreement", "split"};
constexpr std::string_view modes[] = {"training", "inference"};
constexpr std::string_view dtypes[] = {"f64", "f32", "f16", "bf16"};
// Told before a layer's attributes ...
constexpr FieldSpec fields_of_the_layer[] = {
    {Field::magic, "magic", Format::hash},
    {Field::wire_version, "wire version", Format::integer},
    {Field::direction, "direction", Format::choice, directions},
    {Field::kind, "kind", Format::family},
    {Field::call, "call number", Format::integer},
    {Field::ranks, "group size", Format::integer},
    {Field::channels, "number of channels", Format::integer},
    {Field::groups, "number of groups", Format::integer},
    {Field::dtype, "dtype", Format::choice, dtypes},
};
// ... and after them, what may follow from them.
constexpr FieldSpec fields_of_the_call[] = {
    {Field::inference, "mode", Format::choice, modes},
    {Field::r_max, "r_max", Format::real},
    {Field::d_max, "d_max", Format::real},
    {Field::minibatch, "mini-batch of the batch", Format::integer},
    {Field::entries, "iterations in the window", Format::integer},
    {Field::weight_hash, "conv_weight", Format::hash},
    {Field::running_hash, "the running state", Format::hash},
    {Field::history_hash, "the state of window and batch", Format::hash},
    {Field::moments, "number of merged means", Format::integer},
    {Field::co_moments, "width of merged products", Format::integer},
    {Field::payload, "payload length", Format::integer},
};
static_assert(std::size(fields_of_the_layer) + std::size(fields_of_the_call) == static_cast<std::size_t>(Field::count));

std::string real_text(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return {text, end};
}

// "the NAME family" after its first row, or the name of the only one.
std::string family_text(std::uint64_t family) {
  const auto rows = catalogue();
  if (family >= rows.size()) return "a layer that is not in the catalogue";
  const auto members = std::count_if(rows.begin(), rows.end(), [&](const Row& r) { return family_of(r) == family; });
  const std::string name(rows[family].name);
  return members > 1 ? "the " + name + " family" : name;
}

std::string value_text(const FieldSpec& spec, std::uint64_t word) {
  if (spec.format == Format::family) return family_text(word);
  if (spec.format == Format::real) return real_text(std::bit_cast<double>(word));
  if (spec.format == Format::choice && word < spec.choices.size()) return std::string(spec.choices[word]);
  return std::to_string(static_cast<std::int64_t>(word));
}

std::string_view name_of(const Header& header) {
  return {header.name.data(), strnlen(header.name.data(), header.name.size())};
}

}  // namespace

Header::Header(std::string_view layer_name, Direction direction, std::uint64_t call) {
  std::copy_n(layer_name.data(), std::min(layer_name.size(), name_size - 1), name.data());
  set(Field::magic, magic_value);
  set(Field::wire_version, version_value);
  set(Field::direction, static_cast<std::uint64_t>(direction));
  set(Field::call, call);
}

std::string describe(const Header& header) {
  const auto direction = header.get(Field::direction);
  return std::string(name_of(header)) + ", call " + std::to_string(header.get(Field::call)) + ", " +
         (direction < std::size(directions) ? std::string(directions[direction]) : std::to_string(direction));
}

std::string differences(const Header& first, std::string_view first_name, const Header& other) {
  if (first == other) return {};
  const std::string on_first = " as on " + std::string(first_name);
  for (const Field field : {Field::magic, Field::wire_version})
    if (first.get(field) != other.get(field)) return "another version of allnorm, must be the same" + on_first;
  const auto differs = [&](Field field) { return first.get(field) != other.get(field); };
  if (first.name != other.name || differs(Field::direction) || differs(Field::call))
    return "is at " + describe(other) + ", must be at " + describe(first) + on_first;

  std::string text;
  const auto tell_hash = [&](std::string_view name) {
    text += (text.empty() ? "" : "; ") + std::string(name) + " differs, must be the same" + on_first;
  };
  const auto tell = [&](std::string_view name, const std::string& is, const std::string& must) {
    text += (text.empty() ? "" : "; ") + std::string(name) + " is " + is + ", must be " + must + on_first;
  };
  const auto tell_field = [&](const FieldSpec& spec) {
    if (!differs(spec.field)) return;
    const bool consequence = spec.field >= Field::moments || spec.format == Format::hash;
    if (consequence && !text.empty()) return;  // of what was named already
    if (spec.format == Format::hash) return tell_hash(spec.name);
    tell(spec.name, value_text(spec, other.get(spec.field)), value_text(spec, first.get(spec.field)));
  };
  for (const FieldSpec& spec : fields_of_the_layer) {
    tell_field(spec);
    if (spec.field == Field::kind && differs(spec.field)) return text;  // what follows means something else
  }
  const auto rows = catalogue();
  if (const std::uint64_t family = first.get(Field::kind); family < rows.size()) {
    std::size_t i = 0;
    for (const Attribute& attribute : rows[family].attributes) {
      if (attribute.agreement != Agreement::same) continue;
      const std::uint64_t is = other.attributes[i], must = first.attributes[i];
      ++i;
      if (is == must) continue;
      if (attribute.text == nullptr)
        tell_hash(attribute.name);
      else
        tell(attribute.name, attribute.text(is), attribute.text(must));
    }
  }
  for (const FieldSpec& spec : fields_of_the_call) tell_field(spec);
  if (text.empty()) tell_hash("the header");
  return text;
}

RecordHead::RecordHead(const Header& own_header, std::string_view why)
    : header(own_header), flags(flag_declined), count(0) {
  std::copy_n(why.data(), std::min(why.size(), reason_size - 1), reason.data());
}

std::uint64_t hash_of(const void* bytes, std::size_t size, std::uint64_t seed) noexcept {
  constexpr std::uint64_t prime = 0x100000001b3u;
  const auto* from = static_cast<const unsigned char*>(bytes);
  std::uint64_t hash = seed;
  const auto mix = [&](std::uint64_t word) {
    hash = (hash ^ word) * prime;
    hash ^= hash >> 32;  // words, not bytes: let the high half reach the low one
  };
  for (; size >= 8; size -= 8, from += 8) {
    std::uint64_t word;
    std::memcpy(&word, from, 8);
    mix(word);
  }
  std::uint64_t rest = size;
  if (size > 0) std::memcpy(&rest, from, size);
  if (size > 0) mix(rest);
  return hash;
}

}  // namespace allnorm
