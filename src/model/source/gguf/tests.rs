use std::path::Path;

use super::*;
use crate::files::gguf::testing::{Tensor, Value as Stored, bytes};
use crate::model::Checkpoint;

const F32: u32 = 0;
const HIDDEN: u64 = 4;

/// The smallest model of an architecture: one layer, one head of 4, 3 rows of vocabulary.
fn values(architecture: &'static str) -> Vec<(String, Stored)> {
    let own = |key: &str, value| (format!("{architecture}.{key}"), value);
    vec![
        ("general.architecture".to_owned(), Stored::Text(architecture.to_owned())),
        own("block_count", Stored::U32(1)),
        own("context_length", Stored::U32(16)),
        own("embedding_length", Stored::U32(HIDDEN as u32)),
        own("feed_forward_length", Stored::U32(HIDDEN as u32)),
        own("attention.head_count", Stored::U32(1)),
        own("attention.layer_norm_rms_epsilon", Stored::F32(1e-5)),
    ]
}

fn tensor<'a>(name: &'a str, shape: &'a [u64]) -> Tensor<'a> {
    (name, shape, F32, vec![0; 4 * shape.iter().product::<u64>() as usize])
}

/// To a list of tensors.
type Change<'a> = &'a dyn Fn(&mut Vec<Tensor<'static>>);

const SQUARE: &[u64] = &[HIDDEN, HIDDEN];

fn tensors() -> Vec<Tensor<'static>> {
    let mut tensors = vec![tensor("token_embd.weight", &[3, HIDDEN]), tensor("output_norm.weight", &[HIDDEN])];
    tensors.extend(["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"].map(|name| tensor(name, &[HIDDEN])));
    let square = [
        "blk.0.attn_q.weight",
        "blk.0.attn_k.weight",
        "blk.0.attn_v.weight",
        "blk.0.attn_output.weight",
        "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight",
        "blk.0.ffn_down.weight",
    ];
    tensors.extend(square.map(|name| tensor(name, SQUARE)));
    tensors
}

