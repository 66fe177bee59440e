//! What receipts say of a server: which base, and how it is computed.

use serde_json::{Map, Value};

use crate::ops::cpu::KV_TILE;
use crate::ops::{BackendInfo, Numerics};
use crate::receipt::{NumericsClass, Origin};
use crate::types::{BaseDigest, Sha256Digest};

/// Of this program, for a base with these weights and this config.json.
pub(super) fn of(base: BaseDigest, config: &Map<String, Value>, numerics: NumericsClass) -> Origin {
    // Its keys are sorted, and texts, numbers and lists of them can be written.
    let config = serde_json::to_vec(config).unwrap_or_default();
    Origin {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        base_sha256: base,
        config_sha256: Sha256Digest::of(&config),
        numerics,
    }
}

/// How a backend computes with a KV cache of such blocks.
pub(super) fn numerics_class(backend: &BackendInfo, numerics: Numerics, block_size: u32) -> NumericsClass {
    let BackendInfo { name, isa, variant, threads: _ } = backend;
    let isa = if variant.is_empty() { (*isa).to_owned() } else { format!("{isa} {variant}") };
    let Numerics { weights, compute, kv } = numerics;
    NumericsClass {
        device: (*name).to_owned(),
        isa,
        target: env!("BUILD_TARGET").to_owned(),
        weights: weights.as_str().to_owned(),
        compute: compute.as_str().to_owned(),
        kv: kv.as_str().to_owned(),
        // No tile reaches beyond its block.
        kv_tile: block_size.min(KV_TILE as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_its_content_and_not_its_spelling() {
        let of = |text: &str| {
            let config: Map<String, Value> = serde_json::from_str(text).unwrap();
            super::of(BaseDigest([0; 32]), &config, NumericsClass::default()).config_sha256
        };
        assert_eq!(of(r#"{"a": 1, "b": [2.5]}"#), of("{\"b\":[2.5],\n\"a\":1}"));
        assert_ne!(of(r#"{"a": 1, "b": [2.5]}"#), of(r#"{"a": 1, "b": [2.25]}"#));
    }

    #[test]
    fn a_block_that_is_no_smaller_than_a_tile_changes_nothing() {
        let info = |variant: &str| BackendInfo { name: "cuda", isa: "ptx", variant: variant.to_owned(), threads: 1 };
        let of = |block_size| numerics_class(&info(""), Numerics::BF16, block_size);
        assert_eq!(of(16), of(256));
        assert_ne!(of(16), of(8));
        assert_eq!(numerics_class(&info("9.0"), Numerics::BF16, 16).isa, "ptx 9.0");
    }
}
