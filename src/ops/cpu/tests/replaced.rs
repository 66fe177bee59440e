use super::scene::replaced::{check_bits, check_columns, check_embeddings};
use super::*;

#[test]
fn tokens_become_the_rows_that_their_adapters_have_for_them() {
    for cpu in backends(2) {
        check_embeddings(&cpu, &name(&cpu));
    }
}

#[test]
fn columns_become_products_with_the_rows_that_adapters_have_for_them() {
    for cpu in backends(3) {
        check_columns(&cpu, 2e-5, &name(&cpu));
    }
}

#[test]
fn a_replaced_column_has_the_bits_that_a_whole_matrix_gives_it_alone_and_among_others() {
    for cpu in [1, 3].into_iter().flat_map(backends) {
        check_bits(&cpu, &name(&cpu));
    }
}
