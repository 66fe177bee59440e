//! Sizes that grids are made of, and shared bytes of blocks: `kernels/abi.cuh` has the same, and kernels assert what they make
//! of them.

/// Declares them. A test compares them with the header.
macro_rules! sizes {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr;)*) => {
        $(
            $(#[$doc])*
            pub(super) const $name: $type = $value;
        )*

        #[cfg(test)]
        fn declared() -> std::collections::BTreeMap<&'static str, String> {
            std::collections::BTreeMap::from([$((stringify!($name), tests::Declared::in_c(&$name))),*])
        }
    };
}

/// What a block of a GEMM takes at once, and its shared bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GemmBlock {
    pub(super) rows: usize,
    pub(super) outs: usize,
    pub(super) shared: usize,
}

const fn gemm_block(rows: usize, outs: usize, shared: usize) -> GemmBlock {
    GemmBlock { rows, outs, shared }
}

sizes! {
    /// Most rows of a [`super::abi::Group`].
    ROWS_OF_GROUP: usize = 64;
    /// Most rows of a [`super::abi::AttentionItem`].
    ROWS_OF_ITEM: usize = 64;
    /// Inputs that one plane of a shrink sums over.
    PLANE_INPUTS: usize = 1024;
    /// KV indices that one split of attention walks.
    SPLIT_PLACES: usize = 256;

    GEMM_ROWS8: GemmBlock = gemm_block(8, 16, 49_152);
    GEMM_ROWS16: GemmBlock = gemm_block(16, 32, 98_304);
    GEMM_ROWS32: GemmBlock = gemm_block(32, 16, 98_304);
    GEMM_ROWS64: GemmBlock = gemm_block(64, 32, 196_608);
    GEMM_TILES64: GemmBlock = gemm_block(64, 128, 73_728);
    GEMM_TILES: GemmBlock = gemm_block(128, 128, 98_304);
    GEMM_F32: GemmBlock = gemm_block(64, 64, 8704);
    /// Of an expert: 16 outputs of gate and as many of up, or 32 of down.
    EXPERTS_ROWS: GemmBlock = gemm_block(32, 32, 98_304);

    /// Ranks of an item of few rows.
    SHRINK_RANKS: usize = 16;
    SHRINK_SHARED: usize = 69_680;
    SHRINK_SHARED_F32: usize = 12_848;
    /// Columns that blocks share y by.
    EXPAND_COLUMNS: usize = 128;
    EXPAND_SHARED: usize = 41_088;
    EXPAND_SHARED_F32: usize = 8704;

    NORM_SHARED: usize = 32;

    /// Inputs of rows on their way; no block of a rotation has more.
    ROTATE_SHARED: usize = 32_768;

    /// Numbers of a head that a warp keeps.
    ATTENTION_PART: usize = 64;
    /// Rows and heads that a warp takes together.
    ATTENTION_PAIRS: usize = 16;
    /// Most warps of a block.
    ATTENTION_WARPS: usize = 8;
    /// Of each warp, where a head has several parts.
    ATTENTION_WARP_SHARED: usize = 4096;
    /// Rows and heads that a block takes together where there are many.
    PREFILL_PAIRS: usize = 128;
    /// Most numbers of a head there.
    PREFILL_HEAD_DIM: usize = 128;
    /// For each number of a head.
    PREFILL_NUMBER_SHARED: usize = 384;

    /// Ids of a block of sums.
    SAMPLE_BLOCK: usize = 512;
    /// Of each block of sums.
    SAMPLE_BLOCK_SHARED: usize = 16;
    SAMPLE_SHARED: usize = 24_976;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{GemmBlock, declared};

    /// A value as C++ writes it.
    pub(super) trait Declared {
        fn in_c(&self) -> String;
    }

    impl Declared for usize {
        fn in_c(&self) -> String {
            self.to_string()
        }
    }

    impl Declared for GemmBlock {
        fn in_c(&self) -> String {
            format!("{{{}, {}, {}}}", self.rows, self.outs, self.shared)
        }
    }

    #[test]
    fn the_header_has_the_same_sizes() {
        let constant = |line: &'static str| {
            let (declaration, rest) = line.strip_prefix("constexpr ")?.split_once(" = ")?;
            Some((declaration.rsplit(' ').next()?, rest.split(';').next()?.to_owned()))
        };
        let header: BTreeMap<_, _> = include_str!("../../../kernels/abi.cuh").lines().filter_map(constant).collect();
        assert_eq!(declared(), header);
    }
}
