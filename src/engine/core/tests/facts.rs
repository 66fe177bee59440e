//! What the observer is told.

use super::*;

#[test]
fn a_step_says_how_many_rows_had_which_op_classes() {
    let bench = bench();
    let binding = |active_from| AdapterBinding {
        version: AdapterVersion([1; 32]),
        slot: AdapterSlot(1),
        virtual_tokens: None,
        active_from,
        kv_from: active_from,
        base_layers: 0,
    };
    for (adapter, of_class) in [(None, 0), (Some(binding(0)), 3), (Some(binding(2)), 1)] {
        let mut events = bench.engine.handle.submit(EngineRequest { adapter, ..request(1, 1) }, None).unwrap();
        bench.orders.send(Order::Tokens).unwrap();
        while events.blocking_recv().is_some() {}
        let step = bench.facts.iter().find_map(|fact| match fact {
            EngineFact::Step(step) => Some(step),
            EngineFact::Gauges(_) | EngineFact::Failed(_) => None,
        });
        let rows = step.unwrap().rows_by_class;
        assert_eq!(rows.of(OpClass::LowRank), of_class, "rows of the prompt that the adapter works on");
        assert_eq!(rows.of(OpClass::Gain), 0);
    }
}

#[test]
fn gauges_follow_those_who_leave_while_no_step_runs() {
    let bench = bench();
    let first = bench.engine.handle.submit(request(1, 9), None).unwrap();
    bench.batches.recv().unwrap();
    bench.orders.send(Order::Tokens).unwrap();
    bench.batches.recv().unwrap();
    // Its client leaves during a step, which brings a last result for it.
    drop(first);
    bench.engine.handle.abort(RequestId(1));
    bench.orders.send(Order::Tokens).unwrap();
    let last = loop {
        if let EngineFact::Gauges(gauges) = bench.facts.recv().unwrap() {
            break gauges;
        }
    };
    assert_eq!((last.running, last.waiting, last.kv_blocks_used, last.kv_blocks_total), (0, 0, 0, 64));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let stats = runtime.block_on(bench.engine.handle.stats()).unwrap();
    assert_eq!((stats.running, stats.kv_blocks_used), (0, 0));
}
