// How attributes of each type are read from and written to text. A row of the catalogue names a member of NormOptions
// and its range; the functions here do the rest.
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/catalogue.hpp"

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

/// The member at the end of a path of member pointers.
template <auto First, auto... Rest>
auto& member(auto& object) {
  if constexpr (sizeof...(Rest) == 0)
    return object.*First;
  else
    return member<Rest...>(object.*First);
}

template <auto... Path>
constexpr Attribute boolean(std::string_view name, std::string_view help) {
  return {name, "true or false", help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            if (value != "true" && value != "false") refuse(attribute, value, "true or false");
            member<Path...>(options) = value == "true";
          },
          [](const NormOptions& options) { return std::string(member<Path...>(options) ? "true" : "false"); }};
}

template <int Minimum>
constexpr std::string_view number_text = Minimum == 0 ? "a number of at least 0" : "a number of at least 1";
template <int Minimum>
constexpr std::string_view integer_text = Minimum == 0 ? "an integer of at least 0" : "an integer of at least 1";
template <int Minimum>
constexpr std::string_view integers_text =
    Minimum == 0 ? "integers of at least 0, separated by commas" : "integers of at least 1, separated by commas";

/// A finite number of at least `Minimum` (0 or 1).
template <int Minimum, auto... Path>
constexpr Attribute real(std::string_view name, std::string_view help) {
  return {name, number_text<Minimum>, help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            double number = 0;
            if (!parse(value, number) || !std::isfinite(number) || number < Minimum)
              refuse(attribute, value, number_text<Minimum>);
            member<Path...>(options) = number;
          },
          [](const NormOptions& options) { return text_of(member<Path...>(options)); }};
}

template <int Minimum, auto... Path>
constexpr Attribute integer(std::string_view name, std::string_view help) {
  return {name, integer_text<Minimum>, help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            std::int64_t number = 0;
            if (!parse(value, number) || number < Minimum) refuse(attribute, value, integer_text<Minimum>);
            member<Path...>(options) = number;
          },
          [](const NormOptions& options) { return std::to_string(member<Path...>(options)); }};
}

/// One or more integers of at least `Minimum`, separated by commas.
template <int Minimum, auto... Path>
constexpr Attribute integers(std::string_view name, std::string_view values, std::string_view help) {
  return {name, values, help,
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
          }};
}

/// One of the words of `Names`, in the order of the enumeration's values.
template <const auto& Names, auto... Path>
constexpr Attribute choice(std::string_view name, std::string_view values, std::string_view help) {
  return {name, values, help,
          [](NormOptions& options, std::string_view attribute, std::string_view value) {
            std::string must;
            for (std::size_t i = 0; i < Names.size(); ++i) {
              using Value = std::remove_reference_t<decltype(member<Path...>(options))>;
              if (value == Names[i]) {
                member<Path...>(options) = static_cast<Value>(i);
                return;
              }
              must += (i == 0 ? "" : i + 1 == Names.size() ? " or " : ", ") + std::string(Names[i]);
            }
            refuse(attribute, value, must);
          },
          [](const NormOptions& options) {
            return std::string(Names[static_cast<std::size_t>(member<Path...>(options))]);
          }};
}

}  // namespace allnorm::attributes
