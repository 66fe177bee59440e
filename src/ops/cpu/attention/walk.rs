//! The algorithm of one item.
#![allow(unsafe_code)]

use std::ops::Range;

use super::items::{Item, MAX_QUERIES};
use super::pass::{Pass, SIDE, STRETCH};
use crate::ops::cpu::gemm::{Kernel, MAX_PANELS, MAX_ROWS, Store, Tile, WORDS, ask_for};
use crate::ops::cpu::isa::Arithmetic;
use crate::ops::cpu::kv::TILE;
use crate::ops::cpu::math;
use crate::ops::cpu::numerics::KvDtype;
use crate::ops::cpu::pack::{Line, PANEL};

/// Queries from which on a stretch is copied together, widened, before it is read: it is read once for every few queries,
/// and the sums of `p V` then stay in their registers over all of it.
const GATHERING_QUERIES: usize = 12;

/// Scores of a query against a stretch, then their weights.
type Scores = [[f32; TILE]; SIDE];

/// The queries of an item on their way through the stretches.
struct Queries<'a> {
    /// Numbers from one query to the next, in `q` and `y`.
    width: usize,
    /// Queries, scaled such that the exponent of a weight is a power of 2.
    q: &'a mut [f32],
    /// Σ p V so far.
    y: &'a mut [f32],
    scores: &'a mut [Scores],
    /// Keys of a gathered stretch: a panel for each tile.
    keys: &'a mut [f32],
    /// Values of a gathered stretch: panels of `STRETCH` places.
    values: &'a mut [f32],
    max: [f32; MAX_QUERIES],
    sum: [[f32; TILE]; MAX_QUERIES],
}

impl<'a> Queries<'a> {
    fn new(pass: &Pass<'_>, item: &Item, lines: &'a mut [Line]) -> Self {
        let width = pass.spec.head_dim.next_multiple_of(PANEL);
        let len = lines.len() * PANEL;
        // SAFETY: a line is `PANEL` words of the size and, at least, the alignment of f32, for which any bits will do.
        let numbers = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), len) };
        let (q, rest) = numbers.split_at_mut(MAX_QUERIES * width);
        let (y, rest) = rest.split_at_mut(MAX_QUERIES * width);
        let (scores, rest) = rest.split_at_mut(MAX_QUERIES * STRETCH);
        let (keys, values) = rest[..2 * STRETCH * width].split_at_mut(STRETCH * width);
        let mut queries = Self {
            width,
            q,
            y,
            scores: scores.as_chunks_mut().0.as_chunks_mut().0,
            keys,
            values,
            max: [f32::NEG_INFINITY; MAX_QUERIES],
            sum: [[0.0; TILE]; MAX_QUERIES],
        };
        queries.load(pass, item);
        queries
    }

    fn load(&mut self, pass: &Pass<'_>, item: &Item) {
        let dim = pass.spec.head_dim;
        let scale = pass.spec.softcap.map_or(pass.spec.scale * std::f32::consts::LOG2_E, |cap| pass.spec.scale / cap);
        let heads = item.heads.len();
        for query in 0..item.queries() {
            let (row, head) = (item.rows.start + query / heads, item.heads.start + query % heads);
            let from = &pass.qkv[row * pass.stride + head * dim..][..dim];
            self.q[query * self.width..].iter_mut().zip(from).for_each(|(q, from)| *q = from * scale);
            self.y[query * self.width..][..dim].fill(0.0);
        }
    }
}

/// KV indices that each query of an item sees.
struct View {
    visible: [Range<usize>; MAX_QUERIES],
    len: usize,
}

impl View {
    fn new(pass: &Pass<'_>, item: &Item) -> Self {
        let mut visible = [const { 0..0 }; MAX_QUERIES];
        for (row, queries) in item.rows.clone().zip(visible.chunks_exact_mut(item.heads.len())) {
            queries.fill(pass.visible(row));
        }
        Self { visible, len: item.queries() }
    }

