//! Rows that become one, and heads on them, against the definition.

use polydelta::ops::Numerics;
use polydelta::ops::reference::ReferenceBackend;

use crate::device::{NUMERICS, cuda};
use crate::scene::pool::{check_non_finite, numbers_of, pool, rows};
use crate::scene::{assert_close, assert_same};

#[test]
fn pooled_rows_and_their_heads_agree_with_the_definition_in_any_group() {
    // Widths that 16-byte accesses divide, and others.
    for width in [64, 72, 13, 1030] {
        let x = rows(width);
        let want = numbers_of(pool(&ReferenceBackend::new(Numerics::F32), width, 150, &x));
        for numerics in NUMERICS {
            let (backend, what) = (cuda(numerics), format!("{width} wide, {numerics:?}"));
            let found = numbers_of(pool(&backend, width, 150, &x));
            // No dtype rounds any of it.
            assert_close(&found, &want, 1e-5, &what);
            let of_few = numbers_of(pool(&backend, width, 7, &x));
            assert_same(&of_few, &found[..of_few.len()], &what);
        }
    }
}

#[test]
fn a_pooled_row_that_is_not_finite_fails_alone() {
    check_non_finite(&cuda(Numerics::F32));
    check_non_finite(&cuda(Numerics::BF16));
}
