//! Chat templates that adapters bring. One is compiled when it is first asked for and kept by its content, so that
//! adapters of one trainer share it; how much is kept is bounded, and what is gone is compiled again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::error::AdmissionError;
use super::hall::AdapterHall;
use crate::adapters::{AdapterRegistry, OwnChatTemplate, ResolvedAdapter, Sha256Digest};
use crate::text::{ChatError, ChatTemplate, Tokenizer, TokenizerSettings};
use crate::types::AdapterName;

/// Most bytes of templates that are kept compiled, as they cost.
const KEPT_BYTES: u64 = 4 << 20;
/// What a template costs beside its text, however short it is.
const EACH_BYTES: u64 = 4 << 10;

/// Compiles the templates of adapters for the base's tokenizer, and keeps what is in use. One per server.
pub struct AdapterTemplates {
    tokenizer: Arc<Tokenizer>,
    settings: TokenizerSettings,
    kept: Mutex<Kept>,
}

impl AdapterTemplates {
    /// Special tokens are those of the base, whatever an adapter's own tokenizer says: its rows are the base's.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, settings: TokenizerSettings) -> Self {
        Self { tokenizer, settings, kept: Mutex::default() }
    }

    /// Compile a template and throw the result away.
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
        registry: &Arc<AdapterRegistry>,
        hall: &dyn AdapterHall,
    ) -> Result<Arc<ChatTemplate>, AdmissionError> {
        let cell = self.kept().cell(template);
        let compiled = cell.get_or_try_init(|| async {
            let (registry, lease, templates) = (Arc::clone(registry), adapter.lease.clone(), Arc::clone(self));
            let name = adapter.name.clone();
            let (done, compiled) = tokio::sync::oneshot::channel();
            hall.in_background(Box::new(move || {
                let compile = || {
                    let bytes = registry.read_chat_template(&lease)?;
                    let failed = |source| AdmissionError::Chat { adapter: Some(name), source };
                    templates.compile(&bytes).map(Arc::new).map_err(failed)
                };
                // The client may have left meanwhile.
                let _ = done.send(compile());
            }));
            compiled.await.map_err(|_| AdmissionError::TokenizerPanicked)?
        });
        compiled.await.cloned()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
