// `run`: a guest in the foreground.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import :vm_settings;
import pagesaw.control.cli.console_input;
import pagesaw.control.cli.patience;
import pagesaw.control.cli.private_daemon;
import pagesaw.control.endpoint;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

sigset_t EndingSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals, number);
  return signals;
}

// While it exists, Ctrl-C and the like stop the VM instead of this program. A second one does end
// it.
class StopOnSignal {
 public:
  // `before_exit` comes before this program ends at once.
  StopOnSignal(Client& client, std::string vm, std::function<void()> before_exit)
      : before_exit_(std::move(before_exit)),
        thread_([this, &client, name = std::move(vm)] { Wait(client, name); }) {}
  ~StopOnSignal() {
    over_ = true;
    thread_.join();
  }
  StopOnSignal(const StopOnSignal&) = delete;
  StopOnSignal& operator=(const StopOnSignal&) = delete;

  bool happened() const { return happened_; }

 private:
  void Wait(Client& client, const std::string& name) {
    const sigset_t signals = EndingSignals();
    const timespec moment = {.tv_sec = 0, .tv_nsec = 50'000'000};
    while (!over_) {
      if (sigtimedwait(&signals, nullptr, &moment) < 0) continue;
      if (happened_.exchange(true)) {
        before_exit_();
        _exit(kInterrupted);
      }
      v1::StopVmRequest request;
      request.set_name(name);
      // If that fails, the console's stream fails as well and says why.
      (void)client.Call(request);
    }
  }

  const std::function<void()> before_exit_;
  std::atomic<bool> over_ = false;
  std::atomic<bool> happened_ = false;
  std::thread thread_;
};

struct Followed {
  v1::VmExit exit;
  bool stopped = false;  // `exit` is set
  bool output_failed = false;
};

// Copies the console to stdout until the VM stops.
absl::StatusOr<Followed> FollowConsole(Client& client, const std::string& name) {
  Followed followed;
  const auto status =
      client.StreamConsole(name, [&followed](const v1::StreamConsoleResponse& message) {
        if (message.lost_bytes() > 0) {
          std::fprintf(stderr, "pagesawctl: %lld bytes of output came too fast and are lost\n",
                       static_cast<long long>(message.lost_bytes()));
        }
        if (message.has_exit()) {
          followed.exit = message.exit();
          followed.stopped = true;
          return true;
        }
        Print(message.data());
        if (std::fflush(stdout) != 0) followed.output_failed = true;
        return !followed.output_failed;
      });
  if (!status.ok()) return status;
  return followed;
}

// The exit status for `exit`, with a word on stderr unless the guest chose it.
int StatusOf(const v1::VmExit& exit, bool interrupted) {
  if (exit.reason() == v1::VmExit::DEBUG_EXIT || exit.reason() == v1::VmExit::POWER_OFF) {
    return exit.process_status();
  }
  const std::string why = interrupted ? "interrupted" : exit.description();
  std::fprintf(stderr, "pagesawctl: %s\n", why.c_str());
  if (interrupted) return kInterrupted;
  // Who else stopped it did not let it finish.
  return exit.reason() == v1::VmExit::REQUESTED ? int{kFailed} : exit.process_status();
}

ConsoleInput::Result TypeInto(Client& client, const std::string& name, const std::string& data) {
  v1::WriteConsoleRequest request;
  request.set_name(name);
  request.set_data(data);
  const absl::Status status = client.Call(request).status();
  if (status.ok()) return ConsoleInput::Result::kTyped;
  return absl::IsResourceExhausted(status) ? ConsoleInput::Result::kNoRoom
                                           : ConsoleInput::Result::kFailed;
}

struct Ended {
  absl::StatusOr<Followed> followed;
  bool interrupted = false;
};

// The terminal has its settings back when this returns.
Ended FollowBothWays(Client& client, const std::string& name) {
  ConsoleInput input([&](const std::string& data) { return TypeInto(client, name, data); },
                     [] { kill(getpid(), SIGINT); });
  const StopOnSignal stop(client, name, [&input] { input.Restore(); });
  absl::StatusOr<Followed> followed = FollowConsole(client, name);
  return {.followed = std::move(followed), .interrupted = stop.happened()};
}

