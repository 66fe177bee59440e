//! What a row of each op class costs in a decode step, beside the base's.

use polydelta::delta::{
    BaseLayout, Bias, Bottleneck, DeltaOp, DeltaProgram, Dense, EmbeddingLowRank, Gain, InputRotate, InputScale,
    LayerSite, Module, ModuleKind, OutputRotate, OutputScale, RotateStage, Site, Sparse,
};
use polydelta::model::base_layout;
use polydelta::ops::{Backend, Blend, HostSparse, NonLinearity, SparseEntry, Wiring};
use polydelta::types::AdapterSlot;

use super::support::Failure;
use super::support::adapters::{lora, matrix, on_linears, program};
use super::support::model::Shape;
use super::support::step::{Model, backend, decode};
use super::timing::{median, ratio, take_turns};

/// Rows of a step, each with an adapter of its own.
const BATCH: usize = 8;
/// Tokens that each sequence has in the cache.
const POSITION: usize = 64;
/// Inputs of a block of a rotation, and outputs that turn together.
const BLOCK: usize = 32;
/// A bottleneck's width is the model's over this.
const REDUCTION: usize = 16;
/// Of the classes that are measured.
const CLASSES: usize = 11;

/// Of each class a program on every module that it can be at, all classes' of one seed.
fn programs(layout: &BaseLayout, rank: usize, seed: u64) -> [(&'static str, DeltaProgram); CLASSES] {
    let numbers = |len: usize| matrix(seed, 1, len).to_f32();
    let factors = |len: usize| numbers(len).into_iter().map(|number| 1.0 + number).collect::<Vec<_>>();
    let rotate = |module: &Module| {
        let blocks = module.input / BLOCK;
        let stage = RotateStage { numbers: numbers(blocks * BLOCK * BLOCK), blocks, size: BLOCK, interleaved: 1 };
        InputRotate { stages: vec![stage] }.into()
    };
    let norm = |module: &&Module| module.kind == ModuleKind::Norm;
    let gain = |module: &Module| (module.site, Gain { g: factors(module.output) }.into());
    let embedding = EmbeddingLowRank {
        a: matrix(seed, rank, layout.vocab_size),
        b: matrix(seed, layout.hidden_size, rank),
        scaling: 2.0,
    };
    [
        ("LowRank", lora(layout, rank, seed)),
        ("Sparse", on_linears(layout, |module| sparse(seed, rank, module))),
        ("Dense", on_linears(layout, |module| dense(seed, module))),
        (
            "OutputScale",
            on_linears(layout, |module| OutputScale { g: factors(module.output), after_bias: true }.into()),
        ),
        ("InputScale", on_linears(layout, |module| InputScale { g: factors(module.input) }.into())),
        (
            "OutputRotate",
            on_linears(layout, |module| OutputRotate { c: factors(2 * module.output), group: BLOCK }.into()),
        ),
        ("InputRotate", on_linears(layout, rotate)),
        ("Bias", on_linears(layout, |module| Bias { b: numbers(module.output) }.into())),
        ("Bottleneck", program(bottlenecks(layout, seed))),
        ("Gain", program(layout.modules().filter(norm).map(gain).collect())),
        ("EmbeddingLowRank", program(vec![(Site::Embed, embedding.into())])),
    ]
}

/// As many numbers as a LoRA of that rank has, spread evenly.
fn sparse(seed: u64, rank: usize, module: &Module) -> DeltaOp {
    let (rows, cols) = (module.output, module.input);
    let each = (rank * (rows + cols) / rows).min(cols);
    let starts = (0..=rows).map(|row| (row * each) as u32).collect();
    let column = |at: usize| (at % each * (cols / each)) as u32;
    let numbers = matrix(seed, rows, each).to_f32().into_iter().enumerate();
    let entries = numbers.map(|(at, value)| SparseEntry { column: column(at), value }).collect();
    Sparse { matrix: HostSparse { cols, starts, entries } }.into()
}

fn dense(seed: u64, module: &Module) -> DeltaOp {
    Dense { d: matrix(seed, module.output, module.input), scaling: 1.0, replaces: false }.into()
}

fn bottlenecks(layout: &BaseLayout, seed: u64) -> Vec<(Site, DeltaOp)> {
    let (hidden, width) = (layout.hidden_size, layout.hidden_size / REDUCTION);
    let one = |site: Site| {
        let op = Bottleneck {
            wiring: Wiring { reads: Blend::H, stream: Blend::X, branch: Blend::H },
            norm_before: None,
            down: matrix(seed, width, hidden),
            down_bias: vec![0.0; width],
            non_linearity: NonLinearity::Relu,
            up: matrix(seed, hidden, width),
            up_bias: vec![0.0; hidden],
            scaling: 1.0,
            norm_after: None,
        };
        (site, op.into())
    };
    let of_layer = |layer| [LayerSite::AfterAttention, LayerSite::AfterMlp].map(|part| one(Site::Layer(layer, part)));
    (0..layout.layers as u32).flat_map(of_layer).collect()
}

/// Steps of eight rows, each with an adapter of its own, class by class beside those of the base.
pub(crate) fn report(shape: Shape, threads: usize, rank: usize, rounds: usize) -> Result<(), Failure> {
    let backend = backend(threads)?;
    let layout = base_layout(&shape.spec()?);
    let of_seeds = (1..=BATCH as u64).map(|seed| programs(&layout, rank, seed)).collect::<Vec<_>>();
    let names = of_seeds[0].each_ref().map(|(name, _)| *name);
    let installed = of_seeds.into_iter().flatten().map(|(_, program)| program).collect();
    let mut model = Model::with(shape, &backend, BATCH, installed)?;
    // Adapter by adapter all classes lie side by side.
    let slot = |class: usize, row: usize| Some(AdapterSlot((row * CLASSES + class) as u32));
    let slots = |class: usize| (0..BATCH).map(|row| slot(class, row)).collect::<Vec<_>>();
    let mut inputs = vec![decode(&[None; BATCH], POSITION)];
    inputs.extend((0..CLASSES).map(|class| decode(&slots(class), POSITION)));
    let times: [Vec<f64>; CLASSES + 1] = take_turns(rounds, |index| model.run(&inputs[index]).map(drop))?;
    let (base, classes) = (&times[0], &times[1..]);
    let info = backend.info();
    println!(
        "\n{}, bf16, {threads} threads, {}: a decode step of {BATCH} rows of {BATCH} adapters",
        shape.name(),
        info.isa
    );
    println!("  base                 {:.2} ms", 1e3 * median(base.clone()));
    for (name, times) in names.iter().zip(classes) {
        let more: Vec<f64> = base.iter().zip(times).map(|(base, with)| 1e6 * (with - base) / BATCH as f64).collect();
        println!("  {name:<20} {:.3} of it, {:.0} us more for each row", ratio(times, base), median(more));
    }
    Ok(())
}
