module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
module pagesaw.control.cli.private_daemon;

namespace pagesaw {
namespace {

absl::Status Failed(const std::string& what) {
  return absl::InternalError(
      absl::StrCat("a private daemon could not be started: ", what, ": ", std::strerror(errno)));
}

absl::StatusOr<std::string> DaemonPath() {
  char self[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  if (length < 0) return Failed("/proc/self/exe");
  const std::string path(self, static_cast<std::size_t>(length));
  std::string daemon = path.substr(0, path.rfind('/') + 1) + "pagesawd";
  if (access(daemon.c_str(), X_OK) != 0) return Failed(daemon);
  return daemon;
}

absl::StatusOr<std::string> MakeDirectory() {
  const char* parent = std::getenv("TMPDIR");
  // The path of a socket must be short.
  const bool usable = parent != nullptr && *parent == '/' && std::strlen(parent) < 70;
  std::string directory = absl::StrCat(usable ? parent : "/tmp", "/pagesaw-XXXXXX");
  if (mkdtemp(directory.data()) == nullptr) return Failed(directory);
  return directory;
}

// In the child: becomes the daemon, with `ready_fd` as stdout. Only async-signal-safe calls.
[[noreturn]] void BecomeDaemon(const char* daemon, const char* listen, int ready_fd, pid_t parent) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  setpgid(0, 0);  // Ctrl-C is the parent's to handle
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  dup2(ready_fd, STDOUT_FILENO);
  execl(daemon, daemon, listen, static_cast<char*>(nullptr));
  _exit(127);
}

// Whether the daemon says that it listens; false if it ends before.
bool AwaitReady(int fd) {
  char byte = 0;
  ssize_t count = 0;
  do {
    count = read(fd, &byte, 1);
  } while (count > 0 ? byte != '\n' : count < 0 && errno == EINTR);
  return count == 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrivateDaemon>> PrivateDaemon::Start() {
  const auto daemon = DaemonPath();
  if (!daemon.ok()) return daemon.status();
  const auto directory = MakeDirectory();
  if (!directory.ok()) return directory.status();
  const std::string listen = absl::StrCat("--listen=unix:", *directory, "/socket");
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) != 0) return Failed("pipe");
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) BecomeDaemon(daemon->c_str(), listen.c_str(), ready[1], parent);
  close(ready[1]);
  if (child < 0) {
    close(ready[0]);
    rmdir(directory->c_str());
    return Failed("fork");
  }
  std::unique_ptr<PrivateDaemon> started(new PrivateDaemon(*directory, child));
  const bool is_ready = AwaitReady(ready[0]);
  close(ready[0]);
  if (!is_ready) return absl::InternalError("a private daemon could not be started: it ended");
  return started;
}

PrivateDaemon::~PrivateDaemon() {
  kill(child_, SIGTERM);
  // It has 10 seconds.
  for (int i = 0; i < 1000; ++i) {
    if (waitpid(child_, nullptr, WNOHANG) != 0) break;
    if (i == 999) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
    usleep(10'000);
  }
  unlink((directory_ + "/socket").c_str());
  rmdir(directory_.c_str());
}

}  // namespace pagesaw
