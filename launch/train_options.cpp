// The options of `allnorm train` and their help.
#include "launch/train_options.hpp"

#include <ostream>
#include <string_view>

#include "launch/choice.hpp"
#include "launch/help.hpp"
#include "src/attributes.hpp"

namespace allnorm::launch {

namespace po = boost::program_options;

namespace {

// A whole number of at least 1.
po::typed_value<std::int64_t>* count(const std::string& option, std::int64_t* value) {
  return po::value(value)->notifier([option](std::int64_t given) {
    constexpr std::int64_t most = 1'000'000;  // keeps products of them in range
    expect(given >= 1 && given <= most, Code::invalid_argument,
           [&] { return "--" + option + " is " + std::to_string(given) + ", must be 1 to " + std::to_string(most); });
  });
}

}  // namespace

po::options_description describe(TrainOptions& options) {
  po::options_description own("Options of train");
  auto add = own.add_options();
  add("data", po::value(&options.data)->value_name("DIR"),
      "folder of the images: digits, MNIST or Fashion-MNIST (IDX), CIFAR-10 (binary); recognised by its files; "
      "without it the digits that come with allnorm");
  add("norm", po::value(&options.norm_list)->value_name("LIST"),
      "normalizations to compare, NAME[:attr=value...] separated by commas, with + between a layer of weights and a "
      "norm that are used together, or all; without it batch_norm, sync_batch_norm, batch_renorm, "
      "cross_iteration_batch_norm and group_norm");
  add("batch-per-rank", count("batch-per-rank", &options.batch)->value_name("B")->default_value(options.batch),
      "images per rank and call");
  add("accumulate", count("accumulate", &options.accumulate)->value_name("T"),
      "calls per rank and update, gradients averaged; without it the norm's minibatches");
  add("epochs", count("epochs", &options.epochs)->value_name("E")->default_value(options.epochs),
      "passes over the images");
  add("lr", po::value<double>()->value_name("RATE")->notifier([&options](double rate) {
    expect(rate > 0 && rate < 1e6, Code::invalid_argument,
           [&] { return "--lr is " + attributes::text_of(rate) + ", must be above 0 and below 1e6"; });
    options.lr = rate;
  }),
      "peak learning rate; without it 0.3 * images per update / 32");
  add("seeds", count("seeds", &options.seeds)->value_name("S")->default_value(options.seeds),
      "runs with seeds 0 to S-1");
  add("split",
      (new Choice("split", &options.split_word, {split_names.begin(), split_names.end()}))
          ->value_name("KIND")
          ->default_value(options.split_word),
      "how images are dealt to the ranks: iid, label (each rank sees few classes) or domain (each rank sees another "
      "contrast and brightness)");
  add("preset", (new Choice("preset", &options.preset, {"demo", "sweep"}))->value_name("NAME"),
      "demo: 4 ranks of one image; sweep: 4 ranks of 1, 2, 4, 8 and 16 images, and 2 split by label and by domain");
  add("log", po::value(&options.log)->value_name("F.jsonl"),
      "write events, one JSON object a line; F.csv: a line per epoch");
  add("tensorboard", po::value(&options.tensorboard)->value_name("DIR"),
      "write the numbers of every epoch for TensorBoard, a folder per norm, batch and seed");
  add("report", po::value(&options.report)->value_name("F.html"), "write one page with plots and tables");
  add("checkpoint", po::value(&options.checkpoint)->value_name("F.safetensors"),
      "write the state at every epoch's end");
  add("resume", po::value(&options.resume)->value_name("F.safetensors"), "go on from a checkpoint of the same run");
  add("resume-if-present", po::value(&options.resume_if_present)->value_name("F.safetensors"),
      "the same, or a start where there is no such file: for jobs that a scheduler starts again");
  add("progress",
      (new Choice("progress", &options.progress_word, {"auto", "bar", "lines", "none"}))
          ->value_name("KIND")
          ->default_value(options.progress_word),
      "signs of life of rank 0: bar (on the terminal), lines (one per epoch on stderr), none, or auto: a bar where "
      "stderr is a terminal, else lines");
  return own.add(describe(options.ranks));
}

void help_train(std::ostream& out) {
  TrainOptions options;
  out << "allnorm train [options]\n\n";
  print_text(
      out,
      "Trains a small convolutional network on real images, data-parallel over the ranks, once per normalization "
      "and seed, and compares the test errors. docs/experiment.md describes the experiment.");
  out << "\nOptions:\n";
  print_options(out, describe(options));
  out << "\nNormalizations for --norm:\n";
  print_layers(out);
  out << "\n";
  print_text(out,
             "Their attributes: allnorm apply NAME --help. Attributes that are not given have the experiment's "
             "values.");
  print_examples(out, {"allnorm train --norm batch_norm,sync_batch_norm --ranks 4",
                       "allnorm train --norm group_norm:groups=4 --epochs 5 --log run.jsonl --report run.html",
                       "mpirun -n 4 allnorm train --preset demo --checkpoint run.safetensors"});
  out << "\n";
  print_exit_codes(out);
}

}  // namespace allnorm::launch
