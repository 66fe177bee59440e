//! `AdapterService`: uploads, adapters, residency. Whatever touches the disk runs off the reactor.

mod describe;
pub(super) mod upload;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status, Streaming};

use self::describe::describe;
use self::watch::{Feed, Watch};
use super::call::{CallContext, client_of};
use super::pb::adapter_service_server::AdapterService;
use super::{convert, page, pb, status};
use crate::adapters::{AdapterError, AdapterInfo, AdapterRegistry, InvalidUploadId};
use crate::admission::{Intake, off_reactor};
use crate::types::AdapterName;

/// What `AdapterService` is made of.
#[derive(Clone)]
pub struct Adapters {
    registry: Arc<AdapterRegistry>,
    intake: Arc<Intake>,
    feed: Arc<Feed>,
    upload_idle: Duration,
}

impl Adapters {
    /// An upload that sends nothing for `upload_idle` is ended. Must be called within a runtime.
    #[must_use]
    pub fn new(registry: Arc<AdapterRegistry>, intake: Arc<Intake>, upload_idle: Duration) -> Self {
        let feed = Arc::new(Feed::of(&registry));
        Self { registry, intake, feed, upload_idle }
    }

    /// Run `work` on the registry where it may block.
    async fn blocking<T, F>(&self, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(&AdapterRegistry) -> Result<T, AdapterError> + Send + 'static,
    {
        let registry = Arc::clone(&self.registry);
        let done = off_reactor(move || work(&registry)).await.map_err(|lost| status::of(&lost))?;
        done.map_err(|error| status::of(&error))
    }
}

fn name(text: &str) -> Result<AdapterName, Status> {
    convert::adapter_name("name", text).map_err(|bad| status::of(&bad))
}

#[tonic::async_trait]
impl AdapterService for Adapters {
    async fn upload_adapter(
        &self,
        request: Request<Streaming<pb::UploadAdapterRequest>>,
    ) -> Result<Response<pb::UploadAdapterResponse>, Status> {
        let client = client_of(&request);
        let upload = upload::Upload { intake: &self.intake, registry: &self.registry, idle: self.upload_idle, client };
        upload.receive(request.into_inner()).await.map(Response::new)
    }

    async fn get_upload(
        &self,
        request: Request<pb::GetUploadRequest>,
    ) -> Result<Response<pb::GetUploadResponse>, Status> {
        let upload_id = request.into_inner().upload_id;
        let id = upload_id.parse().map_err(|error: InvalidUploadId| status::of(&error))?;
        // Waits for the disk where a chunk is being written just now.
        let progress = self.blocking(move |registry| registry.upload_status(&id)).await?;
        Ok(Response::new(pb::GetUploadResponse { upload: Some(convert::upload(upload_id, &progress)) }))
    }

    async fn get_adapter(
        &self,
        request: Request<pb::GetAdapterRequest>,
    ) -> Result<Response<pb::GetAdapterResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        Ok(Response::new(pb::GetAdapterResponse { adapter: Some(describe(&self.registry, &name)?) }))
    }

    async fn list_adapters(
        &self,
        request: Request<pb::ListAdaptersRequest>,
    ) -> Result<Response<pb::ListAdaptersResponse>, Status> {
        let pb::ListAdaptersRequest { page_size, page_token } = request.into_inner();
        let refuse = |bad| status::of(&bad);
        let (size, after) = (page::size(page_size).map_err(refuse)?, page::after(&page_token).map_err(refuse)?);
        // One more than asked for tells whether there is a next page.
        let mut found: Vec<AdapterInfo> = self.registry.list(after.as_ref(), size + 1);
        let more = found.len() > size;
        found.truncate(size);
        let next = found.last().filter(|_| more).map(|last| page::token(&last.stored.name));
        Ok(Response::new(pb::ListAdaptersResponse {
            adapters: found.iter().map(convert::adapter).collect(),
            next_page_token: next.unwrap_or_default(),
            total_size: convert::saturate(self.registry.len()),
        }))
    }

    async fn delete_adapter(
        &self,
        request: Request<pb::DeleteAdapterRequest>,
    ) -> Result<Response<pb::DeleteAdapterResponse>, Status> {
        let pb::DeleteAdapterRequest { name: text, expected_version, allow_missing } = request.into_inner();
        let name = name(&text)?;
        let expected = convert::expected_for_delete(expected_version.as_deref()).map_err(|bad| status::of(&bad))?;
        self.blocking(move |registry| match registry.delete(&name, expected) {
            Err(AdapterError::NotFound { .. }) if allow_missing => Ok(()),
            result => result.map(drop),
        })
        .await?;
        Ok(Response::new(pb::DeleteAdapterResponse {}))
    }

    async fn load_adapter(
        &self,
        request: Request<pb::LoadAdapterRequest>,
    ) -> Result<Response<pb::LoadAdapterResponse>, Status> {
        let client = client_of(&request);
        let pb::LoadAdapterRequest { name: text, pin } = request.into_inner();
        let name = name(&text)?;
        self.intake.load(&name, pin, client).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::LoadAdapterResponse { adapter: Some(describe(&self.registry, &name)?) }))
    }

    async fn unload_adapter(
        &self,
        request: Request<pb::UnloadAdapterRequest>,
    ) -> Result<Response<pb::UnloadAdapterResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        let unloading = name.clone();
        self.blocking(move |registry| registry.unload(&unloading)).await?;
        Ok(Response::new(pb::UnloadAdapterResponse { adapter: Some(describe(&self.registry, &name)?) }))
    }

    type WatchAdaptersStream = Watch;

    async fn watch_adapters(
        &self,
        request: Request<pb::WatchAdaptersRequest>,
    ) -> Result<Response<Self::WatchAdaptersStream>, Status> {
        let peer = CallContext::peer_of(request.extensions());
        let watch = self.feed.watch(Arc::clone(&self.registry), peer);
        watch
            .map(Response::new)
            .map_err(|exhausted| status::of_problem(exhausted.problem("TOO_MANY_WATCHERS", "too many watchers")))
    }
}
