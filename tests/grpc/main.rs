//! The gRPC server over real connections, with an engine and a device that do as the test says.

mod adapters;
mod fakes;
mod generation;
mod harness;
mod lifecycle;
mod raw;
mod transport;