    /// What any query sees lies within this.
    fn all(&self) -> Range<usize> {
        let queries = &self.visible[..self.len];
        let start = queries.iter().map(|seen| seen.start).min().unwrap_or(0);
        start..queries.iter().map(|seen| seen.end).max().unwrap_or(0)
    }

    /// What a query sees of `places`; may be empty the wrong way round.
    #[inline(always)]
    fn seen(&self, query: usize, places: &Range<usize>) -> Range<usize> {
        let seen = &self.visible[query];
        seen.start.max(places.start)..seen.end.min(places.end)
    }

    /// Queries that see some of `places`, and others between them; and whether all of them see all of it.
    fn queries(&self, places: &Range<usize>) -> (Range<usize>, bool) {
        let sees = |query: &usize| !self.seen(*query, places).is_empty();
        let first = (0..self.len).find(sees).unwrap_or(self.len);
        let end = (first..self.len).rfind(sees).map_or(first, |query| query + 1);
        ((first..end), (first..end).all(|query| self.seen(query, places) == *places))
    }
}

/// A stretch on the way of the queries that see some of it.
struct Stretch {
    /// Its tiles, up to the last that any query of the item sees.
    tiles: Range<usize>,
    /// The last of the item.
    last: usize,
    /// KV indices of all its tiles.
    places: [Range<usize>; SIDE],
    part: Range<usize>,
    /// Every query of `part` sees all of it.
    whole: bool,
}

impl Stretch {
    fn new(pass: &Pass<'_>, view: &View, first: usize, last: usize) -> Self {
        let places: [Range<usize>; SIDE] = std::array::from_fn(|side| pass.places(first + side));
        let (part, all) = view.queries(&(places[0].start..places[SIDE - 1].end));
        let mut stretch = Self { tiles: first..(first + SIDE).min(last + 1), last, places, part, whole: all };
        stretch.whole &= stretch.is_full();
        stretch
    }

    fn all(&self) -> Range<usize> {
        self.places[0].start..self.places[SIDE - 1].end
    }

    /// Whether no tile is shorter than others, as the last of a block may be.
    fn is_full(&self) -> bool {
        self.all().len() == STRETCH
    }

    /// Whether it is copied together before it is read.
    fn gathers(&self) -> bool {
        self.part.len() >= GATHERING_QUERIES && self.is_full()
    }
}

/// Compute one item: `K` reads the cache, `W` widened numbers, with the same bits.
///
/// # Safety
/// As [`attend`](super::attend), on a machine with the instruction set of `K` and `W`.
#[inline(always)]
pub(super) unsafe fn walk<K: Kernel, W: Kernel, A: Arithmetic>(pass: &Pass<'_>, item: &Item, lines: &mut [Line]) {
    let view = View::new(pass, item);
    let mut queries = Queries::new(pass, item, lines);
    let all = view.all();
    let (first, last) = (pass.tile_of(all.start), pass.tile_of(all.end - 1));
    for first in (first / SIDE * SIDE..=last).step_by(SIDE) {
        let stretch = Stretch::new(pass, &view, first, last);
        // SAFETY: handed on; what was gathered is read as such.
        unsafe {
            if stretch.gathers() {
                gather(pass, item, &stretch, &mut queries);
                // K of a tile lies together as it is.
                let gathered = pass.layout.dtype == KvDtype::Bf16;
                score::<W>(pass, item, &view, &stretch, gathered, &mut queries);
                soften::<A>(pass, &view, &stretch, &mut queries);
                let first = queries.values.as_ptr().cast();
                let values = Values { first, stride: STRETCH * WORDS, places: stretch.all(), lane: 0 };
                accumulate::<W>(pass, &view, &stretch, &values, &mut queries);
                continue;
            }
            score::<K>(pass, item, &view, &stretch, false, &mut queries);
            soften::<A>(pass, &view, &stretch, &mut queries);
            for (side, tile) in stretch.tiles.clone().enumerate() {
                let first = pass.tile(item, tile).1.as_ptr();
                let places = stretch.places[side].clone();
                let values = Values { first, stride: pass.layout.v_panel, places, lane: side * TILE };
                accumulate::<K>(pass, &view, &stretch, &values, &mut queries);
            }
        }
    }
    for query in 0..view.len {
        let total = 1.0 / math::fold_lanes(queries.sum[query], |a, b| a + b);
        let (row, head) = (query / item.heads.len(), query % item.heads.len());
        let (row, head) = (item.rows.start + row, item.heads.start + head);
        // SAFETY: the caller gives these columns to this thread, which holds one such slice at a time.
        let out = unsafe { pass.y.columns(row, head * pass.spec.head_dim, pass.spec.head_dim) };
        out.iter_mut().zip(&queries.y[query * queries.width..]).for_each(|(out, y)| *out = y * total);
    }
}

