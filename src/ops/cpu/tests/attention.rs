use proptest::prelude::*;

use super::scene::attention::{Scene, scene};
use super::*;

fn scenes() -> Vec<Scene> {
    vec![
        scene([4, 4, 16, 16], None, None),
        scene([7, 1, 64, 16], None, None),
        scene([14, 2, 20, 32], Some(9), None),
        scene([4, 2, 8, 4], Some(40), Some(5.0)),
        scene([2, 1, 1, 20], None, Some(2.0)),
        scene([3, 3, 35, 8], Some(1), None),
        scene([40, 1, 12, 16], None, None),
    ]
}

#[test]
fn attention_agrees_with_the_definition() {
    for scene in scenes() {
        for cpu in backends(2) {
            scene.check_agreement(&cpu, 2e-5, &name(&cpu));
        }
    }
}

#[test]
fn what_the_cache_keeps_is_chosen_apart_from_what_is_computed_in() {
    let scene = scenes().remove(2);
    let (tokens, blocks) = (numbers(5, 70 * scene.columns()), (0..20).collect::<Vec<u32>>());
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for [compute, kept] in [[Numerics::F32, Numerics::BF16], [Numerics::BF16, Numerics::F32]] {
            let cpu = backend(isa, Numerics { kv: kept.kv, ..compute }, 2);
            let got = scene.whole(&cpu, &tokens, &blocks);
            let alike = scene.whole(&backend(isa, kept, 2), &tokens, &blocks);
            // Attention reads nothing but q and the cache.
            assert_same(&got, &alike, &name(&cpu));
        }
    }
}

/// On one thread and on several.
fn check_invariance(scene: Scene, isa: Isa, numerics: Numerics, len: usize, cuts: &[usize], seed: u64) {
    let (one, many) = (backend(isa, numerics, 1), backend(isa, numerics, 3));
    scene.check_invariance([&one, &many], len, cuts, seed, &name(&one));
}

#[test]
fn chunks_company_pages_and_threads_change_no_bit() {
    for scene in scenes() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for numerics in NUMERICS {
                check_invariance(scene, isa, numerics, 110, &[1, 2, 17, 40, 41, 63, 64, 65, 100, 101], 3);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_cut_of_a_prompt_gives_the_same_bits(
        index in 0_usize..7,
        len in 1_usize..90,
        cuts in proptest::collection::vec(0_usize..90, 0..8),
        seed in 0_u64..1000,
    ) {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for numerics in NUMERICS {
                check_invariance(scenes()[index], isa, numerics, len, &cuts, seed);
            }
        }
    }
}

#[test]
fn rows_that_are_not_numbers_leave_others_alone_and_copies_are_like_originals() {
    let scenes = scenes();
    for cpu in backends(2) {
        scenes[0].check_causality(&cpu, &name(&cpu));
        scenes[1].check_neighbours(&cpu, &name(&cpu));
        scenes[2].check_copies(&cpu, &name(&cpu));
    }
}
