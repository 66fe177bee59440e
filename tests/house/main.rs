//! The whole house: the command as a user runs it, and the bundled adapters through the real server.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.

mod accuracy;
mod bring;
mod command;
mod command_line;
mod gguf;
#[cfg(unix)]
mod store;
mod tls;
