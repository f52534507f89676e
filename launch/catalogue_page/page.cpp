#include "launch/catalogue_page/page.hpp"

#include <algorithm>
#include <exception>
#include <span>
#include <thread>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "launch/verify/subject.hpp"

namespace allnorm::launch::page {

namespace {

// "Group Normalization" of "Group Normalization: mean and variance of ...", and what follows.
std::string title_of(const Row& row) { return std::string(row.summary.substr(0, row.summary.find(':'))); }
std::string what_of(const Row& row) {
  const auto colon = row.summary.find(": ");
  return colon == row.summary.npos ? "" : std::string(row.summary.substr(colon + 2));
}

// As a page makes it of the title.
std::string anchor_of(const Row& row) {
  std::string anchor;
  for (const char c : title_of(row))
    if (c == ' ')
      anchor += '-';
    else if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')
      anchor += c;
    else if (c >= 'A' && c <= 'Z')
      anchor += static_cast<char>(c - 'A' + 'a');
  return anchor;
}

// Cells of a table end at a bar.
std::string cell(std::string text) {
  for (std::size_t at = 0; (at = text.find('|', at)) != text.npos; at += 2) text.insert(at, "\\");
  return text;
}

std::string text_of(Axes axes) {
  constexpr std::pair<Axis, const char*> words[] = {{Axis::sample, "sample"},
                                                    {Axis::group, "group of channels"},
                                                    {Axis::channel, "channel"},
                                                    {Axis::space, "position"},
                                                    {Axis::leading, "leading index"},
                                                    {Axis::row, "row"},
                                                    {Axis::partner, "other of its group"}};
  std::string text;
  for (const auto& [axis, word] : words)
    if (axes.has(axis)) text += (text.empty() ? "" : " and ") + std::string(word);
  return text;
}

// ---- formulas ------------------------------------------------------------------------------------------------------

// Of a row with mean and variance, by what it has.
std::string formula_of_norm(const Row& row) {
  const NormOptions o = Layer(row).options;
  const auto has = [&](std::string_view name) { return row.tensor(name) != nullptr; };
  const bool maps = row.operation == OperationKind::maps;
  std::string hat = row.centred ? "(x − μ)" : "x";
  if (row.scaled) hat += "/σ";
  if (o.renorm) hat = "(" + hat + "·r + d)";
  std::string y = hat;
  if (has("gain")) y = "gain · " + hat;
  if (has("weight") || has("gamma")) y = (maps ? "(1 + γ) " : "γ ") + hat;
  if (has("bias") || has("beta")) y += " + β";
  if (has("residual")) y = "act(" + y + " + residual)";
  if (has("tau")) y = "max(" + y + ", τ)";
  std::string text = "y = " + y;
  const std::string learned = has("eps_learned") ? " + |eps_learned|" : "";
  if (row.scaled) text += row.centred ? "\nσ² = v + ε" : "\nσ² = mean of x² + ε" + learned;
  if (o.renorm) text += "\nr = clip(σ/σ_run, 1/r_max, r_max)\nd = clip((μ − μ_run)/σ_run, −d_max, d_max)";
  if (o.window > 1)
    text += "\nμ = mean of μ_j + ⟨dμ_j, Δθ_j⟩ over the window\nv likewise, and the spread of these means";
  if (o.minibatches > 1) text += "\nμ, v of the mini-batches of the batch so far, merged";
  return text;
}

std::string formula_of(const Row& row) {
  switch (row.operation) {
    case OperationKind::norm:
    case OperationKind::maps:
      return formula_of_norm(row);
    case OperationKind::conditional:
      return formula_of_norm(row) + "\nγ, β of each sample: rows of tables" +
             (row.tensor("delta_weight") != nullptr ? ", and what is added to them" : ", or mixtures of rows");
    case OperationKind::adaptive:
      return "y = α (σ′ (x − μ)/σ + μ′) + (1 − α) x\nσ² = v + ε, σ′² = v′ + ε of the style";
    case OperationKind::weight:
      return "w = g v/|v|";
    case OperationKind::switchable:
      return "y = γ (x − μ)/σ + β\nμ = Σ softmax(mean_logits) μ_k\nσ² = ε + Σ softmax(var_logits) v_k\n"
             "k: instance, layer, batch";
    case OperationKind::neighbours:
      return "y_c = x_c (k + a Σ x_j²)^(−β)\nover the channels j of the window of c; a = alpha/size or alpha";
    case OperationKind::cosine:
      return "y_ij = ⟨x_i, w_j⟩ / (n(|x_i|) n(|w_j|))\nn: the length, with eps as eps_mode says";
    case OperationKind::whitening:
      break;
  }
  const std::string sigma = "y = W (x − μ)\nΣ = covariance of the group's channels + ε 1\n";
  return row.attribute("iterations") == nullptr
             ? sigma + "W = Σ^(−1/2)"
             : sigma + "S = Σ/tr Σ\nP₀ = 1, P_k = (3 P_{k−1} − P_{k−1}³ S)/2\nW = P_iterations / √tr Σ";
}

// ---- passes and exchanges ------------------------------------------------------------------------------------------

// How often kernels read x (backward: x and dy) from its beginning to its end: once for sums, once for the map. What
// lies in a cache or on the chip meanwhile is read from memory once (docs/design.md).
std::string passes_of(const Row& row) {
  switch (row.operation) {
    case OperationKind::neighbours:
      return "forward 1, backward 1";
    case OperationKind::cosine:
      return "forward 2 (lengths, map) and a product of matrices, backward such a product and 2 for each of both";
    case OperationKind::whitening:
      return "forward 3 (means, products, map), backward 2";
    default:
      break;
  }
  if (!row.centred && !row.scaled) return "forward 1 (map), backward 2 (sums, map)";
  const std::string patches = Layer(row).options.compensates() ? " and 1 over the convolution's input" : "";
  const std::string columns = row.statistics.has(Axis::leading) ? ", and 1 for gradients by trailing index" : "";
  return "forward 2 (sums, map)" + patches + ", backward 2" + columns;
}

// What one of two ranks sends in a training step (forward and backward) that has all of its past.
struct Sent {
  double exchanges = 0, numbers = 0;
};
Sent sent_in(const verify::Trial& trial) {
  const auto script = verify::script_of(trial, DType::f64);
  const auto worlds = threads(2);
  std::vector<Sent> sent(worlds.size());
  std::vector<std::exception_ptr> errors(worlds.size());
  const auto body = [&](std::size_t r) {
    try {
      Queue queue = Queue::cpu();
      const verify::Cut cut(trial, static_cast<int>(r), static_cast<int>(worlds.size()));
      const auto own = cut.part(verify::spec_of(*trial.layer.row, "input"), script[0].given.find("input")->second);
      verify::Subject subject(cut.layer(), own.shape[1], DType::f64, Order::channels_first, worlds[r], queue);
      for (const verify::Step& step : script) {
        if (!step.training) break;
        const auto before = worlds[r]->traffic();
        subject.call(cut.part(step.given), true);
        const auto after = worlds[r]->traffic();
        sent[r] = {static_cast<double>(after.exchanges - before.exchanges),
                   static_cast<double>(after.bytes - before.bytes) / sizeof(double)};
      }
    } catch (const Error& error) {
      worlds[r]->abort(error);
      errors[r] = std::current_exception();
    }
  };
  std::thread other(body, 1);
  body(0);
  other.join();
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
  return sent[0];
}

std::string whole(double number) { return std::to_string(static_cast<long long>(number)); }

// Counted, in two calls of different sizes.
std::string exchange_of(const Row& row) {
  if (row.attribute("sync") == nullptr) return "nothing";
  const auto all = reference::definitions();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const reference::Defined& one) { return one.row == row.name; });
  expect(found != all.end(), Code::unsupported, [&] {
    return std::string(row.name) + " is not in launch/reference/definitions.cpp, must be there to be tried";
  });
  const auto trials = verify::trials_of(row, *found);
  const auto sets = [&row](const verify::Trial& trial) {
    const Axes groups = row.statistics.has(Axis::partner) ? Axes{Axis::channel} : row.statistics;
    return static_cast<double>(trial.layer.shape_of(groups, Shape(std::span(trial.shape))).elements());
  };
  const verify::Trial &small = trials[0], &large = trials[1];
  const Sent first = sent_in(small), second = sent_in(large);
  const double each = (second.numbers - first.numbers) / (sets(large) - sets(small)),
               more = first.numbers - each * sets(small);
  const bool pairs = row.statistics.has(Axis::partner);
  return "with `sync` " + whole(first.exchanges) + " messages a training step, forward and backward, with together " +
         whole(each) + " numbers for each " + (pairs ? "channel (" + small.attributes + ")" : text_of(row.statistics)) +
         " and " + whole(more) + " more";
}

