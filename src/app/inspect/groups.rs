//! Ops that differ in nothing but their layer, or in their site as well, said as one.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::delta::{DeltaOp, DeltaProgram, LayerSite, Site};
use crate::types::OpClass;

/// Alike ops: every one of `sites` in every one of `layers`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpGroup {
    /// Class of the ops.
    pub op: &'static str,
    /// `q`, `attention_norm`, `lm_head` ….
    pub sites: Vec<String>,
    /// Layers, as in `0-2,5`; absent for sites outside the layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<String>,
    /// Of low-rank ops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// s of low-rank ops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<f32>,
    /// Of output scales: before the base's bias (DoRA) or after it (IA3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_bias: Option<bool>,
    /// Of full matrices: in place of the base's or added to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<bool>,
    /// How many ops.
    pub count: u32,
    /// Learned numbers of all of them.
    pub parameters: u64,
}

impl fmt::Display for OpGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.op, self.sites.join(","))?;
        if let Some(layers) = &self.layers {
            write!(f, " {} {layers}", if layers.contains(['-', ',']) { "layers" } else { "layer" })?;
        }
        if let (Some(rank), Some(scaling)) = (self.rank, self.scaling) {
            write!(f, " rank {rank} scaling {scaling}")?;
        }
        match self.after_bias {
            Some(true) => write!(f, " after the bias"),
            Some(false) => write!(f, " before the bias"),
            None => Ok(()),
        }?;
        match self.replaces {
            Some(true) => write!(f, " in place of the base's"),
            Some(false) | None => Ok(()),
        }
    }
}

/// What makes ops alike. The scaling is kept by its bits, so that it has an order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Likeness {
    class: OpClass,
    after_bias: Option<bool>,
    replaces: Option<bool>,
    low_rank: Option<(usize, u32)>,
}

impl Likeness {
    fn of(op: &DeltaOp) -> Self {
        let (class, op) = (op.class(), op.as_op());
        let low_rank = op.rank().zip(op.scaling().map(f32::to_bits));
        Self { class, after_bias: op.after_bias(), replaces: op.replaces(), low_rank }
    }
}

/// A site with the layer taken off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    InLayers(LayerSite),
    Outside(Site),
}

impl Place {
    /// And the layer, inside of one.
    pub(super) fn of(site: Site) -> (Self, Option<u32>) {
        match site {
            Site::Layer(layer, part) => (Self::InLayers(part), Some(layer)),
            outside => (Self::Outside(outside), None),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InLayers(part) => part.fmt(f),
            Self::Outside(site) => site.fmt(f),
        }
    }
}

/// Group a program's ops: by likeness and place over layers, then places that have the same layers.
pub(super) fn group(program: &DeltaProgram) -> Vec<OpGroup> {
    let mut layers: BTreeMap<(Likeness, Place), (Vec<u32>, u64)> = BTreeMap::new();
    for (site, op) in &program.ops {
        let (place, layer) = Place::of(*site);
        let (found, parameters) = layers.entry((Likeness::of(op), place)).or_default();
        found.extend(layer);
        *parameters += op.as_op().parameters() as u64;
    }
    let mut places: BTreeMap<(Likeness, Vec<u32>), (Vec<Place>, u64)> = BTreeMap::new();
    for ((likeness, place), (mut found, parameters)) in layers {
        found.sort_unstable();
        let (alike, sum) = places.entry((likeness, found)).or_default();
        alike.push(place);
        *sum += parameters;
    }
    let named = |((likeness, layers), (places, parameters)): ((Likeness, Vec<u32>), (Vec<Place>, u64))| OpGroup {
        op: likeness.class.as_str(),
        sites: places.iter().map(ToString::to_string).collect(),
        count: (places.len() * layers.len().max(1)) as u32,
        layers: (!layers.is_empty()).then(|| ranges(&layers)),
        rank: likeness.low_rank.map(|(rank, _)| rank),
        scaling: likeness.low_rank.map(|(_, bits)| f32::from_bits(bits)),
        after_bias: likeness.after_bias,
        replaces: likeness.replaces,
        parameters,
    };
    places.into_iter().map(named).collect()
}

/// Ascending numbers, runs drawn together: `0-2,5`.
fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let text = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn runs_are_drawn_together() {
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    }
}
