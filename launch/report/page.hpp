// One self-contained HTML page of what train, bench and scale have logged: SVG plots, tables that sort themselves,
// light and dark, nothing loaded from anywhere.
#pragma once

#include <string>
#include <vector>

#include "launch/report/events.hpp"
#include "launch/report/plot.hpp"

namespace allnorm::launch::pages {

/// The events of a file.
struct Log {
  std::string name{};  ///< for the reader
  Events events{};
};

/// The page of a training, and of any logs. Of several bench logs, lines that they have in common are compared.
std::string page_of(const Events& training);
std::string page_of(const std::vector<Log>& logs);

// ---- what the pages share ------------------------------------------------------------------------------------------

using Cells = std::vector<std::string>;  ///< as HTML
/// Sorted by a column where its title is clicked.
std::string html_table(const Cells& head, const std::vector<Cells>& rows);
/// Empty where the body is.
std::string section(const std::string& title, const std::string& body);
/// An SVG with a caption; the caption alone where there is none.
std::string figure(const std::string& svg, const std::string& caption);
/// A number, or a dash.
std::string number_text(const Json& value, int digits);
/// A text, or a value as JSON has it; empty where the event has none of that name.
std::string word(const Json& event, const char* name);

/// Each plot of a page as a file of its own.
std::vector<std::string> plots_of(const std::string& page);

/// Sections of one training, of one sweep, and of bench logs.
std::string training_sections(const Events& events);
std::string scale_sections(const Log& log);
std::string bench_sections(const std::vector<const Log*>& logs);

}  // namespace allnorm::launch::pages
