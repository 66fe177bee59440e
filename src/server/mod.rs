//! The porch: gRPC services, conversions, statuses, streams. The only room that knows tonic and generated code.
