// In place of CUDA's header, for programs that follow kernels on a CPU.
#pragma once
#include "numbers.h"
