//! Who runs in the next step: continuous batching, chunked prefill, preemption. Decides; never sees a tensor, never waits.
