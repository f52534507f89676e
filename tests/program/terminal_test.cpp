// Names from files and from the command line cannot speak to the terminal.
#include "launch/terminal.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "files_support.hpp"
#include "runner.hpp"

namespace allnorm::launch {
namespace {

using namespace std::string_literals;

TEST(ForTerminal, KeepsTextAndShowsTheRestAsBytes) {
  EXPECT_EQ(for_terminal("plain, ümläut, 字, \xf0\x9f\x99\x82"), "plain, ümläut, 字, \xf0\x9f\x99\x82");
  EXPECT_EQ(for_terminal("\x1b[31m\a\b\r\t\x7f\0"s), "\\x1b[31m\\x07\\x08\\x0d\\x09\\x7f\\x00");
  EXPECT_EQ(for_terminal("\xc2\x9b"
                         "31m"),
            "\\xc2\\x9b31m");  // C1's control sequence introducer
  // not UTF-8: a lone continuation, a cut character, an overlong '/', a surrogate, beyond the last code point
  EXPECT_EQ(for_terminal("\x80|\xe5\xad|\xc0\xaf|\xed\xa0\x80|\xf4\x90\x80\x80"),
            "\\x80|\\xe5\\xad|\\xc0\\xaf|\\xed\\xa0\\x80|\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(for_terminal("a\nb"), "a b");
  EXPECT_EQ(for_terminal("a\nb", Lines::keep), "a\nb");
}

bool harmless(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c == '\n' || (c >= 0x20 && c < 0x7f); });
}

TEST(HostileNames, ReachTheTerminalAsBytes) {
  test::Workplace place;
  place.make("x.npy", {3, 4, 5});
  const std::string evil = "\x1b]0;owned\x07\x9b";
  place.write_bytes("y.npy",
                    "\x93NUMPY\x01\0"s + files_support::little(evil.size() + 12, 2) + "{'descr': '" + evil + "'");
  const std::string header = R"({"\u001b]0;owned\u0007":{"dtype":"F64","shape":[1],"data_offsets":[0,0]}})";
  place.write_bytes("s.st", files_support::little(header.size(), 8) + header);
  for (const std::string& words :
       {"apply batch_norm --input y.npy --out o"s, "apply batch_norm --input x.npy --out o --load-state s.st"s,
        "apply batch_norm --input " + evil + " --out o", "apply " + evil, evil, "apply batch_norm --out o --" + evil,
        "apply batch_norm --input x.npy --out o --set " + evil + "=1"}) {
    const test::Outcome outcome = place.run(words);
    EXPECT_TRUE(outcome.code == 2 || outcome.code == 3) << outcome.code << words;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_TRUE(harmless(outcome.err)) << outcome.err;
    EXPECT_NE(outcome.err.find("\\x1b]0;owned\\x07"), std::string::npos) << outcome.err;
  }
}

}  // namespace
}  // namespace allnorm::launch
