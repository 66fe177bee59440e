//! One request, as its choices have it in common.

use std::sync::Arc;
use std::time::Instant;

use super::policy::Rank;
use crate::cache::PrefixScope;
use crate::types::Party;

/// What the choices of a request share.
#[derive(Debug)]
pub(super) struct Request {
    /// Choices that have not ended.
    pub(super) live: Vec<Rank>,
    pub(super) scope: Arc<PrefixScope>,
    pub(super) deadline: Option<Instant>,
    /// Who is charged for it.
    pub(super) party: Party,
    /// Laid aside until its reader has caught up; it is in no queue and with no party then.
    pub(super) parked: bool,
    /// Its first row has entered a step.
    pub(super) started: bool,
    /// Its first choice has computed the whole prompt, so the others can reuse those blocks.
    pub(super) prompt_computed: bool,
}
