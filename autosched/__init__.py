"""autosched: tune attention and GEMM graphs into fast kernels."""
