//! `WatchAdapters`: everything there is, then every change.
//!
//! What changes is looked up and converted once, by one task, whoever watches; a watcher only passes it on. Where many
//! watch, they are told in groups and not all at once, so that those who ask for text need not wait for all of them, and
//! changes of the state of one adapter that come while the last ones are still being told become one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::super::{convert, pb, status};
use crate::adapters::{AdapterEvent, AdapterEventKind, AdapterObserver, AdapterRegistry, EventLog};
use crate::types::AdapterName;
use crate::wire::{Exhausted, Peer, Share, Shares};
use pb::AdapterEventType as EventType;

pub(super) type Watch = ReceiverStream<Result<pb::WatchAdaptersResponse, Status>>;

/// Messages a watcher may be behind before it is waited for. What comes meanwhile is remembered, up to a point.
const CHANNEL: usize = 16;
const PAGE: usize = 256;

/// Watchers in all, and from one peer.
const MAX_WATCHERS: u64 = 1024;
const MAX_WATCHERS_PER_PEER: u64 = 256;

/// Watchers that are told at the same time.
const GROUP: usize = 16;
/// Time from one group to the next.
const GROUP_PAUSE: Duration = Duration::from_millis(1);
/// Time from one batch of changes to the next, and what each message to a watcher adds to it: telling watchers takes a
/// few hundredths of a core at most, however many there are and whatever changes.
const BATCH_PAUSE: Duration = Duration::from_millis(5);
const MESSAGE_PAUSE: Duration = Duration::from_micros(50);

/// A change as watchers are told of it.
#[derive(Clone)]
enum News {
    Changed(Arc<pb::WatchAdaptersResponse>),
    /// Changes came faster than they could be told.
    Lost,
}

/// Where watchers hear of changes.
pub(super) struct Feed {
    groups: Groups,
    watchers: Shares,
}

/// Turns the registry's calls into something that can be awaited.
struct Bridge {
    revision: watch::Sender<u64>,
}

impl AdapterObserver for Bridge {
    fn on_event(&self, revision: u64) {
        self.revision.send_replace(revision);
    }
}

/// Groups of watchers, each with a channel of its own.
#[derive(Clone)]
struct Groups {
    /// News that a watcher may be behind.
    history: usize,
    channels: Arc<Mutex<Vec<broadcast::Sender<News>>>>,
}

impl Groups {
    fn join(&self) -> broadcast::Receiver<News> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|channel| channel.receiver_count() > 0);
        if let Some(channel) = channels.iter().find(|channel| channel.receiver_count() < GROUP) {
            return channel.subscribe();
        }
        let (channel, receiver) = broadcast::channel(self.history);
        channels.push(channel);
        receiver
    }

    fn all(&self) -> Vec<broadcast::Sender<News>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tell everybody; how many messages that makes.
    async fn tell(&self, news: &[News]) -> usize {
        let mut watchers = 0;
        for (index, channel) in self.all().into_iter().enumerate() {
            if index > 0 {
                tokio::time::sleep(GROUP_PAUSE).await;
            }
            watchers += channel.receiver_count();
            for news in news {
                // Fails where the last of the group has just left.
                let _ = channel.send(news.clone());
            }
        }
        watchers * news.len()
    }
}

impl Feed {
    /// Follow the log of `registry`. Must be called within a runtime.
    pub(super) fn of(registry: &Arc<AdapterRegistry>) -> Self {
        let events: &EventLog = registry.events();
        let seen = events.revision();
        let (revision, revisions) = watch::channel(seen);
        events.observe(Arc::new(Bridge { revision }));
        let groups = Groups { history: events.capacity(), channels: Arc::default() };
        let announcer = Announcer { registry: Arc::downgrade(registry), seen, revisions, groups: groups.clone() };
        tokio::spawn(announcer.run());
        Self { groups, watchers: Shares::new(MAX_WATCHERS, MAX_WATCHERS_PER_PEER) }
    }

    /// Begin to watch.
    ///
    /// # Errors
    /// There are as many watchers as allowed.
    pub(super) fn watch(&self, registry: Arc<AdapterRegistry>, peer: Peer) -> Result<Watch, Exhausted> {
        let place = self.watchers.acquire(peer, 1)?;
        let (sender, receiver) = mpsc::channel(CHANNEL);
        // Before the list is made: a change in between is sent twice rather than never.
        let watcher = Watcher { registry, news: self.groups.join(), sender, _place: place };
        tokio::spawn(watcher.run());
        Ok(ReceiverStream::new(receiver))
    }
}

/// Looks changes up and tells of them.
struct Announcer {
    registry: Weak<AdapterRegistry>,
    seen: u64,
    revisions: watch::Receiver<u64>,
    groups: Groups,
}

