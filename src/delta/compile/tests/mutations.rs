//! Uploads that were damaged anywhere: refused or compiled, never a panic, and never a number that is not finite.

use proptest::prelude::*;
use proptest::sample::Index;

use super::toy::{HIDDEN, LIMITS, Toy, Upload, VOCAB, key};
use super::{experts, folds, prompts, road, rotations, saved, shira};
use crate::delta::compile::{Base, compile};
use crate::delta::peft::keys::HEAD_WEIGHT;
use crate::delta::{
    AddedTokens, Bottleneck, DeltaOp, DeltaProgram, Dense, EmbeddingLowRank, EmbeddingRows, ExpertLowRank, Head,
    InputRotate, LowRank, Prefix, PromptEmbeds, Sparse,
};

/// One upload of every method, LoRA with everything it knows.
fn uploads() -> Vec<Upload> {
    let q = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj");
    let rich = (0..2).fold(
        Upload::lora()
            .set("use_dora", "true")
            .set("use_rslora", "true")
            .set("bias", r#""all""#)
            .set("rank_pattern", r#"{"v_proj": 3}"#)
            .set("alpha_pattern", r#"{"layers.\\d+.self_attn.q_proj": 2.5}"#)
            .set("layers_to_transform", "[0, 1]")
            .set("exclude_modules", r#"["v_proj"]"#),
        |upload, layer| {
            upload
                .tensor(&key(&q(layer), "lora_magnitude_vector"), &[HIDDEN])
                .tensor(&key(&q(layer), "base_layer.bias"), &[HIDDEN])
        },
    );
    let regex = Upload::lora().set("target_modules", r#"".*\\.(q|x)_proj""#);
    let tokens = Upload::lora()
        .set("trainable_token_indices", "[3, 1]")
        .tensor(&key("model.embed_tokens", "token_adapter.trainable_tokens_delta"), &[2, HIDDEN]);
    let embedding = Upload::lora()
        .set("modules_to_save", r#"["embed_tokens"]"#)
        .tensor(&key("model.embed_tokens", "weight"), &[VOCAB, HIDDEN]);
    let head = Upload::lora().set("task_type", r#""SEQ_CLS""#).tensor(HEAD_WEIGHT, &[3, HIDDEN]);
    let plain = [
        Upload::lora(),
        rich,
        regex,
        tokens,
        embedding,
        head,
        Upload::ia3(),
        Upload::ln_tuning(),
        Upload::prompt(),
        Upload::prefix(),
    ];
    let turned = [road::upload("road_1", 1), road::upload("road_4", 4)];
    plain
        .into_iter()
        .chain(folds::uploads())
        .chain(folds::full())
        .chain(rotations::uploads())
        .chain(turned)
        .chain([shira::upload(), saved::upload(), prompts::multitask(), prompts::cpt()])
        .collect()
}

fn is_finite(program: &DeltaProgram) -> bool {
    let finite = |numbers: &[f32]| numbers.iter().all(|x| x.is_finite());
    program.ops.iter().all(|(_, op)| {
        let computed = op.as_op().computed();
        let whole = match op {
            DeltaOp::LowRank(LowRank { a, b, scaling })
            | DeltaOp::EmbeddingLowRank(EmbeddingLowRank { a, b, scaling }) => {
                scaling.is_finite() && finite(&a.to_f32()) && finite(&b.to_f32())
            }
            DeltaOp::ExpertLowRank(ExpertLowRank { a, b, .. }) => a.iter().chain(b).all(|of| finite(&of.to_f32())),
            DeltaOp::EmbeddingRows(EmbeddingRows { rows, .. }) | DeltaOp::AddedTokens(AddedTokens { rows }) => {
                finite(&rows.to_f32())
            }
            DeltaOp::Dense(Dense { d, scaling, .. }) => scaling.is_finite() && finite(&d.to_f32()),
            DeltaOp::Prefix(Prefix { layers, .. }) => layers.iter().all(|layer| finite(&layer.k) && finite(&layer.v)),
            DeltaOp::PromptEmbeds(PromptEmbeds { embeds }) => finite(&embeds.to_f32()),
            DeltaOp::Bottleneck(Bottleneck { down, down_bias, up, up_bias, scaling, .. }) => {
                let vectors = finite(down_bias) && finite(up_bias) && scaling.is_finite();
                vectors && finite(&down.to_f32()) && finite(&up.to_f32())
            }
            DeltaOp::Head(Head { weight, bias }) => finite(&weight.to_f32()) && bias.iter().all(|bias| finite(bias)),
            DeltaOp::Sparse(Sparse { matrix }) => matrix.entries.iter().all(|entry| entry.value.is_finite()),
            DeltaOp::OutputScale(_)
            | DeltaOp::OutputRotate(_)
            | DeltaOp::InputScale(_)
            | DeltaOp::Bias(_)
            | DeltaOp::Gain(_) => computed.len() == op.as_op().parameters(),
            DeltaOp::InputRotate(InputRotate { stages }) => stages.iter().all(|stage| finite(&stage.numbers)),
        };
        whole && finite(computed)
    })
}

#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Flip(Index, u8),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), prop::sample::select(&b"0123456789-.eE\"{}[],:ntf\\"[..])).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (at(), 1..40usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), 1..60usize).prop_map(|(at, count)| Damage::Repeat(at, count)),
        at().prop_map(Damage::Cut),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Set(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Remove(at, count) => {
                let at = at.index(bytes.len());
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Self::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Repeat(at, count) => {
                let at = at.index(bytes.len());
                let copy = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_uploads_are_refused_or_finite(
        which in any::<Index>(),
        config_damage in prop::collection::vec(damage(), 0..3),
        weight_damage in prop::collection::vec(damage(), 0..3),
    ) {
        let sparse = experts::uploads().into_iter().map(|upload| (upload, Toy::sparse as fn() -> Toy));
        let uploads: Vec<_> = uploads().into_iter().map(|upload| (upload, Toy::new as fn() -> Toy)).chain(sparse).collect();
        let (upload, toy) = which.get(&uploads);
        let (mut config, mut weights) = (upload.config_bytes(), upload.weight_bytes());
        config_damage.iter().for_each(|damage| damage.apply(&mut config));
        weight_damage.iter().for_each(|damage| damage.apply(&mut weights));
        let toy = toy();
        match compile(&config, &weights, Base { layout: &toy.layout, weights: &toy }, LIMITS) {
            Ok(program) => prop_assert!(is_finite(&program)),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn undamaged_uploads_compile() {
    for upload in uploads() {
        assert!(is_finite(&upload.ops()));
    }
    for upload in experts::uploads() {
        assert!(is_finite(&upload.compile(&Toy::sparse()).unwrap()));
    }
}
