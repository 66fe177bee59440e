//! `ServerService`: what is served, and what it does now.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status};

use super::pb::server_service_server::ServerService;
use super::server_info::ServerInfo;
use super::{convert, pb, status};
use crate::adapters::AdapterRegistry;
use crate::engine::GenerationEngine;

/// What `ServerService` is made of.
#[derive(Clone)]
pub struct Informer {
    info: Arc<ServerInfo>,
    engine: Arc<dyn GenerationEngine>,
    registry: Arc<AdapterRegistry>,
    started: Instant,
}

impl Informer {
    /// `started` is when the process began.
    #[must_use]
    pub fn new(
        info: ServerInfo,
        engine: Arc<dyn GenerationEngine>,
        registry: Arc<AdapterRegistry>,
        started: Instant,
    ) -> Self {
        Self { info: Arc::new(info), engine, registry, started }
    }
}

#[tonic::async_trait]
impl ServerService for Informer {
    async fn get_server_info(
        &self,
        _: Request<pb::GetServerInfoRequest>,
    ) -> Result<Response<pb::GetServerInfoResponse>, Status> {
        Ok(Response::new(convert::server_info(&self.info)))
    }

    async fn get_stats(&self, _: Request<pb::GetStatsRequest>) -> Result<Response<pb::GetStatsResponse>, Status> {
        let engine = self.engine.stats().await.map_err(|error| status::of(&error))?;
        let adapters = self.registry.residency().stats();
        let response = convert::stats(engine, self.registry.len(), &adapters, self.started.elapsed());
        Ok(Response::new(response))
    }
}
