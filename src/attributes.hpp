// How attributes of each type are read from text and written to it, and to the words of a message. A row of the
// catalogue names a member of NormOptions and its range; the functions here do the rest.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/message.hpp"

namespace allnorm::attributes {

[[noreturn]] inline void refuse(std::string_view name, std::string_view value, std::string_view must) {
  fail(Code::invalid_argument,
       "attribute " + std::string(name) + " is '" + std::string(value) + "', must be " + std::string(must));
}

/// The whole of `text` as a T, or false.
template <class T>
bool parse(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

inline std::string text_of(double value) {
  std::array<char, 32> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

/// What a word stands for, by the type that it was made from.
inline std::string text_of_boolean(std::uint64_t word) { return word != 0 ? "true" : "false"; }
inline std::string text_of_real(std::uint64_t word) { return text_of(std::bit_cast<double>(word)); }
inline std::string text_of_integer(std::uint64_t word) { return std::to_string(static_cast<std::int64_t>(word)); }

/// The member at the end of a path of member pointers.
template <auto First, auto... Rest>
auto& member(auto& object) {
  if constexpr (sizeof...(Rest) == 0)
    return object.*First;
  else
    return member<Rest...>(object.*First);
}
template <auto... Path>
std::uint64_t word_of(const NormOptions& options) {
  if constexpr (std::is_floating_point_v<std::remove_cvref_t<decltype(member<Path...>(options))>>)
    return std::bit_cast<std::uint64_t>(member<Path...>(options));
  else
    return static_cast<std::uint64_t>(member<Path...>(options));
}

/// The attribute with another agreement between ranks than that of its value.
constexpr Attribute with(Agreement agreement, Attribute attribute) {
  attribute.agreement = agreement;
  return attribute;
}

template <auto... Path>
constexpr Attribute boolean(std::string_view name, std::string_view help) {
  return {name,
          "true or false",
          help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            if (value != "true" && value != "false") refuse(attribute, value, "true or false");
            member<Path...>(options) = value == "true";
          },
          [](const NormOptions& options) { return text_of_boolean(word_of<Path...>(options)); },
          word_of<Path...>,
          text_of_boolean};
}

template <int Minimum>
constexpr std::string_view number_text = Minimum == 0 ? "a number of at least 0" : "a number of at least 1";
template <int Minimum>
constexpr std::string_view integer_text = Minimum < 0    ? "an integer"
                                          : Minimum == 0 ? "an integer of at least 0"
                                                         : "an integer of at least 1";
template <int Minimum>
constexpr std::string_view integers_text =
    Minimum == 0 ? "integers of at least 0, separated by commas" : "integers of at least 1, separated by commas";

/// A finite number of at least `Minimum` (0 or 1).
template <int Minimum, auto... Path>
constexpr Attribute real(std::string_view name, std::string_view help) {
  return {name,
          number_text<Minimum>,
          help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            double number = 0;
            if (!parse(value, number) || !std::isfinite(number) || number < Minimum)
              refuse(attribute, value, number_text<Minimum>);
            member<Path...>(options) = number;
          },
          [](const NormOptions& options) { return text_of(member<Path...>(options)); },
          word_of<Path...>,
          text_of_real};
}

template <int Minimum>
constexpr std::string_view bound_text =
    Minimum == 0 ? "a number of at least 0, or points VALUE@CALL, separated by commas"
                 : "a number of at least 1, or points VALUE@CALL, separated by commas";

/// The points of a Ramp: VALUE@CALL, separated by commas, calls ascending; or false.
inline bool parse(std::string_view text, Ramp& ramp) {
  for (std::string_view rest = text;;) {
    const std::string_view point = rest.substr(0, rest.find(','));
    const auto at = std::min(point.find('@'), point.size());
    RampPoint read;
    if (!parse(point.substr(0, at), read.value) || !parse(point.substr(std::min(at + 1, point.size())), read.call) ||
        read.call < 0 || (!ramp.empty() && ramp.back().call >= read.call))
      return false;
    ramp.push_back(read);
    if (point.size() == rest.size()) return true;
    rest.remove_prefix(point.size() + 1);
  }
}

/// A finite number of at least `Minimum` (0 or 1), or such numbers at some calls, linear between them.
template <int Minimum, auto Constant, auto Points>
constexpr Attribute bound(std::string_view name, std::string_view help) {
  return {name,
          bound_text<Minimum>,
          help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            double number = 0;
            Ramp ramp;
            const auto is_wrong = [](double of) { return !std::isfinite(of) || of < Minimum; };
            const bool is_number = parse(value, number);
            if (is_number ? is_wrong(number)
                          : !parse(value, ramp) ||
                                std::any_of(ramp.begin(), ramp.end(), [&](const auto& p) { return is_wrong(p.value); }))
              refuse(attribute, value, bound_text<Minimum>);
            if (is_number) options.*Constant = number;
            options.*Points = std::move(ramp);
          },
          [](const NormOptions& options) {
            const Ramp& ramp = options.*Points;
            if (ramp.empty()) return text_of(options.*Constant);
            std::string text;
            for (const RampPoint& point : ramp)
              text += (text.empty() ? "" : ",") + text_of(point.value) + "@" + std::to_string(point.call);
            return text;
          },
          word_of<Constant>,
          text_of_real};
}

