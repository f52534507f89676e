// `allnorm report`: a page of what bench and train have logged.
#include <gtest/gtest.h>

#include <string>

#include "runner.hpp"

namespace program_report_test {
namespace {

using namespace allnorm::test;

// Two norms, one seed, two epochs, as train logs them.
constexpr const char* training =
    R"({"event":"config","command":"train","settings":{"data":"digits","ranks":4,"batch_per_rank":[1],"split":["iid"],"epochs":2,"seeds":1,"norms":[{"norm":"batch_norm","attributes":{"sync":"none"}}]}}
{"event":"epoch","norm":"batch_norm","batch_per_rank":1,"split":"iid","seed":0,"epoch":1,"loss":2.0}
{"event":"epoch","norm":"batch_norm","batch_per_rank":1,"split":"iid","seed":0,"epoch":2,"loss":1.0}
{"event":"result","norm":"batch_norm","batch_per_rank":1,"split":"iid","seeds":1,"test_error_mean":40.0,"test_error_std":null,"per_seed":[40.0],"seconds":2.5,"exchanges":1.0,"exchange_bytes":1024.0}
{"event":"result","norm":"a<b","batch_per_rank":1,"split":"iid","seeds":1,"test_error_mean":4.0,"test_error_std":null,"per_seed":[4.0],"seconds":2.5,"exchanges":1.0,"exchange_bytes":1024.0}
)";

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++found;
  return found;
}

void expect_whole(const std::string& page) {
  for (const char* tag : {"section", "table", "svg", "figure", "main", "html"})
    EXPECT_EQ(count(page, std::string("<") + tag), count(page, std::string("</") + tag + ">")) << tag;
  for (const char* elsewhere : {"http", "src=", "url(", "@import", "<link"})  // nothing is loaded
    EXPECT_EQ(page.find(elsewhere), page.npos) << elsewhere;
  EXPECT_NE(page.find("prefers-color-scheme: dark"), page.npos);
  EXPECT_EQ(page.find("nan"), page.npos);
}

TEST(Report, ShowsAndComparesBenches) {
  const Workplace place;
  for (const char* file : {"a.jsonl", "b.jsonl"}) {
    const Outcome run = place.run("bench --shape 2,8,3,3 --shape 2,8 -n 2 -w 0 --json " + place.path(file));
    ASSERT_EQ(run.code, 0) << run.err;
  }
  const Outcome run =
      place.run("report " + place.path("a.jsonl") + " " + place.path("b.jsonl") + " -o " + place.path("r.html"));
  ASSERT_EQ(run.code, 0) << run.err;
  const std::string page = place.bytes("r.html");
  expect_whole(page);
  EXPECT_EQ(count(page, "<svg"), 2u);
  EXPECT_EQ(count(page, "<rect"), 8u);  // two shapes, two directions, two files
  EXPECT_NE(page.find("b.jsonl against a.jsonl"), page.npos);
  EXPECT_EQ(count(page, "<td>batch_norm (2,8)</td>"), 3u);
}

TEST(Report, ShowsATraining) {
  const Workplace place;
  place.write_bytes("t.jsonl", training);
  const Outcome run = place.run("report " + place.path("t.jsonl") + " --out " + place.path("r.html"));
  ASSERT_EQ(run.code, 0) << run.err;
  const std::string page = place.bytes("r.html");
  expect_whole(page);
  EXPECT_EQ(count(page, "<svg"), 2u);  // errors, losses
  EXPECT_NE(page.find("<b>40.00</b>"), page.npos);
  EXPECT_NE(page.find("a&lt;b"), page.npos);
  EXPECT_EQ(page.find("a<b"), page.npos);
}

TEST(Report, RefusesWhatIsNoLog) {
  const Workplace place;
  place.write_bytes("t.jsonl", training);
  place.write_bytes("broken.jsonl", "{\"event\":\"config\",\"command\":\"bench\"}\n{\"event\":");
  place.write_bytes("other.jsonl", "{\"event\":\"config\",\"command\":\"walk\"}\n");
  place.write_bytes("number.jsonl", "{\"event\":\"config\",\"command\":3}\n");
  place.write_bytes("half.jsonl", "{\"event\":\"config\",\"command\":\"train\"}\n");
  const std::string out = " -o " + place.path("r.html");
  const auto expect_refused = [&](const std::string& words, int code, const char* told) {
    const Outcome run = place.run("report" + words);
    EXPECT_EQ(run.code, code) << words << ": " << run.err;
    EXPECT_NE(run.err.find(told), run.err.npos) << run.err;
    EXPECT_TRUE(run.one_line()) << run.err;
  };
  expect_refused(out, 2, "FILE.jsonl is missing");
  expect_refused(" " + place.path("t.jsonl"), 2, "--out is missing");
  expect_refused(" " + place.path("none.jsonl") + out, 3, "none.jsonl");
  expect_refused(" " + place.path("broken.jsonl") + out, 3, "has in line 2");
  expect_refused(" " + place.path("other.jsonl") + out, 3, "must be of train, bench or scale");
  expect_refused(" " + place.path("number.jsonl") + out, 3, "is of command '3', must be of train, bench or scale");
  expect_refused(" " + place.path("half.jsonl") + out, 3, "lacks what train, bench and scale write");
  EXPECT_FALSE(place.exists("r.html"));
}

}  // namespace
}  // namespace program_report_test
