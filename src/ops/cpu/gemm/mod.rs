//! One GEMM for any number of rows.
//!
//! An output element is the sum over k, ascending, of `x[r, k] * w[n, k]` in one accumulator (with `vdpbf16ps`: one
//! pair of k at a time), and sits in one lane from the first k to the last. Tiles differ in how many rows and panels
//! they carry side by side, and blocks of k park the accumulator in y between them; neither changes that sequence.
//! So a row gives the same bits alone or among others, stacked or not, on any number of threads.
//!
//! Up to the rows of one tile, memory is the floor and a tile streams its panels. With more, several tiles take turns at
//! a block of panels that the first of them brought in; arithmetic is the floor, and all of them ask for the next block.
//!
//! Threads are given panels; this file computes the panels it is told to.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_lines;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod input;
mod portable;
mod tile;

use std::ops::Range;

pub(super) use input::{InputForm, Inputs, prepare_row};

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::{Avx512, Avx512Dot};
pub(super) use portable::Portable;
pub(super) use tile::{Ahead, Kernel, MAX_PANELS, MAX_ROWS, Store, Tile, WORDS};

use super::isa::{DetectedIsa, Isa, Plain};
use super::numerics::WeightFormat;
use super::pack::{Line, PANEL, PackedWeight, Run};

/// Where the rows of a result go.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    base: *mut f32,
    len: usize,
    stride: usize,
    /// Row of y of each row of x; the same without.
    map: Option<&'a [u32]>,
}

// SAFETY: only a place. Who writes through it (`multiply`) is told by its contract which columns are its own.
unsafe impl Sync for Outputs<'_> {}
// SAFETY: as above.
unsafe impl Send for Outputs<'_> {}

impl<'a> Outputs<'a> {
    /// Rows of `y`, `stride` numbers apart, through `map` if there is one.
    pub(super) fn new(y: &'a mut [f32], stride: usize, map: Option<&'a [u32]>) -> Self {
        Self { base: y.as_mut_ptr(), len: y.len(), stride, map }
    }

    /// The same memory with other row numbers.
    pub(super) fn with_map(self, map: &'a [u32]) -> Self {
        Self { map: Some(map), ..self }
    }

    /// The same memory from `offset` on, with rows `stride` apart and no map.
    pub(super) fn part(self, offset: usize, stride: usize) -> Self {
        assert!(offset <= self.len);
        Self { base: self.base.wrapping_add(offset), len: self.len - offset, stride, map: None }
    }

    /// The address of `width` columns of a row.
    pub(super) fn at(&self, row: usize, column: usize, width: usize) -> *mut f32 {
        let row = self.map.map_or(row, |map| map[row] as usize);
        let start = row * self.stride + column;
        assert!(column + width <= self.stride && start + width <= self.len, "a row or column outside the result");
        self.base.wrapping_add(start)
    }

    /// Numbers from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// `width` columns of a row.
    ///
    /// # Safety
    /// Nobody else touches them while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn columns(&self, row: usize, column: usize, width: usize) -> &mut [f32] {
        // SAFETY: `at` asserted the range; the caller answers for other threads.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, column, width), width) }
    }
}

/// One thread's part of a GEMM.
pub(super) struct Part<'a> {
    pub(super) x: Inputs<'a>,
    pub(super) w: &'a PackedWeight,
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
    pub(super) y: Outputs<'a>,
    /// Column of y where column 0 of the weight goes.
    pub(super) column: usize,
    pub(super) store: Store,
}

/// Of so many panels, how many a chunk for so many rows has: several chunks for each thread, so that one that is held up
/// does not hold up all; whole groups of panels, which tiles take side by side.
pub(super) fn panels_each(panels: usize, rows: usize, threads: usize) -> usize {
    let group = match rows {
        1 => 8,
        2..=4 => 4,
        _ => 6,
    };
    panels.div_ceil(threads * 8).next_multiple_of(group).min(panels.div_ceil(threads))
}

/// A GEMM cut into chunks of panels for threads to take.
pub(super) struct Chunks<'a> {
    x: Inputs<'a>,
    rows: usize,
    w: &'a PackedWeight,
    panels: Range<usize>,
    /// Panels of a chunk.
    each: usize,
    y: Outputs<'a>,
}

