module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>
module pagesaw.machine.vm;

import pagesaw.core.processor;
import pagesaw.core.virt_extension;
import pagesaw.core.virtual_time;
import pagesaw.machine.acpi_tables;
import pagesaw.machine.board;
import pagesaw.machine.clock;
import pagesaw.machine.device;
import pagesaw.machine.device_memory;
import pagesaw.machine.disk;
import pagesaw.machine.image_loader;
import pagesaw.machine.memory_slots;
import pagesaw.machine.msr_file;
import pagesaw.machine.register_rules;
import pagesaw.machine.structure_memory;
import pagesaw.machine.vcpu;
import pagesaw.machine.virtio_devices;

namespace pagesaw {
namespace {

absl::StatusOr<const VirtExtension*> FindExtension(const PluginRegistry& registry,
                                                   const std::string& vendor) {
  const VirtExtension* extension = registry.ExtensionOf(vendor);
  if (extension != nullptr) return extension;
  const std::vector<std::string> vendors = registry.vendors();
  return absl::InvalidArgumentError(
      absl::StrCat("vendor '", vendor,
                   "': ", vendors.empty() ? "no plugin that is loaded provides any" : "not one of ",
                   absl::StrJoin(vendors, ", ")));
}

absl::StatusOr<const TdpFormat*> ChooseTdpFormat(const PluginRegistry& registry,
                                                 const VmConfig& config) {
  const TdpFormat* split = registry.TdpFormatOf(config.vendor, true);
  const TdpFormat* whole = registry.TdpFormatOf(config.vendor, false);
  const TdpFormat* chosen = nullptr;
  switch (config.execute_split) {
    case ExecuteSplit::kAuto:
      chosen = split != nullptr ? split : whole;
      break;
    case ExecuteSplit::kOn:
      chosen = split;
      break;
    case ExecuteSplit::kOff:
      chosen = whole;
      break;
  }
  if (chosen != nullptr) return chosen;
  return absl::FailedPreconditionError(
      absl::StrCat("vendor '", config.vendor, "': no plugin provides second-stage tables",
                   config.execute_split == ExecuteSplit::kOn ? " that split execute rights" : ""));
}

// Where execution can be split, it may have to be, as hypervisors in the VM ask.
const TdpFormat* ChooseNestedFormat(const PluginRegistry& registry,
                                    const VirtExtension& extension) {
  if (extension.feature().empty()) return nullptr;
  const TdpFormat* split = registry.TdpFormatOf(extension.vendor(), true);
  return split != nullptr ? split : registry.TdpFormatOf(extension.vendor(), false);
}

std::unique_ptr<const Clock> MakeClock(const std::shared_ptr<VirtualTime>& virtual_time) {
  if (virtual_time != nullptr) return std::make_unique<VirtualClock>(virtual_time);
  return std::make_unique<HostClock>();
}

absl::StatusOr<VirtioOptions> MakeVirtioOptions(const VmConfig& config) {
  VirtioOptions options = {.disk = nullptr,
                           .console = config.virtio_console,
                           .entropy = config.virtio_entropy,
                           .seed = std::nullopt};
  if (config.clock == ClockKind::kVirtual) options.seed = 0;
  if (config.disk_path.empty()) return options;
  auto disk = Disk::Open(config.disk_path, config.disk_read_only);
  if (!disk.ok()) return disk.status();
  options.disk = *std::move(disk);
  return options;
}

}  // namespace

struct Vm::Impl final : public TlbFlusher,
                        public SystemControl,
                        public MemoryUsers,
                        public DeviceMemory {
  Impl(const VmConfig& vm_config)
      : config(vm_config),
        lifecycle(config.cpu_count, config.time_limit, host_clock,
                  {.start_threads = [this] { return StartThreads(); },
                   .kick =
                       [this] {
                         for (auto& vcpu : vcpus) vcpu->Kick();
                       },
                   .stopped = [this] { console.Close(); }}) {}

  ~Impl() override {
    lifecycle.Stop();
    for (std::thread& thread : threads) thread.join();
    ended = true;
  }

  absl::Status MakeCpus(const PluginRegistry& registry, const VmParts& parts);
  absl::Status LoadGuest(LoadProgress& progress);

  absl::Status StartThreads();
  void RunVcpu(Vcpu& vcpu);

  // Devices say `wake` while a vCPU may be being made.
  void Wake(unsigned cpu) {
    if (cpu < vcpus.size()) vcpus[cpu]->Kick();
  }

  void FlushAll() override {
    if (ended) return;  // vCPUs are being taken apart, one after the other
    for (auto& vcpu : vcpus) vcpu->RequestFlush();
    for (auto& vcpu : vcpus) vcpu->WaitOutOfGuest();
  }

  // Makes them ask for memory again, then waits for those that have just asked.
  void ForgetMemory() override {
    for (auto& vcpu : vcpus) vcpu->RequestContentsFlush();
    for (auto& vcpu : vcpus) vcpu->WaitOutOfGuest();
    for (auto& vcpu : vcpus) vcpu->WaitOutOfExit();
  }

  // After bytes of memory were written by somebody else than the guest: what was made from them is
  // used no more, be it SPTEs or decoded code.
  void ContentsChanged(Gpa gpa, std::uint64_t bytes);

  // -- memory as devices see it

  // Devices are used by vCPUs that handle an exit: while they do no slot goes away.
  bool Read(Gpa gpa, std::span<std::byte> bytes) const override {
    return DeviceMay(Rights(Rights::kRead), gpa, bytes.size()) &&
           memory.slots().Read(gpa, bytes).ok();
  }
  bool Write(Gpa gpa, std::span<const std::byte> bytes) override {
    if (!DeviceMay(Rights(Rights::kWrite), gpa, bytes.size())) return false;
    if (!memory.slots().Write(gpa, bytes).ok()) return false;
    ContentsChanged(gpa, bytes.size());
    return true;
  }
  bool DeviceMay(Rights rights, Gpa gpa, std::uint64_t bytes) const;

  void DebugExit(std::uint32_t value) override {
    lifecycle.RequestStop(
        {.reason = StopReason::kDebugExit,
         .debug_exit_value = value,
         .message = absl::StrFormat("the guest ended with debug exit %d", value)});
  }
  void PowerOff() override {
    lifecycle.RequestStop(
        {.reason = StopReason::kPowerOff, .message = "the guest switched the machine off"});
  }
  void Suspend() override {
    for (auto& vcpu : vcpus) vcpu->Suspend();
  }
  void WakeUp() override {
    for (auto& vcpu : vcpus) vcpu->WakeUp();
  }
  std::uint32_t WakingVector() const {
    std::uint32_t vector = 0;
    // Where there is no such memory there are no tables to say it in.
    const absl::Status read =
        memory.Read(kWakingVector, std::as_writable_bytes(std::span(&vector, 1)));
    return read.ok() ? vector : 0;
  }
  void Reset() override {
    lifecycle.RequestStop({.reason = StopReason::kReset, .message = "the guest asked for a reset"});
  }

  absl::StatusOr<Vcpu*> FindVcpu(unsigned index) const {
    if (index < vcpus.size()) return vcpus[index].get();
    return absl::NotFoundError(
        absl::StrFormat("VM '%s': vCPU %d: there are %d", config.name, index, vcpus.size()));
  }
  absl::StatusOr<Inspector> Inspect(unsigned vcpu) const;
  absl::StatusOr<const ShadowMmu*> FindShadowMmu(unsigned vcpu, std::string_view name) const;
  absl::Status CheckAttribute(Gpa first, std::uint64_t bytes, Rights rights) const;

  void NoteViolation(const Violation& violation) {
    violations.Note(violation);
    if (violation.attribute.policy == ViolationPolicy::kStop) lifecycle.RequestPause();
  }

  const VmConfig config;
  const HostClock host_clock;
  const std::shared_ptr<VirtualTime> virtual_time =
      config.clock == ClockKind::kVirtual ? std::make_shared<VirtualTime>() : nullptr;
  const std::unique_ptr<const Clock> clock = MakeClock(virtual_time);
  Console console;
  VmMemory memory{*this};
  StructureMemory structure_memory{memory.slots()};
  const VirtExtension* extension = nullptr;
  const TdpFormat* tdp_format = nullptr;
  const TdpFormat* nested_format = nullptr;  // null: processors offer no nested paging
  std::unique_ptr<Board> board;
  std::unique_ptr<VmMmu> mmu;
  std::vector<std::unique_ptr<MsrFile>> msrs;
  std::vector<std::unique_ptr<Vcpu>> vcpus;
  ViolationLog violations;
  Lifecycle lifecycle;
  std::vector<std::thread> threads;
  bool ended = false;  // no thread runs any more, nor will
};

bool Vm::Impl::DeviceMay(Rights rights, Gpa gpa, std::uint64_t bytes) const {
  if (bytes == 0) return true;
  const auto last = CheckedAdd(gpa, bytes - 1);
  if (!last.has_value()) return false;
  for (std::uint64_t frame = GfnOf(gpa).number; frame <= GfnOf(*last).number; ++frame) {
    if (!FrameAllows(memory.slots(), mmu->attributes(), Gfn{frame}, rights)) return false;
  }
  return true;
}

// -- making one

absl::Status Vm::Impl::MakeCpus(const PluginRegistry& registry, const VmParts& parts) {
  const auto found = FindExtension(registry, config.vendor);
  if (!found.ok()) return found.status();
  extension = *found;
  nested_format = ChooseNestedFormat(registry, *extension);
  const auto format = ChooseTdpFormat(registry, config);
  if (!format.ok()) return format.status();
  tdp_format = *format;

  std::vector<std::unique_ptr<Processor>> processors;
  for (unsigned i = 0; i < config.cpu_count; ++i) {
    auto processor = parts.make_processor({.index = i,
                                           .count = config.cpu_count,
                                           .extension = extension,
                                           .memory = &structure_memory,
                                           .cpu_model = config.cpu_model,
                                           .cpu_features = config.cpu_features,
                                           .tdp = config.tdp,
                                           .virtual_time = virtual_time,
                                           .first = i == 0 ? nullptr : processors[0].get()});
    if (!processor.ok()) return processor.status();
    processors.push_back(*std::move(processor));
  }
  auto made = parts.make_mmu({.memory = &memory.slots(),
                              .flusher = this,
                              .tdp = config.tdp,
                              .tdp_format = tdp_format,
                              .nested_format = nested_format,
                              .accessed_dirty = config.spte_accessed_dirty,
                              .features = processors[0]->paging_snapshot().features,
                              .vcpu_count = config.cpu_count});
  if (!made.ok()) return made.status();
  mmu = *std::move(made);
  memory.Attach(*mmu);
  structure_memory.Attach(mmu->attributes());

  auto virtio = MakeVirtioOptions(config);
  if (!virtio.ok()) return virtio.status();
  const unsigned physical_bits = processors[0]->paging_snapshot().features.physical_bits;
  board = std::make_unique<Board>(
      BoardOptions{.memory_bytes = config.memory_bytes,
                   .cpu_count = config.cpu_count,
                   .physical_bits = physical_bits,
                   .virtio = *std::move(virtio)},
      *clock, console, *this, *this, [this](unsigned cpu) { Wake(cpu); },
      [this](Gfn gfn) { mmu->ZapFrames(gfn, 1); });
  const bool amd_counters = extension->cpuid_vendor() == "AuthenticAMD";
  for (unsigned i = 0; i < config.cpu_count; ++i) {
    std::unique_ptr<ShadowMmu> root_mmu = mmu->MakeRootMmu(i);
    std::unique_ptr<ShadowMmu> guest_mmu = mmu->MakeGuestMmu(
        i, [processor = processors[i].get()](Gpa gpa) { return processor->LogNestedDirty(gpa); });
    if (root_mmu == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("VM '%s': the host has no memory for its tables", config.name));
    }
    msrs.push_back(std::make_unique<MsrFile>(
        board->apic(i), MsrOptions{.tsc_deadline = true, .legacy_amd_counters = amd_counters}));
    vcpus.push_back(std::make_unique<Vcpu>(
        VcpuEnvironment{
            .clock = clock.get(),
            .virtual_time = virtual_time.get(),
            .bus = &board->bus(),
            .pic = &board->pic(),
            .apic_bus = &board->apic_bus(),
            .mmu = mmu.get(),
            .memory = &memory.slots(),
            .tdp = config.tdp,
            .coprocessor_error = i == 0 ? &board->coprocessor_error() : nullptr,
            .waking_vector = [this] { return WakingVector(); },
            .attributes = &mmu->attributes(),
            .violated = [this](const Violation& violation) { NoteViolation(violation); },
            .deadline_changed = [this] { Wake(0); }},
        std::move(processors[i]), std::move(root_mmu), std::move(guest_mmu), board->apic(i),
        *msrs[i]));
  }
  return absl::OkStatus();
}

