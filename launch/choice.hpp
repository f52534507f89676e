// Options whose value is one of a few words: what they are is said once, for the check, the help and the shell.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/program_options/value_semantic.hpp>

#include "allnorm/error.hpp"
#include "src/nearest.hpp"

namespace allnorm::launch {

/// The words with a comma between them.
inline std::string listed(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

/// The value of an option that is one of `words`; read into `value`, or invalid_argument is thrown.
class Choice : public boost::program_options::typed_value<std::string> {
 public:
  Choice(const std::string& option, std::string* value, std::vector<std::string> words)
      : typed_value(value), words_(std::move(words)) {
    notifier([option, known = words_](const std::string& given) {
      for (const std::string& word : known)
        if (given == word) return;
      fail(Code::invalid_argument,
           "--" + option + " is '" + given + "', must be one of " + listed(known) +
               did_you_mean(given, known, [](const std::string& word) { return std::string_view(word); }));
    });
  }
  const std::vector<std::string>& words() const noexcept { return words_; }

 private:
  std::vector<std::string> words_;
};

}  // namespace allnorm::launch
