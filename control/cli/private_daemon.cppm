// A daemon of the CLI's own: a child process that listens at a socket nobody else knows.
module;
#include <absl/status/statusor.h>
#include <sys/types.h>

#include <memory>
#include <string>
export module pagesaw.control.cli.private_daemon;

export namespace pagesaw {

class PrivateDaemon {
 public:
  // Starts the `pagesawd` that lies in the directory of this program and waits until it listens. It
  // ends with this process, however that ends.
  static absl::StatusOr<std::unique_ptr<PrivateDaemon>> Start();
  // Ends it and removes its directory.
  ~PrivateDaemon();
  PrivateDaemon(const PrivateDaemon&) = delete;
  PrivateDaemon& operator=(const PrivateDaemon&) = delete;

  std::string endpoint() const { return "unix:" + directory_ + "/socket"; }

 private:
  PrivateDaemon(std::string directory, pid_t child)
      : directory_(std::move(directory)), child_(child) {}

  std::string directory_;
  pid_t child_;
};

}  // namespace pagesaw
