//! Fast kernels for the CPU.