absl::Status Vm::Impl::LoadGuest(LoadProgress& progress) {
  if (config.image_path.empty()) return absl::OkStatus();
  const auto state = LoadImageFiles(memory.slots(), config.memory_bytes, config.image_path,
                                    config.cmdline, config.initrd_path, progress);
  if (!state.ok()) return state.status();
  vcpus[0]->SetState(*state);
  // As firmware would have; a guest without memory there does without.
  if (config.memory_bytes >= kAcpiTables.bits() + kPageBytes) {
    return memory.Write(kAcpiTables,
                        MakeAcpiTables(config.cpu_count, board->virtio().AcpiDevices()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Vm>> Vm::Create(const VmConfig& config,
                                               const PluginRegistry& registry, const VmParts& parts,
                                               std::uint64_t memory_limit_bytes,
                                               LoadProgress* progress) {
  if (absl::Status status = CheckVmConfig(config, memory_limit_bytes); !status.ok()) return status;
  auto impl = std::make_unique<Impl>(config);
  if (absl::Status status = impl->memory.MakeRam(config.memory_bytes, memory_limit_bytes);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = impl->MakeCpus(registry, parts); !status.ok()) return status;
  LoadProgress unseen;
  absl::Status loaded = impl->LoadGuest(progress != nullptr ? *progress : unseen);
  if (!loaded.ok()) return loaded;
  return std::unique_ptr<Vm>(new Vm(std::move(impl)));
}

Vm::Vm(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Vm::~Vm() = default;

// -- running

absl::Status Vm::Impl::StartThreads() {
  threads.reserve(vcpus.size());
  for (auto& vcpu : vcpus) {
    try {
      threads.emplace_back([this, running = vcpu.get()] { RunVcpu(*running); });
    } catch (const std::system_error& error) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("VM '%s': no thread for a vCPU: %s", config.name, error.what()));
    }
  }
  return absl::OkStatus();
}

void Vm::Impl::RunVcpu(Vcpu& vcpu) {
  while (lifecycle.ThreadMayRun()) {
    std::optional<VmExit> ending = vcpu.Step(lifecycle.time_limit_ns());
    if (ending.has_value()) lifecycle.RequestStop(*std::move(ending));
  }
  lifecycle.ThreadEnds();
}

const VmConfig& Vm::config() const { return impl_->config; }
const std::string& Vm::name() const { return impl_->config.name; }
VmState Vm::state() const { return impl_->lifecycle.state(); }
VmExit Vm::exit() const { return impl_->lifecycle.exit(); }
absl::Status Vm::Start() { return impl_->lifecycle.Start(name()); }
absl::Status Vm::Pause() { return impl_->lifecycle.Pause(name()); }
absl::Status Vm::Resume() {
  // What was refused is tried again: what still is refused pauses the VM again.
  if (impl_->lifecycle.state() == VmState::kPaused) impl_->violations.Release();
  return impl_->lifecycle.Resume(name());
}

absl::Status Vm::Stop() {
  impl_->lifecycle.Stop();
  return absl::OkStatus();
}

bool Vm::WaitUntilStopped(std::chrono::milliseconds timeout) const {
  return impl_->lifecycle.WaitUntilStopped(timeout);
}

// -- console and memory

const Console& Vm::console() const { return impl_->console; }

absl::Status Vm::WriteConsole(std::string_view data) {
  std::optional<bool> typed = impl_->board->virtio().Type(data);
  if (!typed.has_value()) typed = impl_->board->uart().Receive(data);
  if (*typed) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("VM '%s': no room for %d more bytes of console input", name(), data.size()));
}

absl::Status Vm::ReadMemory(Gpa gpa, std::span<std::byte> bytes) const {
  return impl_->memory.Read(gpa, bytes);
}

absl::Status Vm::WriteMemory(Gpa gpa, std::span<const std::byte> bytes) {
  if (absl::Status status = impl_->memory.Write(gpa, bytes); !status.ok()) return status;
  impl_->ContentsChanged(gpa, bytes.size());
  return absl::OkStatus();
}

void Vm::Impl::ContentsChanged(Gpa gpa, std::uint64_t bytes) {
  mmu->MemoryWritten(gpa, bytes);
  bool known = false;
  for (std::uint64_t done = 0; done < bytes;) {
    const Gpa at(gpa.bits() + done);
    const std::uint64_t piece = std::min(kPageBytes - at.bits() % kPageBytes, bytes - done);
    done += piece;
    const MemorySlot* slot = memory.slots().Find(GfnOf(at));
    if (slot == nullptr) continue;  // removed meanwhile
    const Hpa host(reinterpret_cast<std::uint64_t>(slot->HostOf(at)));
    for (auto& vcpu : vcpus) known = vcpu->processor().ContentsChanged(host, piece) || known;
  }
  if (!known) return;
  for (auto& vcpu : vcpus) vcpu->WaitOutOfGuest();
}

std::vector<MemorySlot> Vm::MemorySlots() const { return impl_->memory.slots().Slots(); }
VmMemory& Vm::memory() { return impl_->memory; }

// -- attributes

absl::Status Vm::Impl::CheckAttribute(Gpa first, std::uint64_t bytes, Rights rights) const {
  const std::string range =
      absl::StrFormat("VM '%s': attribute of 0x%x, %d bytes: ", config.name, first.bits(), bytes);
  if (bytes == 0 || (first.bits() | bytes) % kPageBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(range, "must be one or more whole pages of ", kPageBytes, " bytes"));
  }
  const unsigned bits = vcpus[0]->processor().paging_snapshot().features.physical_bits;
  const std::uint64_t space = std::uint64_t{1} << bits;
  if (first.bits() >= space || bytes > space - first.bits()) {
    return absl::InvalidArgumentError(
        absl::StrCat(range, "reaches beyond the guest's ", bits, " bits of physical address"));
  }
  if (rights.write() && !rights.read()) {
    return absl::InvalidArgumentError(
        absl::StrCat(range, "W without R: no page-table entry can say that"));
  }
  return absl::OkStatus();
}

absl::Status Vm::SetMemoryAttribute(Gpa first, std::uint64_t bytes,
                                    const MemoryAttribute& attribute) {
  const Rights rights = attribute.rights;
  if (absl::Status status = impl_->CheckAttribute(first, bytes, rights); !status.ok()) {
    return status;
  }
  const absl::Status status = impl_->mmu->SetAttribute(
      GfnOf(first), bytes >> kPageShift,
      {.rights = rights & MemoryAttribute::kEverything, .policy = attribute.policy});
  if (!status.ok()) {
    const std::string format =
        impl_->config.tdp ? impl_->tdp_format->name : std::string("shadow paging");
    return {status.code(), absl::StrFormat("VM '%s': attribute of 0x%x: tables of %s: %s", name(),
                                           first.bits(), format, status.message())};
  }
  // Nobody is about to use, without asking again, what it was allowed before.
  impl_->ForgetMemory();
  return absl::OkStatus();
}

std::vector<AttributeRange> Vm::MemoryAttributes() const { return impl_->mmu->attributes().List(); }

MemoryAttribute Vm::MemoryAttributeOf(Gpa gpa) const {
  return impl_->mmu->attributes().Of(GfnOf(gpa));
}

const ViolationLog& Vm::violations() const { return impl_->violations; }

// -- registers

unsigned Vm::vcpu_count() const { return static_cast<unsigned>(impl_->vcpus.size()); }

absl::StatusOr<CpuState> Vm::GetRegisters(unsigned vcpu) const {
  const auto found = impl_->FindVcpu(vcpu);
  if (!found.ok()) return found.status();
  CpuState state;
  if (impl_->lifecycle.WhileQuiet([&] { state = (*found)->GetState(); })) return state;
  return absl::FailedPreconditionError(
      absl::StrCat("VM '", name(), "': registers can be read only while it does not run"));
}

absl::Status Vm::SetRegisters(unsigned vcpu, const CpuState& state) {
  const auto found = impl_->FindVcpu(vcpu);
  if (!found.ok()) return found.status();
  const PagingFeatures features = (*found)->processor().paging_snapshot().features;
  if (absl::Status status = CheckCpuState(state, features); !status.ok()) return status;
  bool guest_mode = false;
  const bool quiet = impl_->lifecycle.WhileQuiet([&] {
    guest_mode = (*found)->processor().guest_snapshot().guest_mode;
    if (!guest_mode) (*found)->SetState(state);
  });
  if (!quiet) {
    return absl::FailedPreconditionError(
        absl::StrCat("VM '", name(), "': registers can be written only while it does not run"));
  }
  if (guest_mode) {
    // What was entered by an instruction of the guest's, checks and all, is left by its rules.
    return absl::FailedPreconditionError(
        absl::StrCat("VM '", name(), "': vCPU ", vcpu,
                     " is in guest mode: its registers are those of its guest's guest, and can be "
                     "written only when it has left it"));
  }
  return absl::OkStatus();
}

// -- inspection

absl::StatusOr<Inspector> Vm::Impl::Inspect(unsigned vcpu) const {
  const auto found = FindVcpu(vcpu);
  if (!found.ok()) return found.status();
  return Inspector({.owner = absl::StrFormat("vCPU %d of VM '%s'", vcpu, config.name),
                    .extension = extension,
                    .memory = &memory,
                    .attributes = &mmu->attributes(),
                    .root_mmu = &(*found)->root_mmu(),
                    .guest_mmu = (*found)->guest_mmu(),
                    .root_format = config.tdp ? tdp_format->name : "linear",
                    .guest_format = nested_format != nullptr ? nested_format->name : ""},
                   (*found)->processor().guest_snapshot());
}

absl::StatusOr<const ShadowMmu*> Vm::Impl::FindShadowMmu(unsigned vcpu,
                                                         std::string_view mmu_name) const {
  const auto inspector = Inspect(vcpu);
  if (!inspector.ok()) return inspector.status();
  return inspector->FindShadowMmu(mmu_name);
}

absl::StatusOr<PagingState> Vm::GetPagingState(unsigned vcpu) const {
  const auto found = impl_->FindVcpu(vcpu);
  if (!found.ok()) return found.status();
  return (*found)->processor().paging_snapshot();
}

absl::StatusOr<NestedState> Vm::GetNestedState(unsigned vcpu) const {
  const auto inspector = impl_->Inspect(vcpu);
  if (!inspector.ok()) return inspector.status();
  return inspector->Nested();
}

absl::StatusOr<std::vector<WalkerInfo>> Vm::Walkers(unsigned vcpu) const {
  const auto inspector = impl_->Inspect(vcpu);
  if (!inspector.ok()) return inspector.status();
  return inspector->Walkers();
}

absl::StatusOr<std::vector<ShadowMmuInfo>> Vm::ShadowMmus(unsigned vcpu) const {
  const auto inspector = impl_->Inspect(vcpu);
  if (!inspector.ok()) return inspector.status();
  return inspector->ShadowMmus();
}

absl::StatusOr<WalkReport> Vm::Walk(unsigned vcpu, std::string_view walker_name,
                                    InputAddress address, Access access) const {
  const auto inspector = impl_->Inspect(vcpu);
  if (!inspector.ok()) return inspector.status();
  return inspector->Walk(walker_name, address, access);
}

absl::StatusOr<WalkReport> Vm::WalkSptes(unsigned vcpu, std::string_view mmu, InputAddress address,
                                         Access access) const {
  const auto found = impl_->FindShadowMmu(vcpu, mmu);
  if (!found.ok()) return found.status();
  WalkReport report;
  report.result = (*found)->Inspect(address, access, &report.trace);
  report.format = (*found)->format();
  return report;
}

absl::StatusOr<std::vector<RootInfo>> Vm::Roots(unsigned vcpu, std::string_view mmu) const {
  const auto found = impl_->FindShadowMmu(vcpu, mmu);
  if (!found.ok()) return found.status();
  return (*found)->Roots();
}

std::vector<ShadowPageInfo> Vm::ShadowPages(std::uint64_t after_id, unsigned max_count) const {
  return impl_->mmu->ShadowPages(after_id, max_count);
}

VmStatistics Vm::Statistics() const {
  VmStatistics statistics;
  statistics.mmu = impl_->mmu->Statistics();
  for (const auto& vcpu : impl_->vcpus) statistics.vcpus.push_back(vcpu->statistics());
  statistics.memory_resident_bytes = impl_->memory.ResidentBytes();
  return statistics;
}

}  // namespace pagesaw
