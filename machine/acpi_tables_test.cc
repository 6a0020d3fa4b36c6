#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

import pagesaw.core.address;
import pagesaw.machine.acpi_tables;

namespace pagesaw {
namespace {

class AcpiTablesTest : public testing::Test {
 protected:
  template <class T>
  T Get(std::uint64_t address) const {
    T value;
    std::memcpy(&value, &bytes_.at(address - kAcpiTables.bits() + sizeof(T) - 1) - (sizeof(T) - 1),
                sizeof(T));
    return value;
  }
  unsigned Sum(std::uint64_t address, std::size_t count) const {
    unsigned sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += Get<std::uint8_t>(address + i);
    return sum & 0xff;
  }
  std::string Signature(std::uint64_t address) const {
    std::string text;
    for (unsigned i = 0; i < 4; ++i) text += Get<char>(address + i);
    return text;
  }
  std::uint64_t rsdp() const { return kAcpiTables.bits(); }
  // The table called `name` by way of the XSDT; 0 if there is none.
  std::uint64_t Find(const std::string& name) const {
    const auto xsdt = Get<std::uint64_t>(rsdp() + 24);
    for (std::uint32_t at = 36; at < Get<std::uint32_t>(xsdt + 4); at += 8) {
      const auto table = Get<std::uint64_t>(xsdt + at);
      if (Signature(table) == name) return table;
    }
    return 0;
  }
  const std::vector<std::byte> bytes_ = MakeAcpiTables(3);
};

TEST_F(AcpiTablesTest, ChecksumsHold) {
  EXPECT_EQ(Sum(rsdp(), 20), 0u);
  EXPECT_EQ(Sum(rsdp(), 36), 0u);
  const std::uint64_t rsdt = Get<std::uint32_t>(rsdp() + 16);
  EXPECT_EQ(Signature(rsdt), "RSDT");
  EXPECT_EQ(Sum(rsdt, Get<std::uint32_t>(rsdt + 4)), 0u);
  for (const char* name : {"FACP", "APIC", "HPET"}) {
    SCOPED_TRACE(name);
    const std::uint64_t table = Find(name);
    ASSERT_NE(table, 0u);
    EXPECT_EQ(Sum(table, Get<std::uint32_t>(table + 4)), 0u);
  }
}

TEST_F(AcpiTablesTest, FadtNamesTheFixedHardware) {
  const std::uint64_t fadt = Find("FACP");
  EXPECT_EQ(Get<std::uint32_t>(fadt + 4), 244u);
  EXPECT_EQ(Get<std::uint32_t>(fadt + 76), 0x608u);  // the timer
  EXPECT_EQ(Get<std::uint32_t>(fadt + 64), 0x604u);  // PM1a control
  EXPECT_EQ(Get<std::uint8_t>(fadt + 91), 4u);       // bytes of the timer
  EXPECT_EQ(Get<std::uint64_t>(fadt + 208 + 4), 0x608u);
  EXPECT_EQ(Get<std::uint16_t>(fadt + 109), 1u);  // legacy devices, no 8042 for a keyboard
  EXPECT_NE(Get<std::uint32_t>(fadt + 112) & 1u << 10, 0u);
  EXPECT_EQ(Get<std::uint64_t>(fadt + 116 + 4), 0x64u);  // the reset register
  EXPECT_EQ(Get<std::uint8_t>(fadt + 128), 0xfeu);
  EXPECT_EQ(Signature(Get<std::uint32_t>(fadt + 36)), "FACS");
  EXPECT_EQ(Get<std::uint32_t>(fadt + 36) + 12, kWakingVector.bits());
  EXPECT_EQ(Signature(Get<std::uint64_t>(fadt + 140)), "DSDT");
}

TEST_F(AcpiTablesTest, MadtListsTheProcessors) {
  const std::uint64_t madt = Find("APIC");
  unsigned processors = 0, io_apics = 0;
  for (std::uint64_t at = madt + 44; at < madt + Get<std::uint32_t>(madt + 4);
       at += Get<std::uint8_t>(at + 1)) {
    if (Get<std::uint8_t>(at) == 0) EXPECT_EQ(Get<std::uint8_t>(at + 3), processors++);
    io_apics += Get<std::uint8_t>(at) == 1 ? 1 : 0;
  }
  EXPECT_EQ(processors, 3u);
  EXPECT_EQ(io_apics, 1u);
}

}  // namespace
}  // namespace pagesaw
