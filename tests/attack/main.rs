//! The server as its users run it, under attack over the network and without what a machine usually gives: the attacker
//! is held, a polite client is served, and the end is a clean one. Loops are bounded, and nothing is asserted of time.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed one is a failed test; clippy sees only test functions.

mod connections;
mod floods;
mod harness;
mod log;
mod memory;
mod messages;
#[allow(dead_code)] // Frames that only the tests of the protocol send.
#[path = "../grpc/raw.rs"]
mod raw;
mod streams;
mod templates;
mod uploads;
