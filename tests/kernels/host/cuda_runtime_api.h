// In place of CUDA's header, for programs that follow kernels on a CPU.
#pragma once
using cudaStream_t = struct CUstream_st*;