/// An integer of at least `Minimum` (0 or 1), or of any value (-1).
template <int Minimum, auto... Path>
constexpr Attribute integer(std::string_view name, std::string_view help) {
  return {name,
          integer_text<Minimum>,
          help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            std::int64_t number = 0;
            if (!parse(value, number) || (Minimum >= 0 && number < Minimum))
              refuse(attribute, value, integer_text<Minimum>);
            member<Path...>(options) = number;
          },
          [](const NormOptions& options) { return std::to_string(member<Path...>(options)); },
          word_of<Path...>,
          text_of_integer};
}

/// One or more integers of at least `Minimum`, separated by commas. One value stands for as many as are asked for.
template <int Minimum, auto... Path>
constexpr Attribute integers(std::string_view name, std::string_view values, std::string_view help) {
  return {name,
          values,
          help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            std::vector<std::int64_t> numbers;
            for (std::string_view rest = value;;) {
              const auto comma = rest.find(',');
              std::int64_t number = 0;
              if (!parse(rest.substr(0, comma), number) || number < Minimum)
                refuse(attribute, value, integers_text<Minimum>);
              numbers.push_back(number);
              if (comma == rest.npos) break;
              rest.remove_prefix(comma + 1);
            }
            member<Path...>(options) = std::move(numbers);
          },
          [](const NormOptions& options) {
            std::string text;
            for (const auto number : member<Path...>(options))
              text += (text.empty() ? "" : ",") + std::to_string(number);
            return text;
          },
          [](const NormOptions& options) {
            const auto& numbers = member<Path...>(options);
            const bool alike =
                std::adjacent_find(numbers.begin(), numbers.end(), std::not_equal_to<>()) == numbers.end();
            return hash_of(numbers.data(),
                           (alike ? std::min<std::size_t>(1, numbers.size()) : numbers.size()) * sizeof(std::int64_t));
          },
          nullptr};
}

/// The words of an enumeration's values, in their order.
struct Words {
  static constexpr std::size_t most = 4, length = 16;
  char words[most][length]{};
  std::size_t count = 0;

  template <std::size_t... Sizes>
  constexpr Words(const char (&... word)[Sizes]) : count(sizeof...(Sizes)) {
    std::size_t i = 0;
    (std::copy_n(word, Sizes, words[i++]), ...);
  }
  constexpr std::string_view operator[](std::size_t i) const { return words[i]; }
};
/// "identity, relu or leaky_relu".
template <Words words>
constexpr auto joined = [] {
  std::array<char, Words::most*(Words::length + 4)> text{};
  auto* at = text.data();
  for (std::size_t i = 0; i < words.count; ++i) {
    const std::string_view between = i == 0 ? "" : i + 1 == words.count ? " or " : ", ";
    at = std::copy(between.begin(), between.end(), at);
    at = std::copy(words[i].begin(), words[i].end(), at);
  }
  return text;
}();

template <Words words>
std::string text_of_choice(std::uint64_t word) {
  return word < words.count ? std::string(words[word]) : std::to_string(word);
}

/// An enumeration: one of its words.
template <Words words, auto... Path>
constexpr Attribute choice(std::string_view name, std::string_view help) {
  return {name,
          joined<words>.data(),
          help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            auto& choice = member<Path...>(options);
            for (std::size_t i = 0; i < words.count; ++i)
              if (value == words[i]) {
                choice = static_cast<std::remove_reference_t<decltype(choice)>>(i);
                return;
              }
            refuse(attribute, value, joined<words>.data());
          },
          [](const NormOptions& options) { return text_of_choice<words>(word_of<Path...>(options)); },
          word_of<Path...>,
          text_of_choice<words>};
}

/// The attributes that ranks must agree on have a word each in a message's header.
constexpr bool fits_a_header(const Row& row) {
  return std::count_if(row.attributes.begin(), row.attributes.end(), [](const Attribute& attribute) {
           return attribute.agreement == Agreement::same;
         }) <= std::ptrdiff_t{Header::attributes_size};
}

}  // namespace allnorm::attributes
