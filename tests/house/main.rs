//! The whole house: the command as a user runs it, and the bundled adapters through the real server.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.

#[path = "../emulator/mod.rs"]
mod emulator;
#[path = "../../benches/gpu/bench/mod.rs"]
#[allow(dead_code)] // The bench uses all of it.
mod gpu_bench;
#[path = "../../benches/gpu_model/model/mod.rs"]
#[allow(dead_code)] // As above.
mod gpu_model;
#[path = "../../benches/support/mod.rs"]
mod support;

mod accuracy;
mod benches;
mod bring;
mod command;
mod command_line;
mod doctor;
mod gguf;
mod gpu;
mod kernels;
#[cfg(unix)]
mod store;
mod tls;
