#include "src/whereabouts.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <type_traits>

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
  Place place{};
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

std::string Place::text() const {
  Header header;
  header.name = name;
  header.name.back() = '\0';
  header.set(Field::direction, direction);
  header.set(Field::call, call);
  return describe(header);
}

void Whereabouts::answer(Links& links, const Header& at, const std::function<Ranks()>& waits_for) {
  const double time = seconds();
  if (time < next_look_) return;
  next_look_ = time + std::min(0.02 + 1e-4 * links.size(), 0.1);  // a look asks the links once per rank
  for (int rank = 0; rank < links.size(); ++rank) {
    if (rank == links.rank()) continue;
    while (const auto question = links.poll(rank, question_tag)) {
      AnswerHead head{0, Place(at), 0};
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
    Answer answer{head.number, head.place, Ranks(head.count)};
    if (head.count > 0) std::memcpy(answer.waits_for.data(), bytes->data() + sizeof head, head.count * sizeof(int));
    const auto unknown = [&](int rank) { return rank < 0 || rank >= links.size(); };
    std::erase_if(answer.waits_for, unknown);
    answers_[from] = std::move(answer);
  }
}

Inquiry::Inquiry(Links& links) : links_(links), number_(++links.whereabouts.questions_) {}

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
  for (const int rank : reached(waits_for)) {
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

std::string Inquiry::findings(const std::vector<int>& waits_for, const std::string& patience) const {
  std::vector<std::string> missing, details;
  const auto& heard = links_.whereabouts.heard_;
  for (const int rank : reached(waits_for)) {
    const std::string name = links_.name_of(rank);
    if (const auto* answer = answer_of(rank)) {
      if (answer->waits_for.empty()) continue;  // it has what it waited for, by now
      details.push_back(name + " waits for " + links_.name_of(answer->waits_for.front()) +
                        (answer->waits_for.size() > 1 ? " and others" : "") + " at " + answer->place.text());
      continue;
    }
    missing.push_back(name);
    const auto at = static_cast<std::size_t>(rank);
    if (at < heard.size() && heard[at].name.front() != '\0')
      details.push_back(name + " was last heard of at " + heard[at].text());
  }
  std::string text = (missing.empty() ? "no rank is missing, they wait for each other" : are_missing(missing)) +
                     ", not done after " + patience;
  for (std::size_t i = 0; i < std::min(details.size(), most_details); ++i) text += "; " + details[i];
  return text;
}

}  // namespace allnorm
