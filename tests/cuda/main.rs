//! The CUDA backend on an emulated device: the kernels' own source, run on the host behind a driver of its own
//! (`tests/emulator`), against `ops::reference` and against transformers + peft.
//!
//! `grid` compares every kernel over dtypes, ranks, widths, popularities of adapters and numbers of rows: a sample of these in
//! every run, and all of them with `cargo test --release --test cuda grid -- --ignored`.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.

#[path = "../emulator/mod.rs"]
mod emulator;

mod attention;
mod bottleneck;
mod device;
mod every_op;
mod expert_deltas;
mod experts;
mod grid;
mod library_gemm;
mod matrices;
mod pooled;
mod replaced;
mod rows;
mod sample;
#[path = "../ops/mod.rs"]
mod scene;
mod vocabulary;
