//! What the kernels of experts take: the part of `kernels/abi.cuh` that is theirs.

use super::abi::{Group, Pair, RowSet, RowsView, SiteView};
use super::plain::{Address, Plain, Untyped, plain};

plain! {
    /// Where the weights of one expert lie.
    struct ExpertWeights {
        gate_up: Address<Untyped>,
        down: Address<Untyped>,
    }

    struct ExpertsArgs {
        rows: Address<RowSet>,
        logits: RowsView,
        x: RowsView,
        y: RowsView,
        experts: Address<ExpertWeights>,
        chosen: Address<u32>,
        weights: Address<f32>,
        pairs: Address<u32>,
        order: Address<u32>,
        groups: Address<u32>,
        group: Address<Group>,
        activated: RowsView,
        outputs: RowsView,
        each: u32,
        rows_of_group: u32,
        gate_up_stride: u32,
        down_stride: u32,
        activation: u32,
        renormalise: u32,
    }

    /// What an adapter has for an expert that a row chose.
    struct ExpertPairs {
        first: Address<Pair>,
        count: u32,
        pad: u32,
    }

    /// Pairs of rows of one adapter with one expert.
    struct ExpertGroup {
        first: u32,
        len: u32,
        slot: u32,
        expert: u32,
    }

    struct ExpertDeltasArgs {
        experts: ExpertsArgs,
        gate_up: SiteView,
        down: SiteView,
        of_gate_up: Address<ExpertPairs>,
        of_down: Address<ExpertPairs>,
        list: Address<u32>,
        group: Address<ExpertGroup>,
        v: Address<Untyped>,
        v_stride: u32,
        is_down: u32,
    }
}
