//! What `modules_to_save` of a config says of the embedding and of the head, which a tied base has as one.

use super::saved::SavedNames;
use crate::delta::layout::{BaseLayout, Module, Site};

/// Which of them the file has whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SavedEmbedding {
    /// The embedding.
    pub(crate) is_saved: bool,
    /// The head goes with it: `ensure_weight_tying` on a tied base.
    pub(crate) is_tied: bool,
    /// The head by itself.
    has_head: bool,
}

impl SavedEmbedding {
    /// `is_tied`: PEFT keeps the head of the tied base tied, and saves the embedding for either name.
    pub(crate) fn of(names: &SavedNames, layout: &BaseLayout, is_tied: bool) -> Self {
        let saves = |site| layout.modules().any(|module| module.site == site && names.contain(&module.path));
        let (embedding, head) = (saves(Site::Embed), saves(Site::LmHead));
        Self { is_saved: embedding || (is_tied && head), is_tied, has_head: head && !is_tied }
    }

    /// Whether a module is in the file whole, so that no method changes it.
    pub(crate) fn contains(self, module: &Module) -> bool {
        match module.site {
            Site::Embed => self.is_saved,
            Site::LmHead => self.has_head || (self.is_saved && self.is_tied),
            _ => false,
        }
    }
}
