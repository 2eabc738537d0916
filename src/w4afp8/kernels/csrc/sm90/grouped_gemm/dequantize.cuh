// Codes to e4m3: one 32-bit word of the sm90 layout becomes two registers of wgmma's A operand.
//
// Every byte of a register is s000mmmm = +-m * 2^-9: e4m3 is linear from 0x00 to 0x0f.  The layout stores the sign and
// the low three bits of code xor -sign, so magnitude = low bits + sign: no table, no offset to subtract later.
#pragma once
#include <cstdint>

namespace w4afp8::grouped_gemm {

// kWords words at once, step by step, so that the steps of one word hide the latency of another's: ptxas keeps this
// order, and word by word it would wait some three cycles after every instruction.
template <int kWords>
__device__ __forceinline__ void unpack(const uint32_t (&words)[kWords], uint32_t* registers) {
  uint32_t turned[kWords], sign[2 * kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    asm volatile("shf.r.wrap.b32 %0, %1, %1, 4;" : "=r"(turned[i]) : "r"(words[i]));
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    asm volatile("and.b32 %0, %1, 0x80808080;" : "=r"(sign[2 * i]) : "r"(words[i]));
    asm volatile("and.b32 %0, %1, 0x87878787;" : "=r"(registers[2 * i]) : "r"(words[i]));
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    asm volatile("and.b32 %0, %1, 0x80808080;" : "=r"(sign[2 * i + 1]) : "r"(turned[i]));
    asm volatile("and.b32 %0, %1, 0x87878787;" : "=r"(registers[2 * i + 1]) : "r"(turned[i]));
  }
#pragma unroll
  for (int i = 0; i < 2 * kWords; ++i) {
    asm volatile("{\n.reg .b32 s;\nshr.u32 s, %1, 7;\nadd.u32 %0, %0, s;\n}\n" : "+r"(registers[i]) : "r"(sign[i]));
  }
}

}  // namespace w4afp8::grouped_gemm
