//! The door of plain HTTP over real connections, with the real engine on a tiny model. What it answers is held to what
//! gRPC answers at the same address.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.

// Shared with the tests of gRPC, which use more of it.
#[allow(dead_code)]
#[path = "../grpc/files.rs"]
mod files;
#[allow(dead_code)]
#[path = "../grpc/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "../grpc/harness.rs"]
mod harness;

mod client;
mod completions;
mod other_routes;
mod refusals;
mod streams;
