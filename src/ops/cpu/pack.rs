//! Weights in the layout the GEMM tiles read.
//!
//! A matrix `[out, in]` is cut into *panels* of 16 output columns; every stacked segment starts at a panel of its own
//! and the last panel of a segment is filled up with zeros. Inside a panel the numbers run along k, one cache line
//! ([`Line`]) at a time: in f32 a line is one k of 16 columns, in bf16 it is two k, the pair of one column in one
//! 32-bit word (lower k in the lower half), which is what `vdpbf16ps` eats and what AVX2 widens with one shift and one
//! mask. Example, bf16, 3 inputs: line 0 holds `(w[c, 0], w[c, 1])` for c in 0..16, line 1 `(w[c, 2], 0)`.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::math::round_bf16_bits;
use super::memory::Streamed;
use super::numerics::WeightFormat;
use super::pool::Pool;
use crate::ops::{HostData, HostMatrix, OpsError};

/// Output columns of a panel.
pub(super) const PANEL: usize = 16;

/// 16 words of 32 bits on one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; PANEL]);

/// One stacked matrix within a [`PackedWeight`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackedSegment {
    /// Panels of the weight that hold it.
    pub(super) panels: Range<usize>,
    /// Output columns of the stacked result.
    pub(super) columns: Range<usize>,
}

/// How stacked matrices lie in memory.
#[derive(Debug)]
struct Stack {
    depth: usize,
    segments: Vec<PackedSegment>,
    /// Lines of the memory they lie in.
    lines: Range<usize>,
}

/// A packed matrix `[out, in]`, possibly several stacked along `out`.
#[derive(Debug)]
pub struct PackedWeight {
    format: WeightFormat,
    stack: Stack,
    /// Shared by weights that come and go together.
    memory: Arc<Streamed<Line>>,
}

/// Consecutive panels whose columns are consecutive too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) panels: Range<usize>,
    pub(super) columns: Range<usize>,
}

/// Lines of one panel of `depth` inputs.
pub(super) fn lines_per_panel(format: WeightFormat, depth: usize) -> usize {
    match format {
        WeightFormat::F32 => depth,
        WeightFormat::Bf16 => depth.div_ceil(2),
    }
}

