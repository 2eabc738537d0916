// Kernels that follow each other at a small distance (programmatic dependent launch), as a thread of one sees it.
#pragma once

namespace w4afp8 {

// Everything the kernels before this one wrote is visible after this line; nothing of theirs may be read, and nothing
// written, before it (a prefetch into L2 reads nothing; a guess may be read that is compared afterwards).  Then lets the
// kernel after this one start its own prologue.
__device__ __forceinline__ void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace w4afp8
