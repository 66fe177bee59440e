//! Rows that become one, and heads on them.

use super::scene::pool::{check_non_finite, numbers_of, pool, rows};
use super::*;

#[test]
fn pooled_rows_and_their_heads_agree_with_the_definition_in_any_group_and_on_any_threads() {
    for width in [64, 13] {
        let x = rows(width);
        let want = numbers_of(pool(&ReferenceBackend::new(Numerics::F32), width, 150, &x));
        for backend in backends(3) {
            let found = numbers_of(pool(&backend, width, 150, &x));
            // No dtype rounds any of it.
            assert_close(&found, &want, 1e-5, &name(&backend));
            let of_few = numbers_of(pool(&backend, width, 7, &x));
            assert_same(&of_few, &found[..of_few.len()], &name(&backend));
        }
        let [one, three] = [1, 3].map(|threads| backend(Isa::best(), Numerics::F32, threads));
        assert_same(&numbers_of(pool(&one, width, 150, &x)), &numbers_of(pool(&three, width, 150, &x)), "threads");
    }
}

#[test]
fn a_pooled_row_that_is_not_finite_fails_alone() {
    backends(2).for_each(|backend| check_non_finite(&backend));
    check_non_finite(&ReferenceBackend::new(Numerics::F32));
}
