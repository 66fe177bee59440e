//! Tokens that adapters bring: the base's tokenizer with an adapter's own tokens beside, made when a text is first to be read
//! for it and kept by its content. The base's model is in none of them.

use std::sync::Arc;

use super::{AdapterTexts, OwnText, in_turn, locked};
use crate::adapters::{AdapterRegistry, OwnTokensFile, ResolvedAdapter, Staged, TokenizerFiles};
use crate::admission::background::Lost;
use crate::admission::error::AdmissionError;
use crate::admission::intake::IntakeError;
use crate::engine::AdapterInstaller;
use crate::text::{ChatTemplate, OwnTokens, OwnTokensError, SavedTokens};
use crate::types::{Party, Sha256Digest};

/// What a token that is looked for in a text costs: its text four times, and what finds it.
const BYTES_PER_ADDED_TOKEN: u64 = 1 << 10;

impl AdapterTexts {
    /// What is kept of the tokenizer that came with an adapter of so many rows (`None`: as many as the base has), where it has
    /// tokens that the base does not have.
    ///
    /// # Errors
    /// [`OwnTokensError`], which names the token.
    pub fn own_tokens(&self, saved: Option<SavedTokens>, rows: Option<u32>) -> Result<Option<Vec<u8>>, OwnTokensError> {
        let Some(saved) = saved else { return Ok(None) };
        let Some(own) = OwnTokens::beside(&self.tokenizer, saved)? else { return Ok(None) };
        own.check_rows(self.vocab_size, rows)?;
        own.to_file().map(Some)
    }

    /// Keep of an upload's tokenizer what it has and the base has not. Blocks.
    pub(in crate::admission) fn settle(&self, staged: &mut Staged, rows: Option<u32>) -> Result<(), IntakeError> {
        let TokenizerFiles { tokenizer, config } = staged.tokenizer()?;
        let own = self.own_tokens(SavedTokens::read(tokenizer.as_deref(), config.as_deref())?, rows)?;
        Ok(staged.keep_tokenizer(own.as_deref())?)
    }

    /// The tokenizer of an adapter with tokens of its own. As for its template: those who ask at the same time wait for one of
    /// them, in the background, and a failure is not kept. `template` is the model's.
    pub(in crate::admission) async fn text(
        self: &Arc<Self>,
        adapter: &ResolvedAdapter,
        tokens: OwnTokensFile,
        template: Option<&Arc<ChatTemplate>>,
        party: Party,
        registry: &Arc<AdapterRegistry>,
        installer: &dyn AdapterInstaller,
    ) -> Result<Arc<OwnText>, AdmissionError> {
        let cell = locked(&self.tokens).cell(tokens.sha256, self.cost(tokens));
        let made = cell.get_or_try_init(|| async {
            let (registry, lease, texts) = (Arc::clone(registry), adapter.lease.clone(), Arc::clone(self));
            let (name, template) = (adapter.name.clone(), template.cloned());
            let make = move || {
                let bytes = registry.read_own_tokens(&lease)?;
                let failed = |source| AdmissionError::OwnTokens { adapter: name, source: Box::new(source) };
                texts.make(&bytes, tokens.sha256, template.as_deref()).map(Arc::new).map_err(failed)
            };
            let made = in_turn(&self.chats, party, tokens.bytes, installer, make).await;
            made.map_err(|Lost| AdmissionError::TokenizerPanicked)?
        });
        made.await.cloned()
    }

    fn make(
        &self,
        file: &[u8],
        sha256: Sha256Digest,
        template: Option<&ChatTemplate>,
    ) -> Result<OwnText, OwnTokensError> {
        let saved = SavedTokens::read(Some(file), None)?.unwrap_or_default();
        let settings = self.settings.with_eos(saved.eos());
        let eos = saved.eos().map(str::to_owned);
        let tokenizer = match OwnTokens::beside(&self.tokenizer, saved)? {
            Some(own) => Arc::new(self.tokenizer.with_tokens(&own)?),
            // The base's tokenizer was replaced by one that has all of them.
            None => Arc::clone(&self.tokenizer),
        };
        let template = template.map(|template| template.for_tokenizer(&settings, &tokenizer)).transpose();
        Ok(OwnText {
            eos: eos.and_then(|eos| tokenizer.token_id(&eos)),
            chat_template: template?.map(Arc::new),
            settings,
            tokenizer,
            sha256,
        })
    }

    fn cost(&self, tokens: OwnTokensFile) -> u64 {
        let of_base = self.tokenizer.added_count() as u64 * BYTES_PER_ADDED_TOKEN;
        tokens.bytes.saturating_mul(8).saturating_add(of_base)
    }
}