fn content(values: &[(String, Stored)], tensors: &[Tensor<'_>]) -> Vec<u8> {
    let values: Vec<_> = values.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    bytes(&values, tensors)
}

/// What is said of a file: `served`, or why it is refused before a weight is read.
fn said_of(content: &[u8]) -> String {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), content).unwrap();
    match Checkpoint::open_gguf(file.path()).and_then(|checkpoint| checkpoint.spec()) {
        Ok(_) => "served".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// As [`said_of`], of a Llama with values added, or put in the place of those of their keys.
fn said(more: &[(&str, Stored)]) -> String {
    let mut values = values("llama");
    values.retain(|(key, _)| more.iter().all(|(other, _)| key != other));
    values.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    said_of(&content(&values, &tensors()))
}

#[test]
fn what_changes_the_network_and_is_not_known_is_refused_by_its_key() {
    let text = |text: &str| Stored::Text(text.to_owned());
    assert_eq!(said(&[]), "served");
    let neutral = [
        ("llama.expert_count", Stored::U32(0)),
        ("llama.attention.causal", Stored::Bool(true)),
        ("llama.attention.sliding_window", Stored::U32(16)),
        ("llama.rope.scaling.type", text("none")),
        ("llama.rope.dimension_count", Stored::U32(4)),
        ("llama.vocab_size", Stored::U32(3)),
        ("split.count", Stored::U32(1)),
        ("somebody.else", text("x")),
    ];
    assert_eq!(said(&neutral), "served");
    let cases = [
        ("general.architecture", text("gemma2"), "its architecture is \"gemma2\"; from GGUF llama, qwen2 and qwen3"),
        ("general.architecture", Stored::U32(1), "`general.architecture` is 1, expected a text"),
        ("general.type", text("adapter"), "it holds `adapter`, not a model"),
        ("split.count", Stored::U32(3), "one of 3 parts; `llama-gguf-split --merge`"),
        ("llama.logit_scale", Stored::F32(2.0), "`llama.logit_scale` is not known here"),
        ("llama.expert_count", Stored::U32(8), "`llama.expert_count` is 8, which is not served; dense models are"),
        ("llama.attention.causal", Stored::Bool(false), "`llama.attention.causal` is false"),
        ("llama.attention.sliding_window", Stored::U32(8), "`llama.attention.sliding_window` is 8"),
        ("llama.attention.value_length", Stored::U32(8), "`llama.attention.value_length` is 8"),
        ("llama.attention.key_length", Stored::U32(3), "`llama.attention.key_length` is 3"),
        ("llama.attention.head_count", Stored::I32s(vec![1]), "is a list of 1 numbers, expected a whole number"),
        ("llama.attention.head_count", Stored::U32(3), "divides the width into heads"),
        ("llama.rope.dimension_count", Stored::U32(2), "`llama.rope.dimension_count` is 2"),
        ("llama.rope.scaling.type", text("longrope"), "`llama.rope.scaling.type` is \"longrope\""),
        ("llama.rope.scaling.type", text("yarn"), "it has no `llama.rope.scaling.factor`"),
        ("llama.rope.scaling.factor", Stored::F32(2.0), "it has no `llama.rope.scaling.type`"),
        ("llama.rope.scaling.attn_factor", Stored::F32(2.0), "`llama.rope.scaling.attn_factor` is 2"),
        ("llama.vocab_size", Stored::U32(4), "`llama.vocab_size` is 4, which is not served; the embedding"),
        ("llama.block_count", Stored::U32(2), "no tensor `model.layers.1."),
        (
            "llama.block_count",
            Stored::U32(0),
            "read as a config.json, cannot be served: config.json: `num_hidden_layers`",
        ),
        ("llama.context_length", text("x"), "`llama.context_length` is \"x\""),
        ("llama.attention.layer_norm_rms_epsilon", Stored::F32(f32::NAN), "is NaN, expected a finite number"),
    ];
    for (key, value, words) in cases {
        let said = said(&[(key, value)]);
        assert!(said.contains(words), "{key}: {said}");
    }
    let mut less = values("llama");
    less.retain(|(key, _)| key != "llama.context_length");
    let said = said_of(&content(&less, &tensors()));
    assert!(said.contains("it has no `llama.context_length`"), "{said}");
}

#[test]
fn a_tensor_without_a_place_or_of_another_type_or_shape_is_refused_by_name() {
    let said = |change: Change<'_>| {
        let mut tensors = tensors();
        change(&mut tensors);
        said_of(&content(&values("llama"), &tensors))
    };
    let cases: [(Change<'_>, &str); 9] = [
        (&|all| all.push(tensor("blk.0.attn_sinks.weight", &[1])), "a tensor `blk.0.attn_sinks.weight`"),
        (
            &|all| all.push(tensor("blk.1.attn_q.weight", SQUARE)),
            "has a tensor `model.layers.1.self_attn.q_proj.weight`",
        ),
        (
            &|all| all.push(tensor("blk.0.attn_q_norm.weight", &[4])),
            "a tensor `model.layers.0.self_attn.q_norm.weight`",
        ),
        (&|all| all.push(tensor("rope_freqs.weight", &[4])), "`rope_freqs.weight` has the shape [4], expected 2"),
        (&|all| all.push(tensor("rope_freqs.weight", &[2])), "`rope_freqs.weight` has 0, expected 2 finite numbers"),
        (&|all| all[4].2 = 23, "tensor `blk.0.attn_q.weight` is of type IQ4_XS; F32, F16"),
        (&|all| all[4].2 = 77, "is of type ggml's number 77"),
        (&|all| all[4].2 = 8, "tensor `blk.0.attn_q.weight` has 4 columns; Q8_0 has 32 numbers in a block"),
        (&|all| all[6] = tensor("blk.0.attn_v.weight", &[8, HIDDEN]), "has shape [8, 4]"),
    ];
    for (change, words) in cases {
        let said = said(change);
        assert!(said.contains(words), "{words}: {said}");
    }
    let odd_rows = said(&|all| all[4] = tensor("blk.0.attn_q.weight", &[6, HIDDEN]));
    assert!(odd_rows.contains("tensor `blk.0.attn_q.weight` has the shape [6, 4]"), "{odd_rows}");
    let mut twice = values("llama");
    twice.push(("llama.rope.scaling.type".to_owned(), Stored::Text("linear".to_owned())));
    twice.push(("llama.rope.scaling.factor".to_owned(), Stored::F32(2.0)));
    let mut with_factors = tensors();
    with_factors.push(("rope_freqs.weight", &[2], F32, [1f32, 2.0].iter().flat_map(|n| n.to_le_bytes()).collect()));
    let said = said_of(&content(&twice, &with_factors));
    assert!(said.contains("`llama.rope.scaling.type` both stretch"), "{said}");
}

#[test]
fn tensors_lie_one_behind_the_other_up_to_the_end_of_the_file() {
    let whole = content(&values("llama"), &tensors());
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut content = whole.clone();
        change(&mut content);
        said_of(&content)
    };
    assert!(with(&|content| content.truncate(content.len() - 64)).contains("is truncated: it should have"));
    assert!(with(&|content| content.resize(content.len() + 32, 0)).contains("its tensors end at byte"));
    let name = b"output_norm.weight";
    let at = whole.windows(name.len()).position(|window| window == name).unwrap();
    // Behind the name: dimensions, one size, type, place.
    let offset = at + name.len() + 4 + 8 + 4;
    let moved = with(&|content| content[offset] ^= 32);
    assert!(moved.contains("tensor `output_norm.weight` begins at"), "{moved}");
    assert!(with(&|content| content[offset + 7] = 0xff).contains("tensor `output_norm.weight` begins at"));
}

