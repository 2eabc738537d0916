"""Speed: grouped GEMM, dense GEMM and the fused MoE layer on int4 weights and e4m3 activations.

`w4afp8.kernels.ops` registers `torch.ops.w4afp8.*`; import it to use them.  This package imports neither torch nor
CUDA by itself, so that a command line that only prints its help stays quick.
"""
