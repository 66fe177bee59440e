//! What a row's input to a projection is, x' = InputRotate(InputScale(x)), and the base's product with it.

use crate::delta::rows::StepRows;
use crate::delta::sites::InputSites;
use crate::ops::Backend;

/// Semantics: y = Wx', where a row has an x' of its own for each input of the stack. False, and nothing done, if none of the
/// rows has any but x.
///
/// Where projections of a stack have inputs of their own, all rows go through one projection after the other: each weight is
/// read once and each row multiplied once, as by the stack, and a row has the bits that the stack gives.
pub(crate) fn multiply<B: Backend>(
    on: &StepRows<'_, B>,
    inputs: &[InputSites],
    x: &B::Buffer,
    weight: &B::Weight,
    changed: &mut B::Buffer,
    y: &mut B::Buffer,
) -> bool {
    let StepRows { backend, step, rows, .. } = *on;
    if !inputs.iter().any(|sites| on.held(sites.scale).or(on.held(sites.rotate)).is_some()) {
        return false;
    }
    if let [sites] = inputs {
        backend.gemm(step, rows, change(on, sites, x, changed), weight, y);
        return true;
    }
    for (segment, sites) in inputs.iter().enumerate() {
        backend.gemm_segment(step, rows, change(on, sites, x, changed), weight, segment, y);
    }
    true
}

/// Semantics: x' of every row, in `changed` where any of them is not x itself.
fn change<'x, B: Backend>(
    on: &StepRows<'_, B>,
    sites: &InputSites,
    x: &'x B::Buffer,
    changed: &'x mut B::Buffer,
) -> &'x B::Buffer {
    let StepRows { backend, step, rows, .. } = *on;
    match (on.held(sites.scale), on.held(sites.rotate)) {
        (None, None) => return x,
        (Some(scales), None) => backend.scale_input(step, rows, scales, x, changed),
        (scales, Some(rotations)) => backend.rotate_input(step, rows, scales, rotations, x, changed),
    }
    changed
}
