// Codes to e4m3: one 32-bit word of the sm90 layout becomes two registers of wgmma's A operand.
//
// Every byte of a register is s000mmmm = +-m * 2^-9: e4m3 is linear from 0x00 to 0x0f.  The layout stores the sign and
// the low three bits of code xor -sign, so magnitude = low bits + sign: no table, no offset to subtract later.
#pragma once
#include <cstdint>

namespace w4afp8::grouped_gemm {

__device__ __forceinline__ uint32_t to_e4m3(uint32_t word) {
  return (word & 0x87878787u) + ((word & 0x80808080u) >> 7);
}

// lower: rows r, upper: rows r + 8
__device__ __forceinline__ void unpack(uint32_t word, uint32_t& lower, uint32_t& upper) {
  lower = to_e4m3(word);
  upper = to_e4m3(__funnelshift_r(word, word, 4));
}

}  // namespace w4afp8::grouped_gemm
