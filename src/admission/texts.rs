//! What adapters bring for texts: chat templates, and tokens of their own. A template is compiled when it is first asked for
//! and kept by its content, so that adapters of one trainer share it.

mod own_text;
mod tokens;

pub(super) use own_text::OwnText;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::background::{Lost, in_background};
use super::error::AdmissionError;
use super::kept::Kept;
use super::turns::Turns;
use crate::adapters::{AdapterRegistry, OwnChatTemplate, ResolvedAdapter};
use crate::engine::AdapterInstaller;
use crate::text::{ChatError, ChatTemplate, Tokenizer, TokenizerSettings};
use crate::types::{AdapterName, ClientKey, Party, Sha256Digest};

/// Most bytes of templates that are kept compiled, as they cost.
const KEPT_BYTES: u64 = 4 << 20;

/// Most bytes of tokenizers with own tokens that are kept, as they are likely to cost.
const KEPT_TOKENIZER_BYTES: u64 = 64 << 20;

/// Templates that are compiled at a time for uploads, and for chats. Anybody may bring one, and a long one takes a part
/// of a second: some of the threads that bring adapters in are always left to adapters.
const UPLOADS: usize = 1;
const CHATS: usize = 2;

/// How long compiling is likely to take, for those who wait for a turn.
const MICROSECONDS_PER_BYTE: u64 = 2;

/// A template, for the tokens of an adapter where it has its own.
type TemplateKey = (Sha256Digest, Option<Sha256Digest>);

/// Makes what adapters bring ready for the base's tokenizer, and keeps what is in use. One per server.
pub struct AdapterTexts {
    tokenizer: Arc<Tokenizer>,
    settings: TokenizerSettings,
    /// Rows of the base's embedding.
    vocab_size: u32,
    uploads: Turns,
    chats: Turns,
    templates: Mutex<Kept<TemplateKey, Arc<ChatTemplate>>>,
    tokens: Mutex<Kept<Sha256Digest, Arc<OwnText>>>,
}

impl AdapterTexts {
    /// For a base of so many tokens. Its special tokens are what they are, whatever an adapter's own tokenizer says of them:
    /// their rows are the base's.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, settings: TokenizerSettings, vocab_size: u32) -> Self {
        let (uploads, chats) = (Turns::new(UPLOADS), Turns::new(CHATS));
        let (templates, tokens) = (Mutex::new(Kept::new(KEPT_BYTES)), Mutex::new(Kept::new(KEPT_TOKENIZER_BYTES)));
        Self { tokenizer, settings, vocab_size, uploads, chats, templates, tokens }
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
        self.compile(template, None).map(drop)
    }

    fn compile(&self, template: &[u8], text: Option<&OwnText>) -> Result<ChatTemplate, ChatError> {
        match text {
            Some(OwnText { settings, tokenizer, .. }) => ChatTemplate::from_bytes(template, settings, tokenizer),
            None => ChatTemplate::from_bytes(template, &self.settings, &self.tokenizer),
        }
    }

    /// The compiled template of an adapter, for its own tokens where it has any. Those who ask at the same time wait for one
    /// of them, who reads and compiles it in the background: a disk that hangs holds up those alone. A failure is not kept.
    pub(super) async fn template(
        self: &Arc<Self>,
        adapter: &ResolvedAdapter,
        template: OwnChatTemplate,
        text: Option<&Arc<OwnText>>,
        party: Party,
        registry: &Arc<AdapterRegistry>,
        installer: &dyn AdapterInstaller,
    ) -> Result<Arc<ChatTemplate>, AdmissionError> {
        let key = (template.sha256, text.map(|text| text.sha256));
        let cell = locked(&self.templates).cell(key, template.bytes);
        let compiled = cell.get_or_try_init(|| async {
            let (registry, lease, templates) = (Arc::clone(registry), adapter.lease.clone(), Arc::clone(self));
            let (name, text) = (adapter.name.clone(), text.cloned());
            let compile = move || {
                let bytes = registry.read_chat_template(&lease)?;
                let failed = |source| AdmissionError::Chat { adapter: Some(name), source };
                templates.compile(&bytes, text.as_deref()).map(Arc::new).map_err(failed)
            };
            let compiled = in_turn(&self.chats, party, template.bytes, installer, compile).await;
            compiled.map_err(|Lost| AdmissionError::TokenizerPanicked)?
        });
        compiled.await.cloned()
    }
}

fn locked<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests;