impl<'a> Chunks<'a> {
    /// The first `rows` rows of x against some panels of w.
    pub(super) fn new(
        x: Inputs<'a>,
        rows: usize,
        w: &'a PackedWeight,
        panels: Range<usize>,
        y: Outputs<'a>,
        threads: usize,
    ) -> Self {
        let each = panels_each(panels.len(), rows, threads);
        Self { x, rows, w, panels, each, y }
    }

    pub(super) fn len(&self) -> usize {
        self.panels.len().div_ceil(self.each)
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Multiply-adds of all chunks.
    pub(super) fn work(&self) -> usize {
        self.rows * self.w.depth() * self.panels.len() * PANEL
    }

    /// Panels of a chunk.
    fn panels_of(&self, chunk: usize) -> Range<usize> {
        let first = self.panels.start + chunk * self.each;
        first..(first + self.each).min(self.panels.end)
    }

    /// Columns of y that a chunk holds.
    pub(super) fn columns_of(&self, chunk: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        self.w.runs(self.panels_of(chunk)).map(|run| run.columns)
    }

    /// True if panels that start at the first of `columns` end where those of the weight do, so that no panel of theirs
    /// reaches into two chunks.
    pub(super) fn aligns(&self, columns: &Range<usize>) -> bool {
        self.w.aligns(columns)
    }

    /// Compute one chunk.
    ///
    /// # Safety
    /// Each chunk is computed once, and nobody else touches the columns of `panels` in those rows of y meanwhile.
    pub(super) unsafe fn compute(&self, isa: DetectedIsa, chunk: usize) {
        let part = Part {
            x: self.x,
            w: self.w,
            panels: self.panels_of(chunk),
            rows: 0..self.rows,
            y: self.y,
            column: 0,
            store: Store::Overwrite,
        };
        // SAFETY: chunks hold other panels, and so other columns of y.
        unsafe { multiply(isa, &part) };
    }
}

/// Ask for memory that is soon read, into the second-level cache.
pub(super) fn ask_for(lines: &[Line]) {
    #[cfg(target_arch = "x86_64")]
    for line in lines {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch may go anywhere, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = lines;
}

/// The kernel of a GEMM for an instruction set, the format of the weight, and the form in which x was prepared.
///
/// # Safety
/// No other thread touches the columns of `part.panels` in the rows of `part.rows` of y meanwhile.
pub(super) unsafe fn multiply(isa: DetectedIsa, part: &Part<'_>) {
    part.check(isa);
    // SAFETY: `DetectedIsa` proves the instruction set; the ranges were just checked; the caller answers for y.
    unsafe {
        match (isa.get(), part.w.format()) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, WeightFormat::Bf16) if part.x.form() == InputForm::Pairs => blocks::<Avx512Dot>(part),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, WeightFormat::F32) => blocks::<Avx512<false>>(part),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, WeightFormat::Bf16) => blocks::<Avx512<true>>(part),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, WeightFormat::F32) => blocks::<Avx2<false>>(part),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, WeightFormat::Bf16) => blocks::<Avx2<true>>(part),
            (_, WeightFormat::F32) => blocks::<Portable<Plain, false>>(part),
            (_, WeightFormat::Bf16) => blocks::<Portable<Plain, true>>(part),
        }
    }
}

impl Part<'_> {
    /// Pairs are half the words that other kernels read.
    fn check(&self, isa: DetectedIsa) {
        let fits = self.x.form() != InputForm::Pairs || InputForm::takes_pairs(isa, self.w.format());
        assert!(fits && self.x.depth() == self.w.depth(), "x was prepared for another weight");
        assert!(self.rows.end <= self.x.rows() && self.panels.end <= self.w.panels());
    }
}

/// Rows from which on all panels of a part are walked for one block of k after the other, so that x stays in the
/// second-level cache; with fewer, all of k for one group of panels after the other.
const MANY_ROWS: usize = 24;