/// V of a stretch, widened, in panels of `STRETCH` places, and K where it must be widened, a panel for each tile.
#[inline(always)]
fn gather(pass: &Pass<'_>, item: &Item, stretch: &Stretch, queries: &mut Queries<'_>) {
    let Queries { width, keys, values, .. } = queries;
    for (side, tile) in stretch.tiles.clone().enumerate() {
        let (k, v) = pass.tile(item, tile);
        if pass.layout.dtype == KvDtype::Bf16 {
            widen(pass.layout.dtype, k, &mut keys[side * *width * PANEL..]);
        }
        for (panel, v) in v.chunks_exact(pass.layout.v_panel).enumerate() {
            widen(pass.layout.dtype, v, &mut values[(panel * STRETCH + side * TILE) * PANEL..]);
        }
    }
}

/// Lines of a panel as f32, a line for each k.
#[inline(always)]
fn widen(dtype: KvDtype, words: &[u32], numbers: &mut [f32]) {
    match dtype {
        KvDtype::F32 => numbers.iter_mut().zip(words).for_each(|(number, word)| *number = f32::from_bits(*word)),
        KvDtype::Bf16 => {
            let pairs = numbers.as_chunks_mut::<PANEL>().0.as_chunks_mut::<2>().0;
            for (pair, words) in pairs.iter_mut().zip(words.as_chunks::<PANEL>().0) {
                // By value: the compiler then knows that what is read is not what is written.
                let low = words.map(|word| f32::from_bits(word << 16));
                let high = words.map(|word| f32::from_bits(word & 0xffff_0000));
                *pair = [low, high];
            }
        }
    }
}

/// Cut queries into tiles of at most `K::ROWS`, the largest first.
#[inline(always)]
fn cut<K: Kernel>(part: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = part.len().div_ceil(K::ROWS);
    let mut start = part.start;
    (0..count).map(move |index| {
        let tile = start..start + (part.end - start).div_ceil(count - index);
        start = tile.end;
        tile
    })
}