#[test]
fn a_file_that_changes_under_the_reader_is_an_error() {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    let whole = content(&values("llama"), &tensors());
    std::fs::write(file.path(), &whole).unwrap();
    let checkpoint = Checkpoint::open_gguf(file.path()).unwrap();
    std::fs::write(file.path(), &whole[..whole.len() - 64]).unwrap();
    let read = checkpoint.tensor("model.layers.0.mlp.down_proj.weight", &[4, 4]);
    assert!(matches!(read, Err(ModelError::Truncated { .. })));
    assert!(matches!(Checkpoint::open_gguf(Path::new("/does/not/exist")), Err(ModelError::Read { .. })));
}

#[test]
fn stretched_rotary_embeddings_are_those_of_transformers_names() {
    let scaled = |more: &[(&str, Stored)]| {
        let mut values = values("qwen2");
        values.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let biases = ["blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"];
        let mut tensors = tensors();
        tensors.extend(biases.map(|name| tensor(name, &[HIDDEN])));
        let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::fs::write(file.path(), content(&values, &tensors)).unwrap();
        let spec = Checkpoint::open_gguf(file.path()).and_then(|checkpoint| checkpoint.spec()).unwrap();
        format!("{:?}", spec.ropes[0].scaling)
    };
    let text = |text: &str| Stored::Text(text.to_owned());
    let factor = ("qwen2.rope.scaling.factor", Stored::F32(4.0));
    assert_eq!(scaled(&[("qwen2.rope.scaling.type", text("linear")), factor.clone()]), "Linear { factor: 4.0 }");
    assert_eq!(scaled(&[("qwen2.rope.scale_linear", Stored::F32(2.0))]), "Linear { factor: 2.0 }");
    let original = ("qwen2.rope.scaling.original_context_length", Stored::U32(8));
    let yarn = scaled(&[("qwen2.rope.scaling.type", text("yarn")), factor, original]);
    assert!(yarn.starts_with("Yarn { factor: 4.0") && yarn.ends_with("original_context: 8 }"), "{yarn}");
}
