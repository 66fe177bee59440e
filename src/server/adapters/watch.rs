//! `WatchAdapters`: everything there is, then every change.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::super::{convert, pb, status};
use crate::adapters::{AdapterEvent, AdapterEventKind, AdapterInfo, AdapterObserver, AdapterRegistry, EventLog};
use pb::AdapterEventType as EventType;

pub(super) type Watch = ReceiverStream<Result<pb::WatchAdaptersResponse, Status>>;

/// Events a watcher may be behind before it is waited for. The event log remembers what comes meanwhile.
const CHANNEL: usize = 16;
const PAGE: usize = 256;

/// Turns the registry's calls into something that can be awaited.
pub(super) struct Bridge {
    revision: watch::Sender<u64>,
}

impl Bridge {
    pub(super) fn observe(events: &EventLog) -> Arc<Self> {
        let bridge = Arc::new(Self { revision: watch::Sender::new(events.revision()) });
        events.observe(Arc::clone(&bridge) as Arc<dyn AdapterObserver>);
        bridge
    }
}

impl AdapterObserver for Bridge {
    fn on_event(&self, revision: u64) {
        self.revision.send_replace(revision);
    }
}

pub(super) fn start(registry: Arc<AdapterRegistry>, bridge: &Bridge) -> Watch {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let watcher = Watcher { registry, revisions: bridge.revision.subscribe(), sender };
    tokio::spawn(watcher.run());
    ReceiverStream::new(receiver)
}

struct Watcher {
    registry: Arc<AdapterRegistry>,
    revisions: watch::Receiver<u64>,
    sender: mpsc::Sender<Result<pb::WatchAdaptersResponse, Status>>,
}

/// The client is gone.
struct Gone;

impl Watcher {
    async fn run(mut self) {
        // Fails only when there is nobody left to tell.
        let _ = self.follow().await;
    }

    async fn follow(&mut self) -> Result<(), Gone> {
        // Read before the list is made: a change in between is sent twice rather than never.
        let mut seen = self.registry.events().revision();
        self.send_existing().await?;
        self.send(EventType::Synced, None).await?;
        loop {
            let events = match self.registry.events().since(seen) {
                Ok(events) => events,
                Err(_) => {
                    return self.sender.send(Err(status::watcher_lagged())).await.map_err(|_| Gone);
                }
            };
            for event in events {
                seen = event.revision;
                self.send_event(event).await?;
            }
            tokio::select! {
                () = self.sender.closed() => return Err(Gone),
                changed = self.revisions.wait_for(|revision| *revision > seen) => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn send_existing(&mut self) -> Result<(), Gone> {
        let mut after = None;
        loop {
            let page = self.registry.list(after.as_ref(), PAGE);
            for info in &page {
                self.send(EventType::Existing, Some(convert::adapter(info))).await?;
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.stored.name.clone()),
                _ => return Ok(()),
            }
        }
    }

    async fn send_event(&mut self, event: AdapterEvent) -> Result<(), Gone> {
        let AdapterEvent { name, version, kind, .. } = event;
        let kind = match kind {
            AdapterEventKind::Created => EventType::Created,
            AdapterEventKind::Replaced { .. } => EventType::Replaced,
            AdapterEventKind::Deleted => EventType::Deleted,
            AdapterEventKind::Pinned { .. }
            | AdapterEventKind::Loading
            | AdapterEventKind::Resident
            | AdapterEventKind::Evicted
            | AdapterEventKind::LoadFailed
            | AdapterEventKind::SetAside
            | AdapterEventKind::Reinstated => EventType::Updated,
        };
        match name {
            Some(name) if kind == EventType::Deleted => {
                let adapter =
                    pb::Adapter { name: name.to_string(), version: version.to_string(), ..pb::Adapter::default() };
                self.send(kind, Some(adapter)).await
            }
            Some(name) => match self.registry.get(&name) {
                Ok(info) => self.send(kind, Some(convert::adapter(&info))).await,
                // Deleted since; that event follows.
                Err(_) => Ok(()),
            },
            None => {
                for info in self.named(version) {
                    self.send(kind, Some(convert::adapter(&info))).await?;
                }
                Ok(())
            }
        }
    }

    /// The adapters that stand for a version now.
    fn named(&self, version: crate::types::AdapterVersion) -> Vec<AdapterInfo> {
        let all = self.registry.list(None, usize::MAX);
        all.into_iter().filter(|info| info.stored.version == version).collect()
    }

    async fn send(&self, kind: EventType, adapter: Option<pb::Adapter>) -> Result<(), Gone> {
        let response = pb::WatchAdaptersResponse { r#type: kind.into(), adapter };
        self.sender.send(Ok(response)).await.map_err(|_| Gone)
    }
}
