// Codes to e4m3: one 32-bit word of the sm90 layout becomes two registers of wgmma's A operand.
//
// Every byte of a register is s000mmmm = +-m * 2^-9: e4m3 is linear from 0x00 to 0x0f.  The layout stores the sign and
// the low three bits of code xor -sign, so magnitude = low bits + sign: no table, no offset to subtract later.
#pragma once
#include <cstdint>

namespace w4afp8::grouped_gemm {

// Bits of `a` where the mask has ones, of `b` where it has zeros.  Written out, it would be two instructions.
template <uint32_t kMask>
__device__ __forceinline__ uint32_t select_bits(uint32_t a, uint32_t b) {
  uint32_t selected;
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(selected) : "r"(a), "r"(b), "n"(kMask));
  return selected;
}

// lower: rows r, upper: rows r + 8.  All eight magnitudes come of one addition: turned by seven, every sign stands
// where its code begins, and no sum exceeds 8.  `minus_one` is a kernel's argument, so that the compiler does not know
// it: the subtractions are then multiplications, which are not done where the rest is, on the unit that is busiest.
__device__ __forceinline__ void unpack(uint32_t word, uint32_t minus_one, uint32_t& lower, uint32_t& upper) {
  const uint32_t signs = word & 0x88888888u;
  const uint32_t both = word + __funnelshift_r(signs, signs, 7);  // magnitudes + signs; one LEA.HI
  const uint32_t magnitudes = signs * minus_one + both;
  const uint32_t turned = select_bits<0xf0f0f0f0u>(magnitudes, signs);
  lower = turned * minus_one + both;  // what `turned` has not: magnitudes of rows r, signs of theirs
  upper = __funnelshift_r(turned, turned, 4);
}

}  // namespace w4afp8::grouped_gemm