impl Announcer {
    /// Until the registry is gone.
    async fn run(mut self) {
        loop {
            let seen = self.seen;
            if self.revisions.wait_for(|revision| *revision > seen).await.is_err() {
                return;
            }
            let Some(news) = self.news() else { return };
            let messages = self.groups.tell(&news).await;
            let messages = u32::try_from(messages).unwrap_or(u32::MAX);
            tokio::time::sleep(BATCH_PAUSE + MESSAGE_PAUSE.saturating_mul(messages)).await;
        }
    }

    /// What happened since last time. `None`: the registry is gone.
    fn news(&mut self) -> Option<Vec<News>> {
        let registry = self.registry.upgrade()?;
        let (since, now) = (self.seen, registry.events().revision());
        self.seen = now;
        // Whoever begins to watch from here on finds what happened so far in the list.
        if self.groups.all().is_empty() {
            return Some(Vec::new());
        }
        let Ok(events) = registry.events().since(since) else { return Some(vec![News::Lost]) };
        self.seen = events.last().map_or(now, |last| last.revision);
        let responses = changes(&registry, events).into_iter().filter_map(|change| change.look_up(&registry));
        Some(responses.map(|response| News::Changed(Arc::new(response))).collect())
    }
}

/// A change of a name.
struct Change {
    kind: EventType,
    name: AdapterName,
    event: AdapterEvent,
}

impl Change {
    /// As it is now. `None`: the name is gone since, which is told later.
    fn look_up(&self, registry: &AdapterRegistry) -> Option<pb::WatchAdaptersResponse> {
        let adapter = if self.kind == EventType::Deleted {
            let (name, version) = (self.name.to_string(), self.event.version.to_string());
            pb::Adapter { name, version, ..pb::Adapter::default() }
        } else {
            convert::adapter(&registry.get(&self.name).ok()?)
        };
        Some(pb::WatchAdaptersResponse { r#type: self.kind.into(), adapter: Some(adapter) })
    }
}

/// The changes of names that `events` make: those of a version are changes of every name that stands for it, and of
/// several in a row of one name one is left, since its state is looked up when it is told.
fn changes(registry: &AdapterRegistry, events: Vec<AdapterEvent>) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    let mut last_of: HashMap<AdapterName, EventType> = HashMap::new();
    for event in events {
        let kind = kind_of(event.kind);
        let names = match &event.name {
            Some(name) => vec![name.clone()],
            None => registry.names_of(event.version),
        };
        for name in names {
            let before = last_of.insert(name.clone(), kind);
            if kind != EventType::Updated || before != Some(EventType::Updated) {
                changes.push(Change { kind, name, event: event.clone() });
            }
        }
    }
    changes
}

fn kind_of(kind: AdapterEventKind) -> EventType {
    match kind {
        AdapterEventKind::Created => EventType::Created,
        AdapterEventKind::Replaced { .. } => EventType::Replaced,
        AdapterEventKind::Deleted => EventType::Deleted,
        AdapterEventKind::Pinned { .. }
        | AdapterEventKind::Described
        | AdapterEventKind::Loading
        | AdapterEventKind::Resident
        | AdapterEventKind::Evicted
        | AdapterEventKind::LoadFailed
        | AdapterEventKind::SetAside
        | AdapterEventKind::Reinstated => EventType::Updated,
    }
}

struct Watcher {
    registry: Arc<AdapterRegistry>,
    news: broadcast::Receiver<News>,
    sender: mpsc::Sender<Result<pb::WatchAdaptersResponse, Status>>,
    _place: Share,
}

/// The client is gone.
struct Gone;

impl Watcher {
    async fn run(mut self) {
        // Fails only when there is nobody left to tell.
        let _ = self.follow().await;
    }

    async fn follow(&mut self) -> Result<(), Gone> {
        self.send_existing().await?;
        self.send(EventType::Synced, None).await?;
        loop {
            let news = tokio::select! {
                () = self.sender.closed() => return Err(Gone),
                news = self.news.recv() => news,
            };
            match news {
                Ok(News::Changed(response)) => {
                    self.sender.send(Ok((*response).clone())).await.map_err(|_| Gone)?;
                }
                Ok(News::Lost) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    return self.sender.send(Err(status::watcher_lagged())).await.map_err(|_| Gone);
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
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

    async fn send(&self, kind: EventType, adapter: Option<pb::Adapter>) -> Result<(), Gone> {
        let response = pb::WatchAdaptersResponse { r#type: kind.into(), adapter };
        self.sender.send(Ok(response)).await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests;
