//! The gRPC server over real connections, with an engine and a device that do as the test says.

mod fakes;
mod generation;
mod harness;
