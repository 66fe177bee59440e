//! Rows of logits of other vocabularies than the base's.

/// How many logits each row of a group of sampled rows has, where that is not the base's number for all of them.
pub struct OwnVocabularies<'a, Buffer, Table> {
    /// `[rows, most]`: column c is the token behind c others of those that the base does not have.
    pub added: &'a Buffer,
    /// Of each row, all of its logits: more than the base's, or fewer where it lacks the last of the base's tokens.
    pub sizes: &'a [usize],
    /// Says the same of each row by its slot ([`EntriesBySite::vocab_size`](super::EntriesBySite::vocab_size)), where kernels find it.
    pub table: &'a Table,
}

impl<Buffer, Table> Clone for OwnVocabularies<'_, Buffer, Table> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Buffer, Table> Copy for OwnVocabularies<'_, Buffer, Table> {}

/// The `size` logits of a row: those of the base that it has, then those of tokens added to them. Where there are any, `whole` holds
/// them.
#[must_use]
pub fn of_vocabulary<'a>(base: &'a [f32], added: &[f32], size: usize, whole: &'a mut Vec<f32>) -> &'a [f32] {
    let Some(beyond) = size.checked_sub(base.len()).filter(|beyond| *beyond > 0) else { return &base[..size] };
    whole.clear();
    whole.extend_from_slice(base);
    whole.extend_from_slice(&added[..beyond]);
    whole
}

#[cfg(test)]
mod tests {
    use super::of_vocabulary;

    #[test]
    fn a_row_has_the_bases_logits_then_its_own_or_fewer() {
        let mut whole = vec![9.0; 7];
        let mut of = |size| of_vocabulary(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], size, &mut whole).to_vec();
        assert_eq!(of(5), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(of(3), [1.0, 2.0, 3.0]);
        assert_eq!(of(2), [1.0, 2.0]);
    }
}
