// The daemon: loads plugins, makes VMs for clients, ends cleanly on SIGINT and SIGTERM.
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

import pagesaw.control.command_line;
import pagesaw.control.endpoint;
import pagesaw.control.parts;
import pagesaw.control.plugin_set;
import pagesaw.control.server;
import pagesaw.core.plugin;
import pagesaw.machine.vm_manager;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

enum ExitStatus { kDone = 0, kFailed = 1, kUsage = 2 };

CommandSpec Spec() {
  return {.name = "pagesawd",
          .summary = "Runs virtual machines for clients of the API pagesaw.control.v1.",
          .operands = {},
          .options = {{.name = "listen",
                       .placeholder = "unix:PATH",
                       .help = "socket to listen at; default: $XDG_RUNTIME_DIR/pagesaw.sock, "
                               "or /tmp/pagesaw-UID.sock"},
                      {.name = "plugin",
                       .placeholder = "FILE.so",
                       .help = "load a plugin beside the built-in vmx, svm and mbec",
                       .repeatable = true}},
          .details =
              "Ends on SIGINT or SIGTERM: stops every VM and removes the socket.\n"
              "Exit status: 0 ended by a signal, 1 could not start, 2 usage.",
          .example = "pagesawd --listen=unix:/tmp/pagesaw.sock"};
}

int Report(const absl::Status& status, int exit_status) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return exit_status;
}

// Every built-in plugin. Nothing registers itself.
absl::Status AddBuiltInPlugins(PluginSet& plugins) {
  std::unique_ptr<Plugin> built_in[] = {vmx::MakeVmxPlugin(), svm::MakeSvmPlugin(),
                                        mbec::MakeMbecPlugin()};
  for (auto& plugin : built_in) {
    if (auto status = plugins.Add(std::move(plugin)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status LoadPlugins(const std::vector<std::string>& files, PluginSet& plugins) {
  for (const std::string& file : files) {
    if (auto status = plugins.Load(file); !status.ok()) {
      return absl::Status(status.code(), "--plugin=" + std::string(status.message()));
    }
  }
  return absl::OkStatus();
}

// The signals that end the daemon, held back for sigwait in every thread made from now on.
sigset_t HoldBackSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

int Serve(const std::string& endpoint, const std::vector<std::string>& plugin_files) {
  const sigset_t signals = HoldBackSignals();
  umask(077);  // the socket is its owner's alone
  PluginSet plugins;
  if (auto status = AddBuiltInPlugins(plugins); !status.ok()) return Report(status, kFailed);
  if (auto status = LoadPlugins(plugin_files, plugins); !status.ok()) {
    return Report(status, kFailed);
  }
  VmManager vms(plugins.registry(), MakeVmParts());
  auto server = Server::Listen(endpoint, vms, plugins.registry());
  if (!server.ok()) return Report(server.status(), kFailed);
  std::printf("pagesawd: listening at %s\n", endpoint.c_str());
  std::fflush(stdout);

  int signal_number = 0;
  sigwait(&signals, &signal_number);
  // Whoever follows a console sees the end of its VM.
  vms.DeleteAll();
  (*server)->Stop(std::chrono::milliseconds(500));
  vms.DeleteAll();
  return kDone;
}

int Main(const std::vector<std::string_view>& arguments) {
  const CommandSpec spec = Spec();
  const auto parsed = ParseCommand(spec, arguments);
  if (!parsed.ok()) return Report(parsed.status(), kUsage);
  if (parsed->help()) {
    std::fputs(HelpText(spec).c_str(), stdout);
    return kDone;
  }
  const std::string endpoint = parsed->Value("listen", DefaultEndpoint());
  if (const auto path = SocketPathOf(endpoint); !path.ok()) {
    return Report(absl::InvalidArgumentError("--listen=" + std::string(path.status().message())),
                  kUsage);
  }
  return Serve(endpoint, parsed->Values("plugin"));
}

}  // namespace
}  // namespace pagesaw

int main(int argc, char** argv) { return pagesaw::Main({argv + 1, argv + argc}); }
