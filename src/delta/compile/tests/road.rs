//! RoAd: each number of θ and α comes to the outputs that it turns.

use super::toy::{HIDDEN, KV, Toy, Upload, key, numbers};
use crate::delta::DeltaError;
use crate::delta::class::{DeltaOp, OutputRotate};

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.1.self_attn.k_proj";

/// On 8 outputs and on 4, so many numbers for each two of them.
pub(super) fn upload(variant: &str, of_pair: usize) -> Upload {
    let upload = Upload::new("ROAD").set("variant", &format!("{variant:?}")).set("group_size", "4");
    let upload = upload.set("target_modules", &format!("[{Q:?}, {K:?}]"));
    [(Q, HIDDEN), (K, KV)].into_iter().fold(upload, |upload, (module, outputs)| {
        let shape = [outputs / 2 * of_pair];
        upload.tensor(&key(module, "road_theta"), &shape).tensor(&key(module, "road_alpha"), &shape)
    })
}

fn rotations(upload: &Upload) -> Vec<OutputRotate> {
    let rotation = |(_, op)| match op {
        DeltaOp::OutputRotate(op) => op,
        other => panic!("{other:?}"),
    };
    upload.ops().ops.into_iter().map(rotation).collect()
}

#[test]
fn outputs_of_a_group_have_the_numbers_of_their_variant() {
    // Of the 8 outputs of q, in two groups of 4: which number makes c1, and which makes c2.
    let expected: [(&str, usize, [[usize; 8]; 2]); 3] = [
        ("road_1", 1, [[0, 1, 0, 1, 2, 3, 2, 3]; 2]),
        ("road_2", 2, [[0, 1, 2, 3, 4, 5, 6, 7]; 2]),
        ("road_4", 4, [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]),
    ];
    for (variant, of_pair, [first, second]) in expected {
        let upload = upload(variant, of_pair);
        let found = rotations(&upload);
        let shape = [HIDDEN / 2 * of_pair];
        let (theta, alpha) = (numbers(&key(Q, "road_theta"), &shape), numbers(&key(Q, "road_alpha"), &shape));
        let c1 = first.iter().map(|at| alpha[*at] * theta[*at].cos());
        let c2 = second.iter().map(|at| alpha[*at] * theta[*at].sin());
        assert_eq!(found[0], OutputRotate { c: c1.chain(c2).collect(), group: 4 }, "{variant}");
        assert_eq!((found.len(), found[1].c.len()), (2, 2 * KV), "{variant}");
        assert_eq!(upload.ops().kind, "RoAd");
    }
    let plain = Upload::new("ROAD").set("group_size", "2").set("target_modules", r#"["v_proj"]"#);
    let plain = (0..2).fold(plain, |upload, layer| {
        let module = format!("model.layers.{layer}.self_attn.v_proj");
        upload.tensor(&key(&module, "road_theta"), &[2]).tensor(&key(&module, "road_alpha"), &[2])
    });
    assert_eq!(rotations(&plain).len(), 2, "road_1 where nothing is said");
}

#[test]
fn what_cannot_turn_is_refused_by_name() {
    let field = |upload: Upload, field: &str| match upload.refusal() {
        DeltaError::UnsupportedField { field: found, .. } | DeltaError::BadField { field: found, .. } => {
            assert_eq!(found, field);
        }
        error => panic!("{error}"),
    };
    let road = || upload("road_1", 1);
    field(road().set("variant", r#""road_3""#), "variant");
    field(road().set("group_size", "3"), "group_size");
    field(road().set("group_size", "0"), "group_size");
    field(road().set("modules_to_save", r#"["score"]"#), "modules_to_save");
    for group in ["8", "64"] {
        let error = road().set("group_size", group).refusal();
        assert!(matches!(&error, DeltaError::Group { outputs: KV | HIDDEN, .. }), "{error}");
    }
    let other = road().set("variant", r#""road_2""#).refusal();
    assert!(matches!(other, DeltaError::Shape { .. }), "{other}");
    let missing = road().without(&key(K, "road_alpha")).refusal();
    assert!(matches!(missing, DeltaError::MissingTensor { missing: "road_alpha", .. }), "{missing}");
    let stray = road().tensor(&key("model.layers.0.mlp.up_proj", "road_theta"), &[6]).refusal();
    assert!(matches!(stray, DeltaError::NotTargeted { .. }), "{stray}");
    let norm = road().set("target_modules", r#"["model.norm"]"#).refusal();
    assert!(matches!(norm, DeltaError::WrongModule { kind: "RoAd", .. }), "{norm}");
    assert!(upload("road_1", 1).compile(&Toy::tied()).is_ok());
}
