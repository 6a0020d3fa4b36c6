// Stands in for libFuzzer where a fuzz target is built as a test: tries the files named, then
// inputs made by chance, the same ones each time.
//   NAME [--runs=N] [FILE...]
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr std::size_t kLongestInput = 4096;

std::vector<std::uint8_t> MadeUp(unsigned number) {
  std::uint64_t state = number + 1;
  const auto next = [&state] {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  };
  for (int i = 0; i < 8; ++i) next();
  std::vector<std::uint8_t> input(next() % kLongestInput);
  for (std::uint8_t& byte : input) byte = static_cast<std::uint8_t>(next() >> 32);
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  constexpr std::string_view kRuns = "--runs=";
  unsigned long runs = 0;
  unsigned files = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with(kRuns)) {
      runs = std::strtoul(argument.c_str() + kRuns.size(), nullptr, 10);
      continue;
    }
    std::ifstream file(argument, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "error: %s: cannot be read\n", argument.c_str());
      return 2;
    }
    std::printf("%s\n", argument.c_str());
    std::fflush(stdout);
    const std::vector<char> input((std::istreambuf_iterator<char>(file)), {});
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
    ++files;
  }
  for (unsigned number = 0; number < runs; ++number) {
    const std::vector<std::uint8_t> input = MadeUp(number);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%u files and %lu inputs made by chance\n", files, runs);
  return 0;
}
