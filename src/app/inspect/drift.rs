//! What an adapter does to its base, in numbers: how large its changes are, which are out of line, which are none, and how
//! far logits move. Says nothing of whether that is good.

use std::collections::BTreeMap;

use serde::Serialize;

use super::groups::Place;
use super::shift::LogitShift;
use crate::delta::{BaseLayout, BaseWeights, Change, DeltaError, DeltaProgram, ModuleKind, Site, length};

/// So many times the median of its kind is out of line.
const OUT_OF_LINE: f64 = 4.0;
/// Fewer of a kind have no median worth the name.
const LEAST_OF_A_KIND: usize = 4;

/// One op.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteChange {
    /// Class of the op.
    pub op: &'static str,
    /// Where it is, as in `layer 3 q`.
    pub site: String,
    /// Of what is added to a weight its Frobenius norm, of a bias its Euclidean norm; of factors and rotations, by which part
    /// of its length a row moves.
    pub size: f64,
    /// Of what is added to a weight of the base: its size as a part of the weight's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_weight: Option<f64>,
}

/// Ops of a class at like sites of all layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KindOfChange {
    /// Class of the ops.
    pub op: &'static str,
    /// Site without its layer.
    pub site: String,
    /// How many.
    pub count: usize,
    /// The middle one, of the weight where it is added to one.
    pub median: f64,
    /// The largest.
    pub largest: f64,
    /// Where that is.
    pub largest_at: String,
    /// Sizes are parts of the base's weights.
    pub of_weights: bool,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Every op that has a size; one in place of the base's has none.
    pub changes: Vec<SiteChange>,
    /// By kind.
    pub kinds: Vec<KindOfChange>,
    /// Sites of ops that are more than 4 times the median of their kind, where that has at least 4.
    pub out_of_line: Vec<String>,
    /// Sites of ops that change nothing.
    pub without_effect: Vec<String>,
    /// How far logits move, where there are prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits: Option<LogitShift>,
}

impl Drift {
    /// Of a program against its base. Reads the weights that it adds to.
    ///
    /// # Errors
    /// [`DeltaError`]: of reading the base.
    pub fn of(program: &DeltaProgram, layout: &BaseLayout, base: &dyn BaseWeights) -> Result<Self, DeltaError> {
        let mut changes: Vec<(SiteChange, String)> = Vec::new();
        for (site, op) in &program.ops {
            let Some(change) = op.as_op().change()? else { continue };
            let of_weight = match change {
                Change::OfWeight(size) => weight_norm(*site, layout, base)?.map(|weight| size / weight),
                Change::OfDirection(_) | Change::OfRow(_) => None,
            };
            let (op, size) = (op.class().as_str(), change.size());
            changes.push((SiteChange { op, site: site.to_string(), size, of_weight }, Place::of(*site).0.to_string()));
        }
        let mut kinds: BTreeMap<(&str, &str), Vec<&SiteChange>> = BTreeMap::new();
        for (change, place) in &changes {
            kinds.entry((change.op, place)).or_default().push(change);
        }
        let described: Vec<_> = kinds.iter().filter_map(|((op, site), changes)| describe(op, site, changes)).collect();
        let out_of_line = kinds.values().zip(&described).flat_map(|(changes, kind)| {
            let out = |change: &&&SiteChange| {
                changes.len() >= LEAST_OF_A_KIND && relative(change) > OUT_OF_LINE * kind.median
            };
            changes.iter().filter(out).map(|change| said(change)).collect::<Vec<_>>()
        });
        let out_of_line = out_of_line.collect();
        let changes: Vec<_> = changes.into_iter().map(|(change, _)| change).collect();
        let without_effect = changes.iter().filter(|change| change.size == 0.0).map(said).collect();
        Ok(Self { changes, kinds: described, out_of_line, without_effect, logits: None })
    }

