//! SHiRA: numbers of the file come to their places, whatever the order and the dtype in which these are saved.

use safetensors::Dtype;

use super::toy::{HIDDEN, INNER, Upload, key};
use crate::delta::DeltaError;
use crate::delta::class::{DeltaOp, Sparse};
use crate::ops::{HostSparse, SparseEntry, WeightFormat};

const DOWN: &str = "model.layers.1.mlp.down_proj";
/// Of r 1 on a module `[8, 12]`.
const COUNT: usize = HIDDEN + INNER;

/// Places `(3 i mod 8, 7 i mod 12)`, all of them different.
fn places() -> (Vec<i64>, Vec<i64>) {
    (0..COUNT as i64).map(|at| (3 * at % HIDDEN as i64, 7 * at % INNER as i64)).unzip()
}

fn at(dtype: Dtype, rows: &[i64], columns: &[i64]) -> Upload {
    Upload::new("SHIRA")
        .set("r", "1")
        .set("mask_type", r#""random""#)
        .set("random_seed", "7")
        .set("target_modules", &format!("[{DOWN:?}]"))
        .tensor(&key(DOWN, "shira_weight"), &[COUNT])
        .indices(&key(DOWN, "shira_indices"), dtype, &[2, COUNT], &[rows, columns].concat())
}

pub(super) fn upload() -> Upload {
    let (rows, columns) = places();
    at(Dtype::I32, &rows, &columns)
}

fn matrix(upload: &Upload) -> HostSparse {
    match upload.ops().ops.pop() {
        Some((_, DeltaOp::Sparse(Sparse { matrix }))) => matrix,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_number_stands_at_its_place_however_places_are_saved() {
    let (rows, columns) = places();
    let values = super::toy::numbers(&key(DOWN, "shira_weight"), &[COUNT]);
    let found = matrix(&upload());
    assert_eq!((found.rows(), found.cols, found.entries.len()), (HIDDEN, INNER, COUNT));
    for ((row, column), value) in rows.iter().zip(&columns).zip(values) {
        let entry = SparseEntry { column: *column as u32, value };
        assert!(found.row(*row as usize).contains(&entry), "{row} {column}");
    }
    for dtype in [Dtype::U8, Dtype::I16, Dtype::I64, Dtype::F32] {
        assert_eq!(matrix(&at(dtype, &rows, &columns)), found, "{dtype:?}");
    }
    let facts = upload().ops().facts(WeightFormat::Bf16);
    let bytes = COUNT * (2 + 4) + 4 * (HIDDEN + 1);
    assert_eq!((facts.kind.as_str(), facts.parameters, facts.device_bytes), ("SHiRA", COUNT as u64, bytes as u64));
    // How places were chosen does not matter where they are known.
    assert_eq!(matrix(&upload().set("mask_type", r#""mine""#).set("random_seed", "null")), found);
}

#[test]
fn numbers_of_one_place_are_added_up() {
    let twice = at(Dtype::I32, &[5; COUNT], &[2; COUNT]);
    let values: Vec<f32> = (0..COUNT).map(|at| at as f32).collect();
    let sum = values.iter().sum();
    let found = matrix(&twice.clone().values(&key(DOWN, "shira_weight"), &[COUNT], values));
    assert_eq!(found.entries, [SparseEntry { column: 2, value: sum }]);
    let overflown = twice.values(&key(DOWN, "shira_weight"), &[COUNT], vec![3e38; COUNT]).refusal();
    assert!(matches!(overflown, DeltaError::NonFinite { .. }), "{overflown}");
}

#[test]
fn a_file_without_places_is_refused_with_the_way_out() {
    let error = upload().without(&key(DOWN, "shira_indices")).refusal();
    assert!(matches!(&error, DeltaError::NotReproducible { missing: "shira_indices", .. }), "{error}");
    assert!(error.to_string().contains("save_pretrained"), "{error}");
    let error = upload().without(&key(DOWN, "shira_weight")).refusal();
    assert!(matches!(error, DeltaError::MissingTensor { missing: "shira_weight", .. }), "{error}");
}

#[test]
fn places_lie_within_the_module() {
    let refused = |change: &dyn Fn(&mut [i64], &mut [i64])| {
        let (mut rows, mut columns) = places();
        change(&mut rows, &mut columns);
        match at(Dtype::I32, &rows, &columns).refusal() {
            DeltaError::Index { at, index, bound, .. } => (at, index, bound),
            error => panic!("{error}"),
        }
    };
    // 8 is no row and a column.
    assert_eq!(refused(&|rows, _| rows[4] = 8), (4, 8, HIDDEN));
    assert_eq!(refused(&|_, columns| columns[1] = 12), (COUNT + 1, 12, INNER));
    assert_eq!(refused(&|_, columns| columns[0] = -1), (COUNT, -1, INNER));
    let (rows, columns) = places();
    let part: Vec<f32> = rows.iter().chain(&columns).map(|place| *place as f32 + 0.5).collect();
    let part = at(Dtype::I32, &rows, &columns).values(&key(DOWN, "shira_indices"), &[2, COUNT], part).refusal();
    assert!(matches!(part, DeltaError::Index { at: 0, index: -1, .. }), "{part}");
}

#[test]
fn there_are_as_many_numbers_as_r_says_and_no_more_than_the_module_has() {
    let rank = |r: &str| match upload().set("r", r).refusal() {
        DeltaError::Rank { rank, max, .. } => (rank, max),
        error => panic!("{error}"),
    };
    // 5 * (8 + 12) places are more than 8 * 12.
    assert_eq!([rank("0"), rank("5")], [(0, 4), (5, 4)]);
    let other = upload().set("r", "2").refusal();
    assert!(matches!(&other, DeltaError::Shape { .. }), "{other}");
    let unsupported = upload().set("modules_to_save", r#"["score"]"#).refusal();
    assert!(matches!(unsupported, DeltaError::UnsupportedField { .. }), "{unsupported}");
}