// ---- the page ------------------------------------------------------------------------------------------------------

std::string statistics_of(const Row& row) {
  if (!row.centred && !row.scaled) return "none; a gamma and a beta for each " + text_of(row.statistics);
  const std::string each = "of each " + text_of(row.statistics);
  if (row.statistics_with == nullptr) return each;
  return each + " (another set with other values of `" + std::string(row.statistics_by) + "`)";
}

// The first row whose list of that kind is this one's; rows of a family share theirs.
template <class Member>
const Row& first_with(const Row& row, Member Row::*list) {
  return *std::find_if(catalogue().begin(), catalogue().end(),
                       [&](const Row& other) { return (other.*list).data() == (row.*list).data(); });
}
std::string link_to(const Row& row) { return "[`" + std::string(row.name) + "`](#" + anchor_of(row) + ")"; }

// With their defaults; of a family those that differ from the first row's.
std::string attributes_of(const Row& row) {
  if (row.attributes.empty()) return "none";
  const Row& first = first_with(row, &Row::attributes);
  const Layer layer(row), other(first);
  std::string text;
  for (const Attribute& attribute : row.attributes) {
    const std::string value = attribute.get(layer.options);
    if (&first != &row && value == attribute.get(other.options)) continue;
    text +=
        (text.empty() ? "" : ", ") + ("`" + std::string(attribute.name)) + (value.empty() ? "`" : "=" + value + "`");
  }
  if (&first == &row) return text;
  return "those of " + link_to(first) + (text.empty() ? "" : ", but " + text);
}

