#include <gtest/gtest.h>
#include <chrono>
#include <string>
#include <thread>

import pagesaw.machine.console;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;

TEST(Console, GivesTheBacklogThenWhatFollows) {
  Console console;
  console.Append("hello ");
  console.Append("world");
  const ConsoleChunk first = console.Read(0, 6, milliseconds(0));
  EXPECT_EQ(first.data, "hello ");
  EXPECT_EQ(first.next, 6u);
  EXPECT_FALSE(first.closed);
  EXPECT_EQ(console.Read(first.next, 100, milliseconds(0)).data, "world");
}

TEST(Console, OverwritesTheOldestAndSaysSo) {
  Console console(8);
  for (int i = 0; i < 100; ++i) console.Append("0123456789");
  const ConsoleChunk chunk = console.Read(4, 100, milliseconds(0));
  EXPECT_EQ(chunk.data, "23456789");
  EXPECT_EQ(chunk.position, 992u);
  EXPECT_EQ(chunk.lost_bytes, 988u);
  EXPECT_EQ(chunk.next, 1000u);
  EXPECT_EQ(console.begin_position(), 992u);
  EXPECT_EQ(console.end_position(), 1000u);
}

TEST(Console, WaitsForOutput) {
  Console console;
  std::thread writer([&] {
    std::this_thread::sleep_for(milliseconds(20));
    console.Append("late");
  });
  EXPECT_EQ(console.Read(0, 100, milliseconds(10'000)).data, "late");
  writer.join();
}

TEST(Console, ClosingWakesReadersAndDropsLaterOutput) {
  Console console;
  std::thread closer([&] {
    std::this_thread::sleep_for(milliseconds(20));
    console.Close();
  });
  EXPECT_TRUE(console.Read(0, 100, milliseconds(10'000)).closed);
  closer.join();
  console.Append("x");
  EXPECT_EQ(console.end_position(), 0u);
}

TEST(Console, SurvivesPositionsThatWereNeverGivenOut) {
  Console console;
  console.Append("abc");
  const ConsoleChunk chunk = console.Read(~0ull, 100, milliseconds(0));
  EXPECT_EQ(chunk.data, "");
  EXPECT_EQ(chunk.next, ~0ull);
}

}  // namespace
}  // namespace pagesaw
