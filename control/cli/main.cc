// `pagesawctl`.
#include <cstdio>
#include <string_view>
#include <vector>

import pagesaw.control.cli.commands;

int main(int argc, char** argv) {
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  const pagesaw::Outcome outcome = pagesaw::RunCommand(arguments);
  std::fputs(outcome.out.c_str(), stdout);
  if (std::fflush(stdout) != 0 && outcome.exit_status == pagesaw::kDone) {
    std::fputs("error: stdout cannot be written\n", stderr);
    return pagesaw::kFailed;
  }
  std::fputs(outcome.error.c_str(), stderr);
  return outcome.exit_status;
}
