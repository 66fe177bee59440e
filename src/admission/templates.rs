//! Chat templates that adapters bring. One is compiled when it is first asked for and kept by its content, so that
//! adapters of one trainer share it; how much is kept is bounded, and what is gone is compiled again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::background::{Lost, in_background};
use super::error::AdmissionError;
use super::turns::Turns;
use crate::adapters::{AdapterRegistry, OwnChatTemplate, ResolvedAdapter};
use crate::engine::AdapterInstaller;
use crate::text::{ChatError, ChatTemplate, Tokenizer, TokenizerSettings};
use crate::types::{AdapterName, ClientKey, Party, Sha256Digest};

/// Most bytes of templates that are kept compiled, as they cost.
const KEPT_BYTES: u64 = 4 << 20;
/// What a template costs beside its text, however short it is.
const EACH_BYTES: u64 = 4 << 10;

/// Templates that are compiled at a time for uploads, and for chats. Anybody may bring one, and a long one takes a part
/// of a second: some of the threads that bring adapters in are always left to adapters.
const UPLOADS: usize = 1;
const CHATS: usize = 2;

/// How long compiling is likely to take, for those who wait for a turn.
const MICROSECONDS_PER_BYTE: u64 = 2;

/// Compiles the templates of adapters for the base's tokenizer, and keeps what is in use. One per server.
pub struct AdapterTemplates {
    tokenizer: Arc<Tokenizer>,
    settings: TokenizerSettings,
    uploads: Turns,
    chats: Turns,
    kept: Mutex<Kept>,
}

impl AdapterTemplates {
    /// Special tokens are those of the base, whatever an adapter's own tokenizer says: its rows are the base's.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, settings: TokenizerSettings) -> Self {
        let (uploads, chats) = (Turns::new(UPLOADS), Turns::new(CHATS));
        Self { tokenizer, settings, uploads, chats, kept: Mutex::default() }
    }

    /// Compile a template that a client uploads and throw the result away, in the background when its turn has come.
    ///
    /// # Errors
    /// [`Lost`], and within [`ChatError::NotText`] or [`ChatError::Template`].
    pub async fn check_in_turn(
        self: &Arc<Self>,
        template: Vec<u8>,
        client: ClientKey,
        installer: &dyn AdapterInstaller,
    ) -> Result<Result<(), ChatError>, Lost> {
        let (templates, party) = (Arc::clone(self), Party { client, adapter: None });
        let work = move |template: &[u8]| templates.check(template);
        in_turn(&self.uploads, party, template.len() as u64, installer, move || work(&template)).await
    }

    /// Compile a template and throw the result away. Takes a part of a second where it is long.
    ///
    /// # Errors
    /// [`ChatError::NotText`], [`ChatError::Template`].
    pub fn check(&self, template: &[u8]) -> Result<(), ChatError> {
        self.compile(template).map(drop)
    }

    fn compile(&self, template: &[u8]) -> Result<ChatTemplate, ChatError> {
        ChatTemplate::from_bytes(template, &self.settings, &self.tokenizer)
    }

    /// The compiled template of an adapter. Those who ask at the same time wait for one of them, who reads and compiles
    /// it in the background: a disk that hangs holds up those alone. A failure is not kept.
    pub(super) async fn of(
        self: &Arc<Self>,
        adapter: &ResolvedAdapter,
        template: OwnChatTemplate,
        party: Party,
        registry: &Arc<AdapterRegistry>,
        installer: &dyn AdapterInstaller,
    ) -> Result<Arc<ChatTemplate>, AdmissionError> {
        let cell = self.kept().cell(template);
        let compiled = cell.get_or_try_init(|| async {
            let (registry, lease, templates) = (Arc::clone(registry), adapter.lease.clone(), Arc::clone(self));
            let name = adapter.name.clone();
            let compile = move || {
                let bytes = registry.read_chat_template(&lease)?;
                let failed = |source| AdmissionError::Chat { adapter: Some(name), source };
                templates.compile(&bytes).map(Arc::new).map_err(failed)
            };
            let compiled = in_turn(&self.chats, party, template.bytes, installer, compile).await;
            compiled.map_err(|Lost| AdmissionError::TokenizerPanicked)?
        });
        compiled.await.cloned()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work at so many bytes, in the background when its turn has come.
async fn in_turn<T: Send + 'static>(
    turns: &Turns,
    party: Party,
    bytes: u64,
    installer: &dyn AdapterInstaller,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    let turn = turns.take(party, bytes.saturating_mul(MICROSECONDS_PER_BYTE)).await;
    in_background(installer, move || {
        // The turn goes with the work and not with the client, who may leave before it is done.
        let _turn = turn;
        work()
    })
    .await
}

/// A chat template, and the adapter whose own it is; `None`: the model's.
pub(super) struct Chosen {
    pub(super) template: Arc<ChatTemplate>,
    pub(super) adapter: Option<AdapterName>,
}

type Cell = Arc<OnceCell<Arc<ChatTemplate>>>;

#[derive(Default)]
struct Kept {
    entries: HashMap<Sha256Digest, Entry>,
    bytes: u64,
    /// Counts uses.
    clock: u64,
}

struct Entry {
    cell: Cell,
    bytes: u64,
    used: u64,
}

impl Kept {
    fn cell(&mut self, template: OwnChatTemplate) -> Cell {
        self.clock += 1;
        let bytes = template.bytes.min(KEPT_BYTES) + EACH_BYTES;
        let entry = self.entries.entry(template.sha256).or_insert_with(|| {
            self.bytes += bytes;
            Entry { cell: Cell::default(), bytes, used: 0 }
        });
        entry.used = self.clock;
        let cell = Arc::clone(&entry.cell);
        while self.bytes > KEPT_BYTES && self.entries.len() > 1 {
            self.forget_oldest();
        }
        cell
    }

    fn forget_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(sha256, _)| *sha256);
        if let Some(entry) = oldest.and_then(|oldest| self.entries.remove(&oldest)) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests;
