//! The result of an upload: plain data.

use std::sync::Arc;

use super::stored::StoredAdapter;
use crate::types::{AdapterFacts, AdapterVersion};

/// The result of an upload.
#[derive(Clone, Debug)]
pub struct Published {
    /// The adapter as it was when the upload was acknowledged.
    pub adapter: StoredAdapter,
    /// What it compiled to.
    pub facts: Arc<AdapterFacts>,
    /// The name did not exist before.
    pub created: bool,
    /// The version the name stood for before, if it was another one.
    pub replaced: Option<AdapterVersion>,
}
