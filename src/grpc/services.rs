//! The services of one server, with health and reflection.

use tokio::sync::watch;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tonic_reflection::server::Builder;

use super::pb::adapter_service_server::AdapterServiceServer;
use super::pb::generation_service_server::GenerationServiceServer;
use super::pb::pooling_service_server::PoolingServiceServer;
use super::pb::server_service_server::ServerServiceServer;
use super::{Adapters, Generator, Informer, Pooler, pb};
use crate::wire::{Lifecycle, Phase};

/// Everything a server answers.
pub struct Services {
    /// `GenerationService`.
    pub generation: Generator,
    /// `PoolingService`.
    pub pooling: Pooler,
    /// `AdapterService`.
    pub adapters: Adapters,
    /// `ServerService`.
    pub info: Informer,
    /// Whether to answer reflection, which grpcurl and ghz ask for.
    pub reflection: bool,
}

/// Names under which health is reported; "" is the server as a whole.
const HEALTH_NAMES: [&str; 5] = [
    "",
    <GenerationServiceServer<Generator> as NamedService>::NAME,
    <PoolingServiceServer<Pooler> as NamedService>::NAME,
    <AdapterServiceServer<Adapters> as NamedService>::NAME,
    <ServerServiceServer<Informer> as NamedService>::NAME,
];

impl Services {
    /// What calls are routed to. Health says SERVING until the server drains, or until the engine is gone
    /// and [`Lifecycle::drain`] is called for it, and not while [`Lifecycle::set_stuck`] says that it hangs.
    ///
    /// # Errors
    /// The descriptors compiled into the program cannot be read, which is a defect of the build.
    pub async fn into_routes(
        self,
        max_message_bytes: usize,
        lifecycle: &Lifecycle,
    ) -> Result<Routes, tonic_reflection::server::Error> {
        let (health, health_service) = health_reporter();
        report(&health, ServingStatus::Serving).await;
        tokio::spawn(follow_health(health, lifecycle.clone(), lifecycle.stuck()));

        let limit = max_message_bytes;
        let generation = GenerationServiceServer::new(self.generation)
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit);
        let pooling =
            PoolingServiceServer::new(self.pooling).max_decoding_message_size(limit).max_encoding_message_size(limit);
        let adapters =
            AdapterServiceServer::new(self.adapters).max_decoding_message_size(limit).max_encoding_message_size(limit);
        let info =
            ServerServiceServer::new(self.info).max_decoding_message_size(limit).max_encoding_message_size(limit);
        let routes = Routes::new(health_service).add_service(generation).add_service(pooling).add_service(adapters);
        let routes = routes.add_service(info);
        if !self.reflection {
            return Ok(routes.prepare());
        }
        let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
        Ok(routes.add_service(v1).add_service(v1alpha).prepare())
    }
}

fn reflection() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // The details of statuses: without them grpcurl shows bytes.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

/// Health is good while the server serves and does not hang.
async fn follow_health(health: HealthReporter, lifecycle: Lifecycle, mut stuck: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = lifecycle.reached(Phase::Draining) => break,
            // The sender lives as long as `lifecycle`.
            _ = stuck.changed() => {
                let status = if *stuck.borrow_and_update() { ServingStatus::NotServing } else { ServingStatus::Serving };
                report(&health, status).await;
            }
        }
    }
    report(&health, ServingStatus::NotServing).await;
}

async fn report(health: &HealthReporter, status: ServingStatus) {
    for name in HEALTH_NAMES {
        health.set_service_status(name, status).await;
    }
}
