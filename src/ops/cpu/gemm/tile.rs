//! What a register tile is: the seam between the loops over rows, panels and k and the instruction sets.
#![allow(unsafe_code)]

use std::ops::Range;

use super::super::pack::PANEL;

/// Most rows of a tile on any instruction set.
pub(in crate::ops::cpu) const MAX_ROWS: usize = 8;

/// Most panels side by side in a tile on any instruction set.
pub(in crate::ops::cpu) const MAX_PANELS: usize = 8;

/// Words of a line.
pub(in crate::ops::cpu) const WORDS: usize = PANEL;

/// What happens to the sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::ops::cpu) enum Store {
    /// `y = sum`.
    Overwrite,
    /// The accumulators start at y, `y = sum`.
    Continue,
    /// `y = y + s * sum`.
    AddScaled(f32),
}

/// Operands of one register tile: some rows of x against some neighbouring panels, over a range of k.
pub(in crate::ops::cpu) struct Tile {
    /// k = 0 of each row.
    pub(in crate::ops::cpu) x: [*const u32; MAX_ROWS],
    /// k = 0 of each panel, a line at a time.
    pub(in crate::ops::cpu) w: [*const u32; MAX_PANELS],
    /// First and end k. Only attention starts at an odd k.
    pub(in crate::ops::cpu) k: Range<usize>,
    /// First column of each row of y.
    pub(in crate::ops::cpu) y: [*mut f32; MAX_ROWS],
    /// Columns of y over all panels of the tile; only the last panel may be ragged.
    pub(in crate::ops::cpu) width: usize,
    pub(in crate::ops::cpu) store: Store,
}

/// The weights of the block that comes next. Each tile over the panels of a block asks memory for its share of them, so
/// that memory is busy all the time and not only while the first tile reads.
pub(in crate::ops::cpu) struct Ahead {
    /// Where the share begins in each panel.
    pub(in crate::ops::cpu) w: [*const u8; MAX_PANELS],
    /// How far a tile goes on in it with every line of its own, in bytes.
    pub(in crate::ops::cpu) step: usize,
}

/// The register tiles of one instruction set and weight type.
pub(in crate::ops::cpu) trait Kernel {
    /// Most rows of a tile.
    const ROWS: usize;
    /// Most rows of a block, between whose tiles panels are still in a near cache.
    const ROW_BLOCK: usize;
    /// k of a block, even.
    const K_BLOCK: usize;

    /// Panels side by side in a tile of `rows` rows, so that enough sums are in flight.
    fn panels(rows: usize) -> usize;

    /// The same where several tiles, of `rows` rows at most, take turns at the panels.
    fn shared_panels(rows: usize) -> usize {
        Self::panels(rows)
    }

    /// Compute one tile.
    ///
    /// # Safety
    /// The machine has the instruction set. `1 <= rows <= ROWS`, `1 <= panels <= Self::panels(rows)`; for each of the
    /// first `rows` rows, x is readable over k (two k to a word where x is given in pairs), y is writable
    /// for `width` columns and no other thread touches them; w is readable over k for every panel;
    /// `(panels - 1) * 16 < width <= panels * 16`.
    unsafe fn tile(rows: usize, panels: usize, tile: &Tile);

    /// Compute one of several tiles that take turns at the panels.
    ///
    /// # Safety
    /// As [`Kernel::tile`], with `panels <= Self::shared_panels(rows)` and an even first k. `ahead` may point anywhere.
    unsafe fn shared_tile(rows: usize, panels: usize, tile: &Tile, ahead: &Ahead) {
        let _ = ahead;
        // SAFETY: handed on.
        unsafe { Self::tile(rows, panels, tile) };
    }
}

/// Calls `$tile::<rows, panels>` for run-time numbers of rows and panels.
macro_rules! by_shape {
    ($tile:ident, $rows:expr, $panels:expr, $operands:expr, [$(($r:literal, $p:literal)),* $(,)?]) => {
        match ($rows, $panels) {
            $(($r, $p) => $tile::<BF16, $r, $p>($operands),)*
            (rows, panels) => unreachable!("no tile of {rows} rows and {panels} panels"),
        }
    };
}
pub(super) use by_shape;