/// # Safety
/// As [`multiply`], with `part` checked and the machine having the instruction set of `K`.
unsafe fn blocks<K: Kernel>(part: &Part<'_>) {
    let rows = part.rows.len();
    if rows == 0 {
        return;
    }
    let rows_each = rows.div_ceil(rows.div_ceil(K::ROW_BLOCK));
    for run in part.w.runs(part.panels.clone()) {
        for row in part.rows.clone().step_by(rows_each) {
            let rows = row..(row + rows_each).min(part.rows.end);
            // SAFETY: handed on; the run and the rows lie within `part`.
            unsafe { walk::<K>(part, rows, &run) };
        }
    }
}

/// One block of rows against neighbouring panels.
///
/// # Safety
/// As [`blocks`]; `rows` and `run` lie within `part`.
unsafe fn walk<K: Kernel>(part: &Part<'_>, rows: Range<usize>, run: &Run) {
    let depth = part.w.depth();
    let tiles = rows.len().div_ceil(K::ROWS);
    let tile_rows = rows.len().div_ceil(tiles);
    let side = if tiles == 1 { K::panels(tile_rows) } else { K::shared_panels(tile_rows) };
    // A scaled sum is added once, so its k is never cut.
    let k_block = if tiles == 1 || matches!(part.store, Store::AddScaled(_)) { depth } else { K::K_BLOCK };
    let (groups, cuts) = (run.panels.len().div_ceil(side), depth.div_ceil(k_block));
    let block = |index: usize| {
        let (group, cut) =
            if rows.len() < MANY_ROWS { (index / cuts, index % cuts) } else { (index % groups, index / groups) };
        let first = run.panels.start + group * side;
        let k = cut * k_block;
        Block { panels: first..(first + side).min(run.panels.end), k: k..(k + k_block).min(depth) }
    };
    let last = groups * cuts - 1;
    for index in 0..=last {
        let (this, next) = (block(index), block((index + 1).min(last)));
        let column = run.columns.start + (this.panels.start - run.panels.start) * PANEL;
        let columns = column..run.columns.end.min(column + this.panels.len() * PANEL);
        // SAFETY: handed on.
        unsafe { block_of::<K>(part, rows.clone(), tiles, &this, &next, columns) };
    }
}

/// Panels side by side over a range of k.
struct Block {
    panels: Range<usize>,
    k: Range<usize>,
}

/// One block of rows and k against the panels of a group.
///
/// # Safety
/// As [`blocks`]; the ranges lie within `part`, and `tiles` is how many tiles the rows take.
unsafe fn block_of<K: Kernel>(
    part: &Part<'_>,
    rows: Range<usize>,
    tiles: usize,
    this: &Block,
    next: &Block,
    columns: Range<usize>,
) {
    let width = columns.len();
    let mut tile = Tile {
        x: [std::ptr::null(); MAX_ROWS],
        w: std::array::from_fn(|panel| part.w.words_of(this.panels.start + panel)),
        k: this.k.clone(),
        y: [std::ptr::null_mut(); MAX_ROWS],
        width,
        store: if this.k.start == 0 { part.store } else { Store::Continue },
    };
    let share = size_of::<Line>().div_ceil(tiles);
    let lines = part.w.line_of(this.k.end) - part.w.line_of(this.k.start);
    let next_line = part.w.line_of(next.k.start) * size_of::<Line>();
    let next: [*const u8; MAX_PANELS] =
        std::array::from_fn(|panel| part.w.words_of(next.panels.start + panel).cast::<u8>().wrapping_add(next_line));
    let mut row = rows.start;
    for index in 0..tiles {
        let tile_rows = (rows.end - row).div_ceil(tiles - index);
        for i in 0..tile_rows {
            tile.x[i] = part.x.row(row + i);
            tile.y[i] = part.y.at(row + i, part.column + columns.start, width);
        }
        // SAFETY: `Inputs::row` covers the depth, `Outputs::at` asserted the columns, the panels lie in the weight;
        // the caller answers for threads and for the instruction set.
        unsafe {
            if tiles == 1 {
                K::tile(tile_rows, this.panels.len(), &tile);
            } else {
                let ahead = Ahead { w: next.map(|w| w.wrapping_add(index * lines * share)), step: share };
                K::shared_tile(tile_rows, this.panels.len(), &tile, &ahead);
            }
        }
        row += tile_rows;
    }
}
