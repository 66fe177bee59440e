//! `Bottleneck`, h += s·(U·f(D·v + b1) + b2) at a hidden site: adapters (Houlsby et al. 2019; Pfeiffer et al. 2020), beside the
//! block (He et al. 2022), with norms of their own.
//!
//! Which of x, the stream, and h, what the block adds to it, are read and kept, its [`Wiring`] says.

use super::loading::Loading;
use super::op::ClassOp;
use crate::delta::change::{Change, length, product_norm};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::{HiddenSites, Place};
use crate::ops::{self, Backend, HostMatrix, HostTensor, NonLinearity, OpsError, SiteId, WeightFormat, Wiring};

/// torch's default.
const NORM_EPS: f32 = 1e-5;

/// h += s·(U·f(D·v + b1) + b2).
#[derive(Clone, Debug, PartialEq)]
pub struct Bottleneck {
    /// What v is, and what x and h become before the sum.
    pub wiring: Wiring,
    /// Of v, before it is read.
    pub norm_before: Option<LayerNorm>,
    /// D, `[rank, hidden]`.
    pub down: HostTensor,
    /// b1, `[rank]`.
    pub down_bias: Vec<f32>,
    /// f.
    pub non_linearity: NonLinearity,
    /// U, `[hidden, rank]`.
    pub up: HostTensor,
    /// s·b2, `[hidden]`.
    pub up_bias: Vec<f32>,
    /// s.
    pub scaling: f32,
    /// Of the sum.
    pub norm_after: Option<LayerNorm>,
}

/// A LayerNorm's weight and bias, `[hidden]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Multiplies.
    pub weight: Vec<f32>,
    /// Is added.
    pub bias: Vec<f32>,
}

impl Bottleneck {
    /// Numbers that are f32 on the device whatever matrices are.
    fn vectors(&self) -> usize {
        let norms = self.norm_before.iter().chain(&self.norm_after).map(|norm| norm.weight.len() + norm.bias.len());
        self.down_bias.len() + self.up_bias.len() + norms.sum::<usize>()
    }

    fn matrix_numbers(&self) -> usize {
        self.down.len() + self.up.len()
    }
}

impl ClassOp for Bottleneck {
    fn parameters(&self) -> usize {
        self.matrix_numbers() + self.vectors()
    }

    fn device_bytes(&self, weights: WeightFormat) -> u64 {
        (self.matrix_numbers() * weights.size() + self.vectors() * size_of::<f32>()) as u64
    }

    fn rank(&self) -> Option<usize> {
        Some(self.down.rows())
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.scaling)
    }

    fn computed(&self) -> &[f32] {
        &self.up_bias
    }

    /// Of U·D, as if f changed nothing, and of s·b2.
    fn change(&self) -> Result<Option<Change>, DeltaError> {
        let product = f64::from(self.scaling.abs()) * product_norm(&self.up, &self.down)?;
        Ok(Some(Change::OfWeight(product.hypot(length(self.up_bias.iter().copied())))))
    }

    fn matrices(&self) -> Vec<HostMatrix<'_>> {
        vec![self.down.matrix(), self.up.matrix()]
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Hidden(sites) = loading.place(site) else {
            unreachable!("compilers attach Bottleneck to hidden sites only");
        };
        let hidden = 0..loading.layout.hidden_size;
        loading.pair(sites.bottleneck, self.down.rows(), self.scaling, hidden.clone());
        let entry = ops::Bottleneck {
            wiring: self.wiring,
            non_linearity: self.non_linearity,
            down_bias: loading.numbers(&self.down_bias)?,
            up_bias: loading.numbers(&self.up_bias)?,
        };
        loading.bottleneck(sites.bottleneck, entry);
        for (site, norm) in [(sites.norm_before, self.norm_before), (sites.norm_after, self.norm_after)] {
            let Some(LayerNorm { weight, bias }) = norm else { continue };
            loading.vector(site, &weight, hidden.clone())?;
            loading.vector(site, &bias, hidden.clone())?;
        }
        Ok(())
    }
}

/// Semantics, for the rows that have a bottleneck at the site, by its [`Wiring`], x and h as they were: v, x and h become
/// sums of x and h; v = LayerNorm(v); h += s·(U·f(D·v + b1) + b2); h = LayerNorm(h), where it has these norms. `v` is scratch
/// as wide as x.
pub(crate) fn apply<B: Backend>(
    on: &StepRows<'_, B>,
    sites: &HiddenSites,
    x: &mut B::Buffer,
    h: &mut B::Buffer,
    v: &mut B::Buffer,
) {
    let Some(entries) = on.held(sites.bottleneck) else { return };
    on.backend.blend_rows(on.step, on.rows, entries, x, h, v);
    norm(on, sites.norm_before, v);
    on.backend.bottleneck(on.step, on.rows, entries, v, h);
    norm(on, sites.norm_after, h);
}

fn norm<B: Backend>(on: &StepRows<'_, B>, site: SiteId, y: &mut B::Buffer) {
    if let Some(norms) = on.held(site) {
        on.backend.layer_norm_rows(on.step, on.rows, norms, NORM_EPS, y);
    }
}
