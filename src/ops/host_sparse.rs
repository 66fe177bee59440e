//! Sparse matrices on the host, on their way to a device.

use super::OpsError;

/// One number of a [`HostSparse`] and where in its row it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseEntry {
    /// Input.
    pub column: u32,
    /// The number.
    pub value: f32,
}

/// A matrix `[rows, cols]` of which only what is not zero is kept, row by row (CSR); within a row columns ascend and none
/// comes twice.
#[derive(Clone, Debug, PartialEq)]
pub struct HostSparse {
    /// Inputs.
    pub cols: usize,
    /// Where each row begins in `entries`, and their number at the end: `[rows + 1]`.
    pub starts: Vec<u32>,
    /// All rows, one behind the other.
    pub entries: Vec<SparseEntry>,
}

impl HostSparse {
    /// A matrix `[rows, cols]` of numbers at `(row, column)`, in any order; the numbers of one place are added up in the order
    /// in which they come, as torch coalesces them. `places` gives the same ones each time, all of them within the matrix.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn new(
        [rows, cols]: [usize; 2],
        places: impl Iterator<Item = (usize, usize)> + Clone,
        values: &[f32],
    ) -> Result<Self, OpsError> {
        let refused = |bytes: usize| OpsError::OutOfMemory { what: "a sparse matrix", bytes: bytes as u64 };
        let count = values.len();
        let (mut starts, mut entries) = (Vec::new(), Vec::new());
        starts.try_reserve_exact(rows + 2).map_err(|_| refused(4 * rows))?;
        entries.try_reserve_exact(count).map_err(|_| refused(count.saturating_mul(size_of::<SparseEntry>())))?;
        // Where each row begins stands one place behind its own until the row is filled.
        starts.resize(rows + 2, 0);
        places.clone().for_each(|(row, _)| starts[row + 2] += 1);
        (0..rows).for_each(|row| starts[row + 2] += starts[row + 1]);
        entries.resize(count, SparseEntry { column: 0, value: 0.0 });
        for ((row, column), value) in places.zip(values) {
            let next = &mut starts[row + 1];
            entries[*next as usize] = SparseEntry { column: column as u32, value: *value };
            *next += 1;
        }
        starts.truncate(rows + 1);
        let mut matrix = Self { cols, starts, entries };
        matrix.coalesce();
        Ok(matrix)
    }

    /// Sort every row by column and add up what stands at one place.
    fn coalesce(&mut self) {
        let Self { starts, entries, .. } = self;
        let (mut kept, mut start) = (0, 0);
        for row in 1..starts.len() {
            let end = starts[row] as usize;
            // Stable: the numbers of one place keep their order.
            entries[start..end].sort_by_key(|entry| entry.column);
            let first = kept;
            for at in start..end {
                let entry = entries[at];
                if kept > first && entries[kept - 1].column == entry.column {
                    entries[kept - 1].value += entry.value;
                } else {
                    entries[kept] = entry;
                    kept += 1;
                }
            }
            starts[row] = kept as u32;
            start = end;
        }
        entries.truncate(kept);
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// The numbers of a row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[SparseEntry] {
        &self.entries[self.starts[row] as usize..self.starts[row + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(places: &[(usize, usize)], values: &[f32]) -> HostSparse {
        HostSparse::new([4, 5], places.iter().copied(), values).unwrap()
    }

    #[test]
    fn numbers_in_any_order_come_row_by_row_with_ascending_columns() {
        let matrix = of(&[(3, 1), (0, 4), (3, 0), (0, 2)], &[1.0, 2.0, 3.0, 4.0]);
        let row = |row| matrix.row(row).iter().map(|entry| (entry.column, entry.value)).collect::<Vec<_>>();
        assert_eq!(
            (0..4).map(row).collect::<Vec<_>>(),
            [vec![(2, 4.0), (4, 2.0)], vec![], vec![], vec![(0, 3.0), (1, 1.0)]]
        );
        assert_eq!((matrix.rows(), matrix.cols), (4, 5));
    }

    #[test]
    fn numbers_of_one_place_are_added_in_the_order_they_come() {
        let twice = of(&[(2, 3), (1, 0), (2, 3), (2, 0), (2, 3)], &[1e8, 5.0, 1.0, 7.0, -1e8]);
        assert_eq!(twice.starts, [0, 0, 1, 3, 3]);
        // 1 is lost beside 1e8.
        assert_eq!(twice.row(2), [SparseEntry { column: 0, value: 7.0 }, SparseEntry { column: 3, value: 0.0 }]);
        assert_eq!(of(&[], &[]), HostSparse { cols: 5, starts: vec![0; 5], entries: Vec::new() });
    }
}
