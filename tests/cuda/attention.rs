//! Rotation, the paged KV cache and attention: the definition's numbers, and the same bits however a prompt is cut.

use polydelta::ops::reference::ReferenceBackend;
use polydelta::ops::{Backend, Numerics};

use crate::device::{NUMERICS, cuda};
use crate::scene::attention::{Scene, scene};
use crate::scene::{assert_close, assert_same, numbers};

fn scenes() -> Vec<Scene> {
    vec![
        scene([4, 4, 16, 16], None, None),
        scene([7, 1, 64, 16], None, None),
        scene([6, 2, 80, 32], Some(9), None),
        scene([4, 2, 8, 8], Some(40), Some(5.0)),
        scene([2, 1, 256, 16], None, Some(2.0)),
        scene([3, 3, 128, 8], Some(1), None),
        scene([20, 1, 24, 16], None, None),
    ]
}

/// In bf16 q and the weights of the softmax are rounded too.
fn tolerance(numerics: Numerics) -> f32 {
    if numerics == Numerics::F32 { 2e-5 } else { 2e-2 }
}

#[test]
fn attention_agrees_with_the_definition() {
    for scene in scenes() {
        for numerics in NUMERICS {
            scene.check_agreement(&cuda(numerics), tolerance(numerics), &format!("{numerics:?}"));
        }
    }
}

#[test]
fn contexts_of_several_splits_agree_with_the_definition_alone_and_in_a_batch() {
    let scene = scenes().remove(1);
    let len = 600;
    let tokens = numbers(5, len * scene.columns());
    let blocks: Vec<u32> = (0..40).collect();
    for numerics in NUMERICS {
        let cuda = cuda(numerics);
        let reference = ReferenceBackend::new(numerics);
        let want = scene.whole(&reference, &tokens, &blocks);
        let mut kv = cuda.kv_cache(scene.shape()).unwrap();
        let mut got = scene.pass(&cuda, &mut kv, &[(&tokens, 0..len - 1, &blocks)]);
        // One row walks its splits side by side, many one after the other: the bits are the same.
        let alone = scene.pass(&cuda, &mut kv, &[(&tokens, len - 1..len, &blocks)]);
        let whole = scene.whole(&cuda, &tokens, &blocks);
        assert_same(&alone, &whole[(len - 1) * scene.width()..], "the last row alone");
        got.extend(alone);
        assert_close(&got, &want, tolerance(numerics), &format!("{numerics:?}"));
    }
}

#[test]
fn chunks_company_and_pages_change_no_bit() {
    let cuts = [1, 2, 17, 40, 41, 63, 64, 65, 100, 101];
    for scene in scenes() {
        for numerics in NUMERICS {
            let cuda = cuda(numerics);
            scene.check_invariance([&cuda, &cuda], 110, &cuts, 3, &format!("{numerics:?}"));
        }
    }
}

#[test]
fn rows_that_are_not_numbers_leave_others_alone_and_copies_are_like_originals() {
    let scenes = scenes();
    for numerics in NUMERICS {
        let (cuda, what) = (cuda(numerics), format!("{numerics:?}"));
        scenes[0].check_causality(&cuda, &what);
        scenes[1].check_neighbours(&cuda, &what);
        scenes[2].check_copies(&cuda, &what);
    }
}

#[test]
fn a_key_that_f16_cannot_hold_makes_no_number_of_all_that_see_it_and_leaves_the_neighbour_alone() {
    const TOKEN: usize = 6;
    let scene = Scene { softcap: Some(5.0), ..scenes()[1] };
    let cuda = cuda(Numerics::F16);
    let tokens = numbers(1, 20 * scene.columns());
    let (ours, theirs): (Vec<u32>, Vec<u32>) = ((0..5).collect(), (5..10).collect());
    let whole = scene.whole(&cuda, &tokens, &ours);
    // As infinity it would be a score of either sign, which a softcap makes finite.
    for key in [-70_000.0, 70_000.0] {
        let mut bad = tokens.clone();
        bad[TOKEN * scene.columns() + (scene.heads + 1) * scene.head_dim - 1] = key;
        let mut kv = cuda.kv_cache(scene.shape()).unwrap();
        let y = scene.pass(&cuda, &mut kv, &[(&bad, 0..20, &theirs), (&tokens, 0..20, &ours)]);
        let (theirs, ours) = y.split_at(whole.len());
        assert_same(ours, &whole, "the neighbour");
        let (before, after) = theirs.split_at(TOKEN * scene.width());
        assert_same(before, &whole[..before.len()], "tokens before");
        assert!(after.iter().all(|y| y.is_nan()), "{key}");
    }
}
