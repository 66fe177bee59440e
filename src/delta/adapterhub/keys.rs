//! The keys of a file of AdapterHub's library.
//!
//! It saves `model.layers.{layer}.{place}.adapters.{name}.{parameter}`, where the place is `attention_adapters` or
//! `output_adapters`, and `model.shared_parameters.{name}.{parameter}`. A model without its head has no `model.` in front. The
//! name of the adapter is taken off; a file that holds two, or is written in two ways, is refused.

use std::collections::BTreeMap;

use crate::delta::DeltaError;
use crate::delta::layout::BaseLayout;
use crate::delta::peft::keys::same;

/// Behind attention, and behind the MLP.
pub(crate) const PLACES: [&str; 2] = ["attention_adapters", "output_adapters"];

/// What the keys of a file mean.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// The key without prefix and name ([`of_layer`], [`shared`]), and the file's own.
    pub(crate) known: BTreeMap<String, String>,
    /// Keys that mean nothing here, in order.
    pub(crate) unknown: Vec<String>,
}

/// The key of a parameter of a layer's adapter.
pub(crate) fn of_layer(layer: usize, place: &str, parameter: &str) -> String {
    format!("layers.{layer}.{place}.{parameter}")
}

/// The key of a parameter that all layers share.
pub(crate) fn shared(parameter: &str) -> String {
    format!("shared_parameters.{parameter}")
}

impl Keys {
    /// Read the keys of a file for this base.
    ///
    /// # Errors
    /// [`DeltaError::SameTensor`] where two keys mean one parameter, [`DeltaError::MixedKeys`] where the file is written
    /// in two ways or holds two adapters.
    pub(crate) fn read<'a>(names: impl Iterator<Item = &'a str>, layout: &BaseLayout) -> Result<Self, DeltaError> {
        let mut keys = Self::default();
        let (mut prefix, mut adapter) = (None, None);
        for name in names {
            let Some(parts) = Parts::of(name, layout) else {
                keys.unknown.push(name.to_owned());
                continue;
            };
            same(&mut prefix, parts.has_prefix, name, "in the levels before the layers")?;
            same(&mut adapter, parts.adapter.to_owned(), name, "in the name of the adapter within")?;
            if let Some(first) = keys.known.insert(parts.key, name.to_owned()) {
                return Err(DeltaError::SameTensor { first, second: name.to_owned() });
            }
        }
        Ok(keys)
    }
}

/// A key taken apart.
struct Parts<'a> {
    has_prefix: bool,
    adapter: &'a str,
    key: String,
}

impl<'a> Parts<'a> {
    fn of(name: &'a str, layout: &BaseLayout) -> Option<Self> {
        let without = name.strip_prefix("model.");
        let has_prefix = without.is_some();
        let segments: Vec<&str> = without.unwrap_or(name).split('.').collect();
        let (adapter, key) = match *segments.as_slice() {
            ["layers", layer, place, "adapters", adapter, ref parameter @ ..] if PLACES.contains(&place) => {
                let layer = layer.parse().ok().filter(|layer| *layer < layout.layers)?;
                (adapter, of_layer(layer, place, &parameter.join(".")))
            }
            ["shared_parameters", adapter, ref parameter @ ..] => (adapter, shared(&parameter.join("."))),
            _ => return None,
        };
        Some(Self { has_prefix, adapter, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::layout::BaseSizes;

    fn read(names: &[&str]) -> Result<Keys, DeltaError> {
        let sizes = BaseSizes {
            layers: 2,
            hidden_size: 8,
            q_dim: 8,
            kv_dim: 8,
            kv_heads: 1,
            intermediate_size: 8,
            vocab_size: 8,
            norm_offset: 0.0,
            tied: false,
            model_type: "llama",
        };
        Keys::read(names.iter().copied(), &BaseLayout::new(sizes, Vec::new()))
    }

    #[test]
    fn prefix_and_name_are_taken_off() {
        for prefix in ["model.", ""] {
            let names = [
                format!("{prefix}layers.1.output_adapters.adapters.mine.adapter_up.weight"),
                format!("{prefix}shared_parameters.mine.phm_rule"),
            ];
            let keys = read(&names.each_ref().map(String::as_str)).unwrap();
            let known: Vec<&str> = keys.known.keys().map(String::as_str).collect();
            assert_eq!(known, ["layers.1.output_adapters.adapter_up.weight", "shared_parameters.phm_rule"]);
            assert!(keys.unknown.is_empty());
        }
    }

    #[test]
    fn what_means_nothing_here_is_unknown() {
        let names = [
            "model.layers.2.output_adapters.adapters.mine.adapter_up.weight",
            "model.layers.0.cross_adapters.adapters.mine.adapter_up.weight",
            "model.invertible_adapters.mine.F.0.weight",
            "lm_head.weight",
        ];
        assert_eq!(read(&names).unwrap().unknown, names);
    }

    #[test]
    fn two_adapters_or_two_spellings_in_one_file_are_refused() {
        let one = "model.layers.0.output_adapters.adapters.mine.adapter_up.weight";
        let other = "model.layers.0.output_adapters.adapters.yours.adapter_up.bias";
        let bare = "layers.0.output_adapters.adapters.mine.adapter_up.bias";
        let again = "model.layers.00.output_adapters.adapters.mine.adapter_up.weight";
        assert!(matches!(read(&[one, other]), Err(DeltaError::MixedKeys { .. })));
        assert!(matches!(read(&[one, bare]), Err(DeltaError::MixedKeys { .. })));
        assert!(matches!(read(&[one, again]), Err(DeltaError::SameTensor { .. })));
    }
}