std::string tensors_of(const Row& row) {
  const Row& first = first_with(row, &Row::tensors);
  if (&first != &row && !row.tensors.empty()) return "Tensors are those of " + link_to(first) + ".\n";
  std::string text = "| tensor | shape | |\n|---|---|---|\n";
  const bool compares = row.vectors() != nullptr;
  text += "| `input` | " + std::string(compares ? "(N,K)" : row.by_trailing() ? "any" : "(N,C,space)") + " | |\n";
  for (const TensorSpec& tensor : row.tensors)
    text += "| `" + std::string(tensor.name) + "` | " + cell(shape_text(tensor)) + " | " +
            cell(std::string(tensor.help)) + " |\n";
  for (const OutputSpec& output : row.outputs)
    if (row.gradient(output.name) == nullptr && row.state(output.name) == nullptr)
      text += "| → `" + std::string(output.name) + "` | " + cell(shape_text(output.axes)) + " | " +
              cell(std::string(output.help)) + " |\n";
  return text;
}

std::string section_of(const Row& row) {
  const std::string name(row.name);
  std::string text = "## " + title_of(row) + "\n\n`" + name + "`: " + what_of(row) + ". " + std::string(row.source) +
                     ".\n\n![" + name + "](catalogue/" + name + ".svg)\n\n";
  std::string formula = formula_of(row);  // a line for each equation
  for (std::size_t at = 0; (at = formula.find('\n', at)) != formula.npos; at += 5) formula.insert(at + 1, "    ");
  text += "    " + formula + "\n\n";
  text += "- **Statistics**: " + statistics_of(row) + ".\n";
  text += "- **Attributes**: " + attributes_of(row) + ".\n";
  text += "- **Over ranks**: " + exchange_of(row) + ".\n";
  text += "- **Passes over x**: " + passes_of(row) + ".\n\n";
  return text + tensors_of(row) + "\n";
}

}  // namespace

std::string catalogue_page() {
  std::string text =
      "# The catalogue\n\n"
      "Made from the library's own table by `catalogue_page docs`; a test compares. A picture shows the values of an "
      "input, channels to\n"
      "the right, positions downwards, samples away from the eye, and marked one set of those that share statistics. "
      "Of what travels over\n"
      "ranks the numbers were counted in a call on two ranks. [equations.md](equations.md) has gradients, over ranks "
      "too, and\n"
      "[what surveys list and this library does not have](equations.md#out-of-scope); `allnorm apply LAYER --help` "
      "explains each attribute.\n\n"
      "| | layer | statistics of each | source |\n|---|---|---|---|\n";
  for (const Row& row : catalogue()) {
    text += "| " + link_to(row) + " | " + title_of(row) + " | " + text_of(row.statistics) + " | " +
            std::string(row.source) + " |\n";
  }
  text += "\n";
  for (const Row& row : catalogue()) text += section_of(row);
  text.pop_back();
  return text;
}

}  // namespace allnorm::launch::page
