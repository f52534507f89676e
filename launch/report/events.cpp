#include "launch/report/events.hpp"
#include "launch/files/json_number.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>

namespace allnorm::launch {

std::string fixed(double value, int digits) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

std::vector<std::string> remarks_of(const Events& events) {
  const Json& config = events.front();
  const Json& settings = config.at("settings");
  std::vector<std::string> remarks;
  const auto seeds = whole(settings.at("seeds"));
  remarks.push_back("images: per rank and call, on " + std::to_string(whole(settings.at("ranks"))) +
                    " ranks; test error: mean ± standard deviation over " + std::to_string(seeds) +
                    (seeds == 1 ? " seed (-: unknown)" : " seeds") +
                    "; seconds: all seeds together; exchanges and bytes: sent by one rank in one update, gradients "
                    "included.");
  const auto unshared = [](const Json& norm) {
    return norm.at("attributes").contains("sync") && norm.at("attributes").at("sync") != "world";
  };
  if (settings.at("ranks") != 1 && std::any_of(settings.at("norms").begin(), settings.at("norms").end(), unshared))
    remarks.push_back(
        "Running statistics of layers whose statistics are not those of all ranks (sync other than world) were "
        "averaged over the ranks at the end of every epoch, before testing.");
  return remarks;
}

}  // namespace allnorm::launch
