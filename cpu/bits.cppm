// Bit tests, scans, counts and the bit-manipulation extensions.
module;
export module pagesaw.cpu.bits;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// BT, BTS, BTR, BTC with and without LOCK.
Selection SelectBitTest(const Decoded& decoded, Op& op);
// BSF, BSR, LZCNT, TZCNT, POPCNT, BSWAP, MOVBE, CRC32, ADCX, ADOX.
Selection SelectBits(const Decoded& decoded, Op& op);
// BMI1 and BMI2 but for MULX.
Selection SelectBmi(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
