"""Products: matrices, batches, convolutions as implicit GEMM, weights of few bits, with any epilogue."""
