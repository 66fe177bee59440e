//! Rows in place of those of the embedding and the head.

use crate::device::{NUMERICS, cuda};
use crate::scene::replaced::{check_bits, check_columns, check_embeddings};

#[test]
fn tokens_become_the_rows_that_their_adapters_have_for_them() {
    for numerics in NUMERICS {
        check_embeddings(&cuda(numerics), &format!("{numerics:?}"));
    }
}

#[test]
fn columns_become_products_with_the_rows_that_adapters_have_for_them() {
    for numerics in NUMERICS {
        check_columns(&cuda(numerics), 1e-4, &format!("{numerics:?}"));
    }
}

#[test]
fn a_replaced_column_has_the_bits_that_a_whole_matrix_gives_it_alone_and_among_others() {
    for numerics in NUMERICS {
        check_bits(&cuda(numerics), &format!("{numerics:?}"));
    }
}
