//! `Prefix`, saved K and V at the head of every sequence: prefix tuning (Li & Liang 2021).

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::layout::Site;
use crate::delta::resident::VirtualRows;
use crate::ops::{Backend, OpsError};
use crate::types::VirtualTokens;

/// Saved K and V of one layer, `[virtual tokens, kv_dim]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixLayer {
    /// Keys as saved: no rope, no norm.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
}

/// Saved K and V, one entry per layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// Virtual tokens.
    pub count: u32,
    /// One per decoder layer.
    pub layers: Vec<PrefixLayer>,
}

impl ClassOp for Prefix {
    fn parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.k.len() + layer.v.len()).sum()
    }

    fn virtual_tokens(&self) -> Option<VirtualTokens> {
        Some(VirtualTokens { count: self.count, saved_kv: true })
    }

    fn weighting() -> Weighting<Self> {
        Err("stands at the head of a sequence, where there is room for one")
    }

    fn load<B: Backend>(self, _site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let kv_dim = loading.layout.kv_dim;
        let pair = |layer: &PrefixLayer| Ok((loading.rows(kv_dim, &layer.k)?, loading.rows(kv_dim, &layer.v)?));
        let layers = self.layers.iter().map(pair).collect::<Result<_, OpsError>>()?;
        loading.set_virtual_rows(VirtualRows::Prefix { count: self.count as usize, layers });
        Ok(())
    }
}

/// Semantics: the first KV indices of a sequence whose block table begins with `blocks` hold the saved K and V, in every
/// layer. False, and nothing written, if the virtual rows are none of these.
pub(crate) fn write<B: Backend>(
    backend: &B,
    rows: Option<&VirtualRows<B>>,
    blocks: &[u32],
    kv: &mut B::KvCache,
) -> bool {
    let Some(VirtualRows::Prefix { count, layers }) = rows else { return false };
    backend.write_pages(kv, blocks, *count, layers);
    true
}
