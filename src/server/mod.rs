//! The porch: gRPC services, conversions, statuses, streams. The only room that knows tonic and generated code.

/// Generated from `proto/polydelta/v1`; the messages are documented there.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod pb {
    tonic::include_proto!("polydelta.v1");

    /// Every message and service above, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
