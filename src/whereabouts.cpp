#include "src/whereabouts.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <type_traits>
#include <utility>

#include <unistd.h>

#include "src/exchange.hpp"

namespace allnorm {

namespace {

constexpr std::uint64_t question_tag = question_context << 32, answer_tag = question_tag | 1;
constexpr double time_to_answer = 0.5;  // seconds: a rank that waits looks for questions far more often
constexpr std::size_t most_details = 3, most_names = 8;

// Seconds that pass whatever clock a deadline goes by.
double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// On the wire: a question is its number; an answer this head and `count` ranks.
struct AnswerHead {
  std::uint64_t number = 0;
  Waiting waiting{};
  std::uint64_t count = 0;
};
static_assert(std::is_trivially_copyable_v<AnswerHead>);

}  // namespace

std::string are_missing(const std::vector<std::string>& names) {
  const std::size_t shown = names.size() > most_names ? most_names - 1 : names.size();
  std::string text;
  for (std::size_t i = 0; i < shown; ++i) text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  if (shown < names.size()) text += " and " + std::to_string(names.size() - shown) + " more";
  return text + (names.size() == 1 ? " is missing" : " are missing");
}

Place::Place(const Header& header) noexcept
    : name(header.name), direction(header.get(Field::direction)), call(header.get(Field::call)) {}

Header Place::header() const {
  Header header;
  header.name = name;
  header.name.back() = '\0';
  header.set(Field::direction, direction);
  header.set(Field::call, call);
  return header;
}
std::string Place::text() const { return describe(header()); }

Waiting::Waiting(const Header& header, double waited) noexcept : place(header), seconds(waited), pid(::getpid()) {
  if (::gethostname(host.data(), host.size() - 1) != 0) host = {};
}

std::string Whereabouts::last_heard_of(const Links& links, int rank) const {
  const auto at = static_cast<std::size_t>(rank);
  if (at >= heard_.size() || heard_[at].name.front() == '\0') return {};
  return "; " + links.name_of(rank) + " was last heard of at " + heard_[at].text();
}

void Whereabouts::answer(Links& links, const Header& at, double waited, const std::function<Ranks()>& waits_for) {
  const double time = seconds();
  if (time < next_look_) return;
  next_look_ = time + std::min(0.02 + 1e-4 * links.size(), 0.1);  // a look asks the links once per rank
  for (int rank = 0; rank < links.size(); ++rank) {
    if (rank == links.rank()) continue;
    while (const auto question = links.poll(rank, question_tag)) {
      AnswerHead head{0, Waiting(at, waited), 0};
      std::memcpy(&head.number, question->data(), std::min(question->size(), sizeof head.number));
      const Ranks ranks = waits_for();
      head.count = ranks.size();
      const auto bytes = std::make_shared<Bytes>(sizeof head + ranks.size() * sizeof ranks[0]);
      std::memcpy(bytes->data(), &head, sizeof head);
      if (!ranks.empty()) std::memcpy(bytes->data() + sizeof head, ranks.data(), ranks.size() * sizeof ranks[0]);
      links.post(std::span(&rank, 1), answer_tag, bytes);
    }
  }
}

void Whereabouts::take_answers(Links& links, int from) {
  while (const auto bytes = links.poll(from, answer_tag)) {
    AnswerHead head;
    if (bytes->size() < sizeof head) continue;
    std::memcpy(&head, bytes->data(), sizeof head);
    if (head.count != (bytes->size() - sizeof head) / sizeof(int)) continue;
    Answer answer{head.number, head.waiting, Ranks(head.count)};
    if (head.count > 0) std::memcpy(answer.waits_for.data(), bytes->data() + sizeof head, head.count * sizeof(int));
    const auto unknown = [&](int rank) { return rank < 0 || rank >= links.size(); };
    std::erase_if(answer.waits_for, unknown);
    answers_[from] = std::move(answer);
  }
}

Inquiry::Inquiry(Links& links, std::vector<int> others)
    : links_(links), others_(std::move(others)), number_(++links.whereabouts.questions_) {}

const Whereabouts::Answer* Inquiry::answer_of(int rank) const {
  const auto& answers = links_.whereabouts.answers_;
  const auto found = answers.find(rank);
  return found != answers.end() && found->second.number >= number_ ? &found->second : nullptr;
}

std::vector<int> Inquiry::reached(const std::vector<int>& waits_for) const {
  std::set<int> seen{links_.rank()};
  std::vector<int> ranks;
  const auto add = [&](const std::vector<int>& more) {
    for (const int rank : more)
      if (seen.insert(rank).second) ranks.push_back(rank);
  };
  add(waits_for);
  for (std::size_t i = 0; i < ranks.size(); ++i)
    if (const auto* answer = answer_of(ranks[i])) add(answer->waits_for);
  return ranks;
}

void Inquiry::look(const std::vector<int>& waits_for) {
  for (const auto& [rank, when] : asked_) links_.whereabouts.take_answers(links_, rank);
  std::vector<int> ranks = reached(waits_for);
  ranks.insert(ranks.end(), others_.begin(), others_.end());
  for (const int rank : ranks) {
    if (!asked_.try_emplace(rank, seconds()).second) continue;
    const auto bytes = std::make_shared<Bytes>(sizeof number_);
    std::memcpy(bytes->data(), &number_, sizeof number_);
    links_.post(std::span(&rank, 1), question_tag, bytes);
  }
}

bool Inquiry::over() const {
  const double time = seconds();
  return std::all_of(asked_.begin(), asked_.end(), [&](const auto& asked) {
    return answer_of(asked.first) != nullptr || time - asked.second >= time_to_answer;
  });
}

std::string Inquiry::findings(const std::vector<int>& waits_for, const std::string& so_far) const {
  std::vector<std::string> missing, details;
  for (const int rank : reached(waits_for)) {
    const std::string name = links_.name_of(rank);
    if (const auto* answer = answer_of(rank)) {
      if (answer->waits_for.empty()) continue;  // it has what it waited for, by now
      details.push_back("; " + name + " waits for " + links_.name_of(answer->waits_for.front()) +
                        (answer->waits_for.size() > 1 ? " and others" : "") + " at " + answer->waiting.place.text());
      continue;
    }
    missing.push_back(name);
    if (std::string heard = links_.whereabouts.last_heard_of(links_, rank); !heard.empty())
      details.push_back(std::move(heard));
  }
  std::string text =
      (missing.empty() ? "no rank is missing, they wait for each other" : are_missing(missing)) + ", " + so_far;
  for (std::size_t i = 0; i < std::min(details.size(), most_details); ++i) text += details[i];
  return text;
}

LateReport Inquiry::report(const std::vector<int>& waits_for, const Waiting& own, std::string line) const {
  const std::vector<int> waited_for = reached(waits_for);
  const auto& heard = links_.whereabouts.heard_;
  LateReport report{std::move(line), links_.rank(), true, {}};
  std::set<int> ranks{links_.rank()};
  for (const auto& [rank, when] : asked_) ranks.insert(rank);
  for (const int rank : ranks) {
    LateRank known{.rank = rank, .name = links_.name_of(rank)};
    const auto* const answer = answer_of(rank);
    const auto at = static_cast<std::size_t>(rank);
    Place place = at < heard.size() ? heard[at] : Place{};
    if (answer != nullptr || rank == links_.rank()) {
      const Waiting& waiting = answer != nullptr ? answer->waiting : own;
      place = waiting.place;
      known.is = LateRank::Is::waiting;
      known.seconds = waiting.seconds;
      known.host.assign(waiting.host.data(), strnlen(waiting.host.data(), waiting.host.size()));
      known.pid = waiting.pid;
      report.speaks = report.speaks && rank >= links_.rank();
    } else if (std::find(waited_for.begin(), waited_for.end(), rank) != waited_for.end()) {
      known.is = LateRank::Is::missing;
    }
    known.layer.assign(place.name.data(), strnlen(place.name.data(), place.name.size()));
    const std::string text = place.text();  // "bn, call 3, forward"
    known.direction = text.substr(text.rfind(' ') + 1);
    known.call = place.call;
    report.ranks.push_back(std::move(known));
  }
  return report;
}

}  // namespace allnorm
