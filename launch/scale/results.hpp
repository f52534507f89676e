// What the rows of a sweep say together: scaling, the model of the exchange, and the answer.
#pragma once

#include <string>
#include <vector>

#include "launch/scale/plan.hpp"

namespace allnorm::launch::scale {

/// Of measured rows: an event "scaling" for each layer and shape (or model) on each number of ranks, behind an event
/// "fit" for each number of ranks and transport whose messages have two sizes.
std::vector<Json> scaling_of(const Plan& plan, const std::vector<Json>& events);

/// The event "answer": of `rows` with effective_batch, time_us and a line of text, the one of the least time whose
/// effective batch is at least plan.effective_batch. Nothing where nobody asked.
std::vector<Json> answer_of(const Plan& plan, const std::vector<Json>& rows);

/// "# ..." lines, titles, and the lines of the events.
std::string header_text(const Json& config);
std::string scaling_text(const Plan& plan, const std::vector<Json>& events);

}  // namespace allnorm::launch::scale
