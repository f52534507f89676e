#include "launch/report/page.hpp"

#include <string_view>

#include "launch/files/json_lines.hpp"

namespace allnorm::launch::pages {

namespace {

// Okabe and Ito's palette without its yellow; on dark its black is a light grey.
constexpr const char* style = R"css(
:root { color-scheme: light dark; --ink: #222; --soft: #5b6270; --page: #f6f7f9; --card: #fff; --rule: #d9dde3; --tint: #eef1f5; --last: #333; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ec; --soft: #a3abb8; --page: #15181d; --card: #1d2127; --rule: #3a414c; --tint: #282d35; --last: #bbb; }
}
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0; overflow-wrap: anywhere; }
main { max-width: 980px; margin: 0 auto; padding: 20px 14px 60px; }
h1 { font-size: 26px; margin: 8px 0 2px; } h2 { font-size: 20px; margin: 0 0 8px; } h3 { font-size: 16px; }
.sub { color: var(--soft); margin: 0 0 18px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px; margin: 16px 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th { text-align: right; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--rule); padding: 6px 8px; vertical-align: bottom; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit; }
th[aria-sort] button::after { content: " ↓"; } th[aria-sort=ascending] button::after { content: " ↑"; }
td { text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); padding: 6px 8px; }
th:first-child, td:first-child { text-align: left; }
.note, figcaption { color: var(--soft); font-size: 14.5px; } .note li { margin: 4px 0; }
figure { margin: 0 0 12px; } figcaption { margin-top: 6px; } .slower { color: #d55e00; font-weight: 600; }
code, pre { background: var(--tint); border-radius: 4px; font-size: 13.5px; } code { padding: 1px 5px; }
pre { padding: 12px; overflow-x: auto; } summary { cursor: pointer; font-weight: 600; }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; fill: none; }
svg text { fill: var(--ink); } svg .name { fill: var(--soft); } .grid { stroke: var(--rule); } .axis { stroke: var(--soft); }
path, line { stroke-width: 2; } .grid, .axis { stroke-width: 1; } .dashed { stroke-dasharray: 5 4; }
path.s0, line.s0 { stroke: #0072b2; } circle.s0, rect.s0 { fill: #0072b2; }
path.s1, line.s1 { stroke: #d55e00; } circle.s1, rect.s1 { fill: #d55e00; }
path.s2, line.s2 { stroke: #009e73; } circle.s2, rect.s2 { fill: #009e73; }
path.s3, line.s3 { stroke: #cc79a7; } circle.s3, rect.s3 { fill: #cc79a7; }
path.s4, line.s4 { stroke: #e69f00; } circle.s4, rect.s4 { fill: #e69f00; }
path.s5, line.s5 { stroke: #56b4e9; } circle.s5, rect.s5 { fill: #56b4e9; }
path.s6, line.s6 { stroke: var(--last); } circle.s6, rect.s6 { fill: var(--last); }
@media (max-width: 560px) { svg { font-size: 17px; } section { padding: 12px 10px; } }
)css";

// A click sorts by that column: by number where its cells begin with one.
constexpr const char* script = R"js(
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") === "descending";
  const value = row => row.cells[head.cellIndex].textContent.trim();
  const compare = (a, b) => {
    const x = parseFloat(value(a)), y = parseFloat(value(b));
    return isNaN(x) || isNaN(y) ? value(b).localeCompare(value(a)) : y - x;
  };
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => up ? compare(b, a) : compare(a, b)));
});
)js";

std::string page(const std::string& title, const std::string& body) {
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
         "<title>" +
         escaped(title) + "</title><style>" + style + "</style></head><body><main>\n<h1>" + escaped(title) + "</h1>\n" +
         body + "</main><script>" + script + "</script></body></html>\n";
}

std::string command_of(const Log& log) { return log.events.front().value("command", std::string()); }

}  // namespace

std::string number_text(const Json& value, int digits) {
  return value.is_number() ? fixed(value.get<double>(), digits) : "–";
}

std::string word(const Json& event, const char* name) {
  const Json value = event.value(name, Json());
  return value.is_null() ? "" : value.is_string() ? value.get<std::string>() : value.dump();
}

std::string html_table(const Cells& head, const std::vector<Cells>& rows) {
  std::string out = "<div class=\"wide\"><table><thead><tr>";
  for (const auto& cell : head) out += "<th><button type=\"button\">" + cell + "</button></th>";
  out += "</tr></thead><tbody>\n";
  for (const Cells& row : rows) {
    out += "<tr>";
    for (const auto& cell : row) out += "<td>" + cell + "</td>";
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string section(const std::string& title, const std::string& body) {
  return body.empty() ? "" : "<section><h2>" + title + "</h2>\n" + body + "</section>\n";
}

std::string figure(const std::string& svg, const std::string& caption) {
  return svg.empty() ? "<p class=\"note\">" + caption + "</p>\n"
                     : "<figure>" + svg + "<figcaption>" + caption + "</figcaption></figure>\n";
}

std::vector<std::string> plots_of(const std::string& page) {
  constexpr std::string_view begin = "<svg ", end = "</svg>";
  std::vector<std::string> plots;
  for (std::size_t at = page.find(begin); at != page.npos; at = page.find(begin, at + 1)) {
    const std::size_t body = page.find('>', at) + 1, stop = page.find(end, body);
    plots.push_back(page.substr(at, body - 1 - at) + " xmlns=\"http://www.w3.org/2000/svg\">\n<style>" + style +
                    "</style>\n<rect width=\"100%\" height=\"100%\" style=\"fill: var(--card)\"/>" +
                    page.substr(body, stop - body) + "</svg>\n");
  }
  return plots;
}

std::string page_of(const Events& training) { return page("allnorm train", training_sections(training)); }

std::string page_of(const std::vector<Log>& logs) {
  std::string body, title;
  std::vector<const Log*> benches;
  for (const Log& log : logs)
    if (command_of(log) == "bench") benches.push_back(&log);
  if (!benches.empty()) body += bench_sections(benches);
  for (const Log& log : logs)
    if (command_of(log) == "train")
      body += (logs.size() > 1 ? "<h1>" + escaped(log.name) + "</h1>\n" : "") + training_sections(log.events);
  for (const Log& log : logs)
    if (command_of(log) == "scale")
      body += (logs.size() > 1 ? "<h1>" + escaped(log.name) + "</h1>\n" : "") + scale_sections(log);
  for (const Log& log : logs) title += (title.empty() ? "" : ", ") + log.name;
  return page(title, body);
}

}  // namespace allnorm::launch::pages