/// q·k of every lane of the tiles of a stretch, visible or not; tiles that lie behind all that the queries side by side
/// see are left out.
///
/// # Safety
/// The machine has the instruction set of `K`, which reads the gathered keys, or those in the cache.
#[inline(always)]
unsafe fn score<K: Kernel>(
    pass: &Pass<'_>,
    item: &Item,
    view: &View,
    stretch: &Stretch,
    gathered: bool,
    queries: &mut Queries<'_>,
) {
    let Stretch { tiles, part, .. } = stretch;
    let together = K::panels(cut::<K>(part.clone()).next().map_or(1, |rows| rows.len()));
    let (cuts, gathers) = (part.len().div_ceil(K::ROWS), stretch.gathers());
    for first in tiles.clone().step_by(together) {
        let group = first..(first + together).min(tiles.end);
        let mut operands = Tile {
            x: [std::ptr::null(); MAX_ROWS],
            w: [std::ptr::null(); MAX_PANELS],
            k: 0..pass.spec.head_dim,
            y: [std::ptr::null_mut(); MAX_ROWS],
            width: 0,
            store: Store::Overwrite,
        };
        for (panel, tile) in group.clone().enumerate() {
            operands.w[panel] = if gathered {
                queries.keys[(tile - tiles.start) * queries.width * PANEL..].as_ptr().cast()
            } else {
                pass.tile(item, tile).0.as_ptr()
            };
        }
        for (index, rows) in cut::<K>(part.clone()).enumerate() {
            // A part of the next stretch at a time, while there are sums to hide the wait behind; few queries have none.
            for tile in group.clone().filter(|tile| gathers && tile + SIDE <= stretch.last) {
                let lines = pass.lines(item, tile + SIDE);
                ask_for(&lines[lines.len() * index / cuts..lines.len() * (index + 1) / cuts]);
            }
            let end = view.visible[rows.end - 1].end;
            let count = if stretch.whole { group.end } else { (pass.tile_of(end - 1) + 1).min(group.end) };
            let Some(count) = count.checked_sub(group.start).filter(|count| *count > 0) else { continue };
            operands.width = count * TILE;
            for (i, query) in rows.clone().enumerate() {
                operands.x[i] = queries.q[query * queries.width..].as_ptr().cast();
                operands.y[i] = queries.scores[query][first - tiles.start].as_mut_ptr();
            }
            // SAFETY: each query is `head_dim` numbers, each K one panel of that depth, the scores of a query hold the
            // tiles of a stretch side by side.
            unsafe { K::tile(rows.len(), count, &operands) };
        }
    }
}

/// Scores to weights, one step of the online softmax.
#[inline(always)]
fn soften<A: Arithmetic>(pass: &Pass<'_>, view: &View, stretch: &Stretch, queries: &mut Queries<'_>) {
    let mut highest = queries.max;
    for query in stretch.part.clone() {
        let scores = &mut queries.scores[query];
        if let Some(cap) = pass.spec.softcap {
            let cap = cap * std::f32::consts::LOG2_E;
            for score in scores.as_flattened_mut() {
                *score = math::tanh::<A>(*score) * cap;
            }
        }
        if !stretch.whole {
            for (scores, places) in scores.iter_mut().zip(&stretch.places) {
                mask(scores, places, &view.visible[query]);
            }
        }
        highest[query] = math::higher(highest[query], highest_of(scores));
    }
    // Only with scores of -inf is there no finite base; any will do then and gives weights of 0.
    let mut keep = [0.0; MAX_QUERIES];
    for query in 0..stretch.part.end {
        let base = if highest[query] == f32::NEG_INFINITY { 0.0 } else { highest[query] };
        keep[query] = math::exp2::<A>(queries.max[query] - base);
    }
    for query in stretch.part.clone() {
        let base = if highest[query] == f32::NEG_INFINITY { 0.0 } else { highest[query] };
        let sum = &mut queries.sum[query];
        for sum in sum.iter_mut() {
            *sum *= keep[query];
        }
        for scores in &mut queries.scores[query] {
            for lane in 0..TILE {
                scores[lane] = math::exp2::<A>(scores[lane] - base);
                sum[lane] += scores[lane];
            }
        }
        // A factor of 1 would change no bit.
        if keep[query] != 1.0 {
            for y in &mut queries.y[query * queries.width..][..queries.width] {
                *y *= keep[query];
            }
        }
    }
    queries.max = highest;
}

/// -inf for places that are not visible.
#[inline(always)]
fn mask(scores: &mut [f32; TILE], places: &Range<usize>, visible: &Range<usize>) {
    let lane_of = |index: usize| index.clamp(places.start, places.end) - places.start;
    let (start, end) = (lane_of(visible.start) as i32, lane_of(visible.end) as i32);
    for (lane, score) in scores.iter_mut().enumerate() {
        let lane = lane as i32;
        *score = if lane >= start && lane < end { *score } else { f32::NEG_INFINITY };
    }
}

