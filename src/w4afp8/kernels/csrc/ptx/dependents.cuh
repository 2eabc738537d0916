// Kernels that follow each other at a small distance (programmatic dependent launch), as a thread of one sees it.
#pragma once

namespace w4afp8 {

// Everything the kernels before this one wrote is visible after this line.  Before it nothing may be written, and
// nothing read that the kernel before this one writes (a prefetch into L2 reads nothing; a guess may be read that is
// compared afterwards).  What is older may be read where the kernel before this one is known to have come past this
// line itself, for only then it lets the next one, this one, start its own prologue.
__device__ __forceinline__ void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace w4afp8
