"""Writes wgmma.cuh: one multiply per token count, because PTX wants every accumulator register named.

Run `python make_wgmma.py > wgmma.cuh` after changing TOKENS.
"""

TOKENS = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 104, 112, 120, 128, 136, 144, 152, 160)

HEAD = """\
// Written by make_wgmma.py.  D[64 x N] (+)= A[64 x 32] * B[32 x N], e4m3 operands, float32 accumulators:
// A in registers, B in shared memory (K-major, 128-byte swizzle), for every token count N in use.
#pragma once
#include <cstdint>

namespace w4afp8::ptx {

// Orders earlier register writes before the multiplies that read them.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving the computation of a register across this line.
__device__ __forceinline__ void pin(uint32_t& r) { asm volatile("" : "+r"(r)::"memory"); }
__device__ __forceinline__ void pin(float& r) { asm volatile("" : "+f"(r)::"memory"); }

// Descriptor of rows of 128 bytes, swizzled; eight rows are one 1024-byte atom.  The upper word is the same for all:
// stride between atoms / 16 (bits 32..45) and swizzle mode 128B (bit 62); the lower holds the address / 16.
__device__ __forceinline__ uint32_t swizzled_rows(uint32_t shared_address) { return (shared_address & 0x3FFFF) >> 4; }

template <int kTokens>
struct Wgmma;
"""

BODY = """
template <>
struct Wgmma<{n}> {{
  template <bool kAccumulate>
  __device__ __forceinline__ static void multiply(float (&d)[{regs}], const uint32_t* a, uint32_t b) {{
    asm volatile(
        "{{\\n.reg .b64 b;\\n.reg .pred p;\\nmov.b64 b, {{%{b}, 0x40000040}};\\nsetp.ne.b32 p, %{flag}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k32.f32.e4m3.e4m3 {{{names}}}, "
        "{{%{a0}, %{a1}, %{a2}, %{a3}}}, b, p, 1, 1;\\n}}\\n"
        : {outs}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(int(kAccumulate)));
  }}
}};
"""


def struct(n: int) -> str:
    """The specialisation for `n` tokens."""
    regs = n // 2
    outs = [f'"+f"(d[{i}])' for i in range(regs)]
    lines = [", ".join(outs[i : i + 8]) for i in range(0, regs, 8)]
    return BODY.format(
        n=n,
        regs=regs,
        names=", ".join(f"%{i}" for i in range(regs)),
        outs=",\n          ".join(lines),
        a0=regs,
        a1=regs + 1,
        a2=regs + 2,
        a3=regs + 3,
        b=regs + 4,
        flag=regs + 5,
    )


if __name__ == "__main__":
    print(HEAD + "".join(struct(n) for n in TOKENS) + "\n}  // namespace w4afp8::ptx")