impl PackedWeight {
    /// Pack `segments` in order. In bf16 the numbers are rounded to nearest even.
    pub(super) fn new(format: WeightFormat, segments: &[HostMatrix<'_>], pool: &Pool) -> Result<Self, OpsError> {
        let mut packed = Self::group(format, &[segments], pool)?;
        packed.pop().ok_or(OpsError::Shape { rows: 0, cols: 0, expected: 0 })
    }

    /// Pack several weights, each of some stacked matrices, into one allocation.
    pub(super) fn group(
        format: WeightFormat,
        weights: &[&[HostMatrix<'_>]],
        pool: &Pool,
    ) -> Result<Vec<Self>, OpsError> {
        let mut stacks: Vec<Stack> = Vec::with_capacity(weights.len());
        for segments in weights {
            let first = stacks.last().map_or(0, |last| last.lines.end);
            stacks.push(Stack::new(format, segments, first)?);
        }
        let Some(last) = stacks.last() else { return Ok(Vec::new()) };
        let mut memory = Streamed::filled("packed weights", last.lines.end, Line::default())?;
        for (segments, stack) in weights.iter().zip(&stacks) {
            stack.fill(format, segments, &mut memory, pool);
        }
        let memory = Arc::new(memory);
        Ok(stacks.into_iter().map(|stack| Self { format, stack, memory: Arc::clone(&memory) }).collect())
    }

    /// Inputs.
    pub(super) fn depth(&self) -> usize {
        self.stack.depth
    }

    /// Output columns of all segments.
    pub(super) fn columns(&self) -> usize {
        self.stack.segments.last().map_or(0, |last| last.columns.end)
    }

    pub(super) fn panels(&self) -> usize {
        self.stack.segments.last().map_or(0, |last| last.panels.end)
    }

    pub(super) fn segment(&self, segment: usize) -> &PackedSegment {
        &self.stack.segments[segment]
    }

    pub(super) fn lines(&self) -> &[Line] {
        &self.memory[self.stack.lines.clone()]
    }

    /// Lines from one panel to the next.
    pub(super) fn panel_stride(&self) -> usize {
        lines_per_panel(self.format, self.stack.depth)
    }

    /// The first word of a panel; beyond the last, a place that must not be read.
    pub(super) fn words_of(&self, panel: usize) -> *const u32 {
        self.lines().as_ptr().wrapping_add(panel * self.panel_stride()).cast()
    }

    /// The line of a panel that an even k starts.
    pub(super) fn line_of(&self, k: usize) -> usize {
        lines_per_panel(self.format, k)
    }

    /// Cut a range of panels where a segment ends.
    pub(super) fn runs(&self, panels: Range<usize>) -> impl Iterator<Item = Run> + '_ {
        self.stack.segments.iter().filter_map(move |segment| {
            let start = panels.start.max(segment.panels.start);
            let end = panels.end.min(segment.panels.end);
            let column = segment.columns.start + start.saturating_sub(segment.panels.start) * PANEL;
            let last = segment.columns.start + end.saturating_sub(segment.panels.start) * PANEL;
            (start < end).then(|| Run { panels: start..end, columns: column..last.min(segment.columns.end) })
        })
    }

    /// True if panels cut from the first of `columns` on lie where this weight's lie.
    pub(super) fn aligns(&self, columns: &Range<usize>) -> bool {
        let mut touched = self.stack.segments.iter().filter(|segment| segment.columns.end > columns.start);
        let starts = |segment: &PackedSegment| segment.columns.start == columns.start;
        let whole =
            |segment: &PackedSegment| segment.columns.end >= columns.end || segment.columns.len().is_multiple_of(PANEL);
        touched.next().is_some_and(|first| starts(first) && whole(first)) && touched.all(whole)
    }

    /// The words of one row (an output column), pairs of bf16 or single f32, along k.
    pub(super) fn row_words(&self, row: usize) -> impl Iterator<Item = u32> + '_ {
        let holder = self.stack.segments.iter().find(|segment| segment.columns.contains(&row));
        let (panel, lane) = holder.map_or((self.panels(), 0), |segment| {
            let within = row - segment.columns.start;
            (segment.panels.start + within / PANEL, within % PANEL)
        });
        let stride = self.panel_stride();
        self.lines()[panel * stride..][..stride].iter().map(move |line| line.0[lane])
    }

    /// How its numbers lie.
    pub(super) fn format(&self) -> WeightFormat {
        self.format
    }

    /// Write a row times `scale`, widened to f32.
    pub(super) fn widen_row(&self, row: usize, scale: f32, target: &mut [f32]) {
        let target = &mut target[..self.stack.depth];
        match self.format {
            WeightFormat::F32 => {
                for (target, word) in target.iter_mut().zip(self.row_words(row)) {
                    *target = scale * f32::from_bits(word);
                }
            }
            WeightFormat::Bf16 => {
                for (pair, word) in target.chunks_mut(2).zip(self.row_words(row)) {
                    pair[0] = scale * f32::from_bits(word << 16);
                    if let Some(high) = pair.get_mut(1) {
                        *high = scale * f32::from_bits(word & 0xffff_0000);
                    }
                }
            }
        }
    }
}

impl Stack {
    /// Where `segments` go from line `first` on; refused unless they stack.
    fn new(format: WeightFormat, segments: &[HostMatrix<'_>], first: usize) -> Result<Self, OpsError> {
        let depth = segments.first().map_or(0, |first| first.cols);
        let mut packed = Vec::with_capacity(segments.len());
        let (mut panel, mut column) = (0, 0);
        for matrix in segments {
            let len = match matrix.data {
                HostData::F32(data) => data.len(),
                HostData::Bf16(data) => data.len(),
            };
            let fits = matrix.cols == depth && matrix.rows > 0 && depth > 0;
            if !fits || matrix.rows.checked_mul(matrix.cols) != Some(len) {
                return Err(OpsError::Shape { rows: matrix.rows, cols: matrix.cols, expected: depth });
            }
            let panels = panel..panel + matrix.rows.div_ceil(PANEL);
            packed.push(PackedSegment { panels: panels.clone(), columns: column..column + matrix.rows });
            (panel, column) = (panels.end, column + matrix.rows);
        }
        if panel == 0 {
            return Err(OpsError::Shape { rows: 0, cols: 0, expected: 0 });
        }
        let lines = lines_per_panel(format, depth).saturating_mul(panel);
        Ok(Self { depth, segments: packed, lines: first..first.saturating_add(lines) })
    }

    fn fill(&self, format: WeightFormat, segments: &[HostMatrix<'_>], memory: &mut [Line], pool: &Pool) {
        let stride = lines_per_panel(format, self.depth);
        let lines = &mut memory[self.lines.clone()];
        for (matrix, segment) in segments.iter().zip(&self.segments) {
            let target = &mut lines[segment.panels.start * stride..segment.panels.end * stride];
            pool.for_blocks(matrix.rows * self.depth, target, stride, |index, panel| {
                let first = index * PANEL;
                for lane in 0..PANEL.min(matrix.rows - first) {
                    fill_lane(format, matrix, first + lane, lane, panel);
                }
            });
        }
    }
}

/// Write row `row` of `matrix` into lane `lane` of its panel.
fn fill_lane(format: WeightFormat, matrix: &HostMatrix<'_>, row: usize, lane: usize, panel: &mut [Line]) {
    let range = row * matrix.cols..(row + 1) * matrix.cols;
    match (matrix.data, format) {
        (HostData::F32(data), WeightFormat::F32) => {
            panel.iter_mut().zip(&data[range]).for_each(|(line, x)| line.0[lane] = x.to_bits());
        }
        (HostData::Bf16(data), WeightFormat::F32) => {
            panel.iter_mut().zip(&data[range]).for_each(|(line, x)| line.0[lane] = u32::from(x.to_bits()) << 16);
        }
        (HostData::F32(data), WeightFormat::Bf16) => {
            fill_pairs(&data[range], lane, panel, |x| round_bf16_bits(x) >> 16)
        }
        (HostData::Bf16(data), WeightFormat::Bf16) => {
            fill_pairs(&data[range], lane, panel, |x: bf16| u32::from(x.to_bits()));
        }
    }
}

fn fill_pairs<T: Copy>(row: &[T], lane: usize, panel: &mut [Line], bits: impl Fn(T) -> u32) {
    for (line, pair) in panel.iter_mut().zip(row.chunks(2)) {
        let high = pair.get(1).map_or(0, |x| bits(*x));
        line.0[lane] = bits(pair[0]) | high << 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Vec<f32> {
        (0..len).map(|i| i as f32).collect()
    }

    #[test]
    fn segments_start_at_their_own_panels_and_rows_come_back() {
        let pool = Pool::new(2).unwrap();
        let (first, second) = (numbers(17 * 3), numbers(5 * 3));
        let segments = [HostMatrix::f32(17, 3, &first), HostMatrix::f32(5, 3, &second)];
        for format in [WeightFormat::F32, WeightFormat::Bf16] {
            let w = PackedWeight::new(format, &segments, &pool).unwrap();
            assert_eq!((w.depth(), w.columns(), w.panels()), (3, 22, 3));
            assert_eq!(w.segment(1), &PackedSegment { panels: 2..3, columns: 17..22 });
            let mut row = [0.0; 3];
            w.widen_row(16, 1.0, &mut row);
            assert_eq!(row, [48.0, 49.0, 50.0]);
            w.widen_row(18, 2.0, &mut row);
            assert_eq!(row, [6.0, 8.0, 10.0]);
            let runs: Vec<Run> = w.runs(1..3).collect();
            assert_eq!(runs, [Run { panels: 1..2, columns: 16..17 }, Run { panels: 2..3, columns: 17..22 }]);
        }
    }

    #[test]
    fn columns_align_where_their_panels_are_the_weights_own() {
        let pool = Pool::new(1).unwrap();
        let (first, second) = (numbers(32 * 2), numbers(20 * 2));
        let stacked = |a, b| PackedWeight::new(WeightFormat::F32, &[a, b], &pool).unwrap();
        let (wide, ragged) = (HostMatrix::f32(32, 2, &first), HostMatrix::f32(20, 2, &second));
        let w = stacked(wide, ragged);
        assert!(w.aligns(&(0..32)) && w.aligns(&(0..7)) && w.aligns(&(32..52)) && w.aligns(&(0..52)));
        assert!(!w.aligns(&(1..32)) && !w.aligns(&(16..32)));
        let w = stacked(ragged, wide);
        assert!(w.aligns(&(0..20)) && w.aligns(&(20..52)) && !w.aligns(&(0..21)));
    }

    #[test]
    fn a_line_of_bf16_holds_pairs_of_k() {
        let pool = Pool::new(1).unwrap();
        let data = [1.0, 2.0, 3.0];
        let w = PackedWeight::new(WeightFormat::Bf16, &[HostMatrix::f32(1, 3, &data)], &pool).unwrap();
        let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        assert_eq!(w.lines()[0].0[0], bits(1.0) | bits(2.0) << 16);
        assert_eq!(w.lines()[1].0[0], bits(3.0));
        assert_eq!(w.lines()[0].0[1..], [0; 15]);
    }

    #[test]
    fn shapes_that_do_not_stack_are_refused() {
        let pool = Pool::new(1).unwrap();
        let data = numbers(6);
        let stacked = [HostMatrix::f32(2, 3, &data), HostMatrix::f32(3, 2, &data)];
        let refused = PackedWeight::new(WeightFormat::F32, &stacked, &pool).unwrap_err();
        assert_eq!(refused, OpsError::Shape { rows: 3, cols: 2, expected: 3 });
        assert!(PackedWeight::new(WeightFormat::F32, &[], &pool).is_err());
        assert!(PackedWeight::new(WeightFormat::F32, &[HostMatrix::f32(0, 3, &[])], &pool).is_err());
    }
}