absl::StatusOr<int> StartAndFollow(Client& client, const std::string& name) {
  v1::StartVmRequest start;
  start.set_name(name);
  if (const auto started = client.Call(start); !started.ok()) return started.status();
  const auto [followed, interrupted] = FollowBothWays(client, name);
  if (!followed.ok()) {
    if (interrupted) return int{kInterrupted};
    return followed.status();
  }
  if (followed->output_failed) return absl::UnavailableError("stdout cannot be written any more");
  if (!followed->stopped) return absl::InternalError("the console ended before the VM");
  return StatusOf(followed->exit, interrupted);
}

absl::Status Create(Client& client, const std::string& name, const v1::CreateVmRequest& request) {
  const Patience patience([&client, &name]() -> std::string {
    v1::GetLoadProgressRequest question;
    question.set_name(name);
    const auto progress = client.Call(question);
    if (!progress.ok() || progress->total_bytes() == 0) return "making the VM";
    if (progress->done_bytes() == progress->total_bytes()) {
      return absl::StrCat("putting ", progress->total_bytes(), " bytes into the guest's memory");
    }
    return absl::StrCat("loading image and initrd: ", progress->done_bytes(), " of ",
                        progress->total_bytes(), " bytes");
  });
  return client.Call(request).status();
}

absl::StatusOr<int> Run(const ParsedCommand& parsed) {
  const auto endpoint = EndpointOf(parsed);
  if (!endpoint.ok()) return endpoint.status();
  const std::string id = parsed.Value("name", absl::StrCat("run-", getpid()));
  const auto name = VmNameOf(id);
  if (!name.ok()) return name.status();
  const auto config = VmConfigOf(parsed, parsed.operands()[0]);
  if (!config.ok()) return config.status();

  // From here on signals are for whoever waits for them, in threads of libraries too.
  const sigset_t signals = EndingSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  std::unique_ptr<PrivateDaemon> own;
  if (!IsListening(*SocketPathOf(*endpoint))) {
    auto started = PrivateDaemon::Start();
    if (!started.ok()) return started.status();
    own = *std::move(started);
  }
  Client client(own ? own->endpoint() : *endpoint);
  v1::CreateVmRequest create;
  create.set_vm_id(LastPart(*name));
  *create.mutable_config() = *config;
  if (const auto made = Create(client, *name, create); !made.ok()) return made;
  auto status = StartAndFollow(client, *name);
  v1::DeleteVmRequest remove;
  remove.set_name(*name);
  // It may be gone already; then the status above says what happened.
  (void)client.Call(remove);
  return status;
}

}  // namespace

std::vector<Command> RunCommands() {
  std::vector<OptionSpec> options = VmSettingOptions();
  options.push_back({.name = "name",
                     .placeholder = "NAME",
                     .help = "name of the VM while it runs; default: run-PID"});
  options.push_back(kSocketOption);
  return {
      {.spec = {.name = "pagesawctl run",
                .summary = "Runs a guest in the foreground, its console on stdin and stdout.",
                .operands = {{.name = "IMAGE",
                              .help = "ELF image (multiboot, PVH) or Linux kernel (bzImage)"}},
                .options = std::move(options),
                .details = "Uses the daemon at --socket, or a private one if none listens there.\n"
                           "What is typed goes to the guest's virtio console once a driver uses "
                           "one, else to its\n"
                           "serial port: from a terminal in raw mode, where Ctrl-a x quits and "
                           "Ctrl-a twice is\n"
                           "one Ctrl-a, or from a pipe or file up to its end.\n"
                           "Exit status: (value << 1) | 1 if the guest writes value to the\n"
                           "isa-debug-exit port; 124 past the time limit; 130 after Ctrl-C or "
                           "Ctrl-a x; 2 for bad\n"
                           "usage; 1 for every other failure.",
                .example = "pagesawctl run bazel-bin/guests/tour.elf --memory=64M"},
       .run = Run}};
}

}  // namespace pagesaw
