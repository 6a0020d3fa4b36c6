// The memory behind a guest's RAM: one mapping whose pages cost the host nothing until the guest
// touches them.
module;
#include <absl/status/statusor.h>
#include <cstddef>
#include <cstdint>
#include <memory>
export module pagesaw.machine.guest_ram;

export namespace pagesaw {

class GuestRam {
 public:
  // `bytes` of zeroes, a multiple of 4096, so aligned that pages of the largest size can map it.
  // ResourceExhausted if the host refuses.
  static absl::StatusOr<std::unique_ptr<GuestRam>> Create(std::uint64_t bytes);

  ~GuestRam();
  GuestRam(const GuestRam&) = delete;
  GuestRam& operator=(const GuestRam&) = delete;

  std::byte* host() const { return host_; }
  std::uint64_t bytes() const { return bytes_; }
  // How much of it the host holds in memory now.
  std::uint64_t ResidentBytes() const;

 private:
  GuestRam(void* mapping, std::uint64_t mapping_bytes, std::byte* host, std::uint64_t bytes)
      : mapping_(mapping), mapping_bytes_(mapping_bytes), host_(host), bytes_(bytes) {}

  void* mapping_;
  std::uint64_t mapping_bytes_;
  std::byte* host_;
  std::uint64_t bytes_;
};

}  // namespace pagesaw
