//! What a refusal of an adapter is to whoever sent it: what is wrong names its field or tensor.

use std::fmt::Display;

use super::error::DeltaError;
use super::peft::keys::HEAD_WEIGHT;
use super::safetensors::SafetensorsError;
use crate::types::{Class, Problem, Subject, ToProblem};

/// The files of an adapter, as PEFT names them.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

impl ToProblem for DeltaError {
    fn to_problem(&self) -> Problem {
        use DeltaError as E;
        let bad = |reason, field: &dyn Display| Problem::invalid(reason, field, self);
        match self {
            E::Json { .. } => bad("INVALID_CONFIG", &CONFIG),
            E::Safetensors(SafetensorsError::NonFinite { tensor, index, value }) => {
                bad("NON_FINITE", tensor).with("index", index).with("value", value)
            }
            E::Safetensors(_) => bad("INVALID_SAFETENSORS", &WEIGHTS),
            E::BadField { field, found, expected } => {
                bad("INVALID_CONFIG", field).with("found", found).with("expected", expected)
            }
            E::UnsupportedField { field, found, .. } => bad("UNSUPPORTED_CONFIG", field).with("found", found),
            E::UnknownField { field, found } => bad("UNSUPPORTED_CONFIG", field).with("found", found),
            E::Regex { field, reason } => bad("INVALID_CONFIG", field).with("cause", reason),
            E::UnknownTensor { tensor, kind, nearest } => {
                bad("UNKNOWN_TENSOR", tensor).with("kind", kind).with("nearest", nearest)
            }
            E::SameTensor { first, second } => bad("DUPLICATE_TENSOR", first).with("second", second),
            E::MixedKeys { first, second, difference } => {
                bad("MIXED_TENSOR_NAMES", first).with("second", second).with("difference", difference)
            }
            E::WholeModel { tensor, kind } => bad("WHOLE_MODEL", tensor).with("kind", kind),
            E::UnsupportedTensor { tensor, feature } => bad("UNSUPPORTED_TENSOR", tensor).with("feature", feature),
            E::NoSuchExpert { tensor, expert, experts } => {
                bad("NO_SUCH_EXPERT", tensor).with("expert", expert).with("experts", experts)
            }
            E::NotTargeted { tensor } => bad("TENSOR_NOT_TARGETED", tensor),
            E::MissingTensor { module, missing, found } => {
                bad("MISSING_TENSOR", module).with("missing", missing).with("found", found)
            }
            E::NotReproducible { module, missing } => bad("MISSING_TENSOR", module).with("missing", missing),
            E::WrongModule { module, kind } => bad("WRONG_MODULE", module).with("kind", kind),
            E::Group { outputs, group, .. } => {
                bad("INVALID_CONFIG", &"group_size").with("found", group).with("outputs", outputs)
            }
            E::Shape { tensor, found, expected } => bad("SHAPE_MISMATCH", tensor)
                .with("found", format_args!("{found:?}"))
                .with("expected", format_args!("{expected:?}")),
            E::ResizedVocabulary { of, tokens, vocab_size, reason: _ } => {
                bad("RESIZED_VOCABULARY", of).with("tokens", tokens).with("vocab_size", vocab_size)
            }
            E::Rank { module, rank, max } => bad("RANK_OUT_OF_RANGE", module).with("rank", rank).with("max", max),
            E::NothingMatched { .. } => bad("NOTHING_MATCHED", &"target_modules"),
            E::BaseMismatch { tensor } => Problem::new(Class::Unmet, "BASE_MISMATCH", self)
                .about(Subject::Condition { kind: "BASE_MODEL", of: tensor.clone() }),
            E::Untied { first, second } => bad("TIED_TENSORS_DIFFER", first).with("second", second),
            E::VirtualTokens { count, max } => {
                bad("VIRTUAL_TOKENS_OUT_OF_RANGE", &"num_virtual_tokens").with("count", count).with("max", max)
            }
            E::Labels { labels, max } => {
                bad("LABELS_OUT_OF_RANGE", &HEAD_WEIGHT).with("labels", labels).with("max", max)
            }
            E::NonFinite { tensor, index } => bad("NON_FINITE", tensor).with("index", index),
            E::Index { tensor, index, bound, .. } => {
                bad("INDEX_OUT_OF_RANGE", tensor).with("index", index).with("bound", bound)
            }
            E::NotLinear { class, site, reason } => bad("NOT_LINEAR", &"mix.adapter")
                .with("op_class", class.as_str())
                .with("site", site)
                .with("cause", reason),
            E::Ops(error) => error.to_problem(),
            E::Base(_) | E::Candle(_) => Problem::internal("compiling an adapter", self),
        }
    }
}