    /// For people: labels, each with its lines.
    pub(super) fn rows(&self) -> Vec<(&'static str, Vec<String>)> {
        let kind = |kind: &KindOfChange| {
            let of = if kind.of_weights { " of the weight" } else { "" };
            let KindOfChange { op, site, count, median, largest, largest_at, .. } = kind;
            match count {
                1 => format!("{op} {site} {median:.4}{of}"),
                _ => format!("{op} {site} median {median:.4}{of}, largest {largest:.4} in {largest_at}"),
            }
        };
        vec![
            ("changes", self.kinds.iter().map(kind).collect()),
            ("out of line", self.out_of_line.clone()),
            ("without effect", self.without_effect.clone()),
            ("logits", self.logits.as_ref().map(LogitShift::lines).unwrap_or_default()),
        ]
    }
}

fn said(change: &SiteChange) -> String {
    format!("{} {}", change.op, change.site)
}

fn relative(change: &SiteChange) -> f64 {
    change.of_weight.unwrap_or(change.size)
}

fn describe(op: &'static str, site: &str, changes: &[&SiteChange]) -> Option<KindOfChange> {
    let mut sizes: Vec<f64> = changes.iter().map(|change| relative(change)).collect();
    sizes.sort_unstable_by(f64::total_cmp);
    let largest = changes.iter().max_by(|one, other| relative(one).total_cmp(&relative(other)))?;
    Some(KindOfChange {
        op,
        site: site.to_owned(),
        count: changes.len(),
        median: sizes[sizes.len() / 2],
        largest: relative(largest),
        largest_at: largest.site.clone(),
        of_weights: changes.iter().all(|change| change.of_weight.is_some()),
    })
}

/// Frobenius norm of the base's weight at a site; `None` where there is none, or nothing but zeros.
fn weight_norm(site: Site, layout: &BaseLayout, base: &dyn BaseWeights) -> Result<Option<f64>, DeltaError> {
    let module = layout.modules().find(|module| module.site == site && module.kind != ModuleKind::Norm);
    let weight = module.map(|module| base.tensor(&module.weight)).transpose()?.flatten();
    Ok(weight.map(|weight| length(weight.to_f32())).filter(|norm| *norm > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::{BaseReadError, BaseSizes, Bias, LayerSite};
    use crate::ops::HostTensor;
    use crate::types::AdapterTask;

    struct NoWeights;

    impl BaseWeights for NoWeights {
        fn tensor(&self, _name: &str) -> Result<Option<HostTensor>, BaseReadError> {
            Ok(None)
        }
    }

    #[test]
    fn one_of_many_that_is_much_larger_is_out_of_line() {
        let sizes = BaseSizes {
            layers: 6,
            hidden_size: 1,
            q_dim: 1,
            kv_dim: 1,
            kv_heads: 1,
            intermediate_size: 1,
            vocab_size: 1,
            norm_offset: 0.0,
            tied: false,
            model_type: "llama",
        };
        let drift = |sizes_of_q: &[f32]| {
            let bias = |(layer, b): (u32, &f32)| (Site::Layer(layer, LayerSite::Q), Bias { b: vec![*b] }.into());
            let program = DeltaProgram {
                kind: String::new(),
                task: AdapterTask::default(),
                ops: (0..).zip(sizes_of_q).map(bias).collect(),
                invocation_tokens: Vec::new(),
                keeps_base_kv: false,
                base_layers: 0,
                vocab_size: None,
                unknown_fields: Vec::new(),
            };
            Drift::of(&program, &BaseLayout::new(sizes, Vec::new()), &NoWeights).unwrap()
        };
        let found = drift(&[1.0, -2.0, 1.0, 0.0, 9.0]);
        assert_eq!(
            (&found.out_of_line[..], &found.without_effect[..]),
            (&["Bias layer 4 q".to_owned()][..], &["Bias layer 3 q".to_owned()][..])
        );
        let [kind] = &found.kinds[..] else { panic!("{found:?}") };
        assert_eq!(
            (kind.median, kind.largest, kind.largest_at.as_str(), kind.of_weights),
            (1.0, 9.0, "layer 4 q", false)
        );
        assert!(drift(&[1.0, 1.0, 9.0]).out_of_line.is_empty(), "too few to say so");
    }
}