#[inline(always)]
fn highest_of(scores: &Scores) -> f32 {
    let mut highest = scores[0];
    for scores in &scores[1..] {
        for lane in 0..TILE {
            highest[lane] = math::higher(highest[lane], scores[lane]);
        }
    }
    math::fold_lanes(highest, math::higher)
}

/// Values of neighbouring places, in panels.
struct Values {
    /// The first panel, a line at a time.
    first: *const u32,
    /// Words from one panel to the next.
    stride: usize,
    /// KV indices of them.
    places: Range<usize>,
    /// Lane of the first place among those of the stretch.
    lane: usize,
}

/// y += p V over the places that each query sees: those that all queries of a tile see together, the others one by one,
/// before and after.
///
/// # Safety
/// The machine has the instruction set of `K`, which reads `values`; these have a panel for every 16 numbers of a head.
#[inline(always)]
unsafe fn accumulate<K: Kernel>(
    pass: &Pass<'_>,
    view: &View,
    stretch: &Stretch,
    values: &Values,
    queries: &mut Queries<'_>,
) {
    let dim = pass.spec.head_dim;
    for rows in cut::<K>(stretch.part.clone()) {
        if stretch.whole {
            // SAFETY: handed on.
            unsafe { add::<K>(dim, rows, values.places.clone(), values, queries) };
            continue;
        }
        let mut common = values.places.clone();
        for query in rows.clone() {
            common = view.seen(query, &common);
        }
        // SAFETY: handed on; what is seen of the places lies within them.
        unsafe {
            if common.is_empty() {
                for query in rows {
                    add::<K>(dim, query..query + 1, view.seen(query, &values.places), values, queries);
                }
                continue;
            }
            for query in rows.clone() {
                let before = view.seen(query, &values.places).start..common.start;
                add::<K>(dim, query..query + 1, before, values, queries);
            }
            add::<K>(dim, rows.clone(), common.clone(), values, queries);
            for query in rows {
                let after = common.end..view.seen(query, &values.places).end;
                add::<K>(dim, query..query + 1, after, values, queries);
            }
        }
    }
}

/// y += p V of a few queries over `places`.
///
/// # Safety
/// As [`accumulate`], with at most `K::ROWS` queries, and places of `values`.
#[inline(always)]
unsafe fn add<K: Kernel>(
    dim: usize,
    rows: Range<usize>,
    places: Range<usize>,
    values: &Values,
    queries: &mut Queries<'_>,
) {
    if places.is_empty() {
        return;
    }
    let panels = dim.div_ceil(PANEL);
    let together = K::panels(rows.len());
    let mut operands = Tile {
        x: [std::ptr::null(); MAX_ROWS],
        w: [std::ptr::null(); MAX_PANELS],
        k: places.start - values.places.start..places.end - values.places.start,
        y: [std::ptr::null_mut(); MAX_ROWS],
        width: 0,
        store: Store::Continue,
    };
    for (i, query) in rows.clone().enumerate() {
        operands.x[i] = queries.scores[query].as_flattened()[values.lane..].as_ptr().cast();
    }
    for first in (0..panels).step_by(together) {
        let count = together.min(panels - first);
        for panel in 0..count {
            operands.w[panel] = values.first.wrapping_add((first + panel) * values.stride);
        }
        for (i, query) in rows.clone().enumerate() {
            operands.y[i] = queries.y[query * queries.width + first * PANEL..].as_mut_ptr();
        }
        operands.width = (dim - first * PANEL).min(count * PANEL);
        // SAFETY: the weights of a query are as many as the places of a stretch, y has whole panels; the caller answers
        // for the values and the instruction set.
        unsafe { K::tile(rows.len(), count, &operands) };
    }
}
