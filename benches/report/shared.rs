//! What a long prompt costs for adapters of the last layers, where the first layers are computed once for all of them.

use polydelta::model::base_layout;
use polydelta::scheduler::SchedulerConfig;
use polydelta::types::{AdapterBinding, EngineRequest, StoppingParams};

use super::engine::{Engine, config, request};
use super::support::Failure;
use super::support::adapters::lora;
use super::support::model::Shape;
use super::support::step::BLOCK_SIZE;
use super::timing::{median, ratio, take_turns};

const ADAPTERS: u32 = 8;
/// Tokens of the prompt.
const PROMPT: u32 = 4000;

/// The first token of one prompt with one adapter of the top quarter of the layers, and with eight of them one after another.
pub(crate) fn report(shape: Shape, threads: usize, rank: usize, rounds: usize) -> Result<(), Failure> {
    let layout = base_layout(&shape.spec()?);
    let base_layers = (layout.layers - layout.layers / 4) as u32;
    let top = |seed| {
        let mut program = lora(&layout, rank, seed);
        program.ops.retain(|(site, _)| layout.layers_before(*site) >= base_layers);
        program
    };
    let blocks = ((ADAPTERS as usize + 1) * PROMPT as usize).div_ceil(BLOCK_SIZE) + 16;
    let config = SchedulerConfig {
        num_blocks: blocks as u32,
        max_model_len: PROMPT + 96,
        prefix_cache: true,
        shared_layers: Some(base_layers),
        ..config()
    };
    let engine = Engine::new(shape, threads, config, (1..=u64::from(ADAPTERS)).map(top).collect())?;
    let mut next = 0;
    let mut prompts = |adapters: u32| {
        // Nothing is found of the rounds before.
        let salt = next;
        for adapter in 0..adapters {
            next += 1;
            engine.answer(vec![of(next, adapter, base_layers, salt)])?;
        }
        Ok(())
    };
    let [one, all] = take_turns(rounds, |index| prompts(if index == 0 { 1 } else { ADAPTERS }))?;
    engine.stop();
    let layers = layout.layers;
    println!("\n{}, bf16, {threads} threads, the engine: a prompt of {PROMPT} tokens", shape.name());
    println!(
        "  adapters of the last {} of {layers} layers, --shared-layers {base_layers}",
        layers as u32 - base_layers
    );
    println!("  first token of one adapter         {:.2} s", median(one.clone()));
    println!("  of 8 adapters, one after another   {:.2} s", median(all.clone()));
    println!("  8 adapters : one                   {:.2}", 1.0 / ratio(&one, &all));
    Ok(())
}

fn of(id: u64, adapter: u32, base_layers: u32, salt: u64) -> EngineRequest {
    let plain = request(id, Some(adapter));
    EngineRequest {
        prompt: (0..PROMPT).map(|at| (salt as u32 * 37 + at * 11) % 4096).collect(),
        adapter: plain.adapter.map(|adapter| AdapterBinding { base_layers, ..adapter }),
        stopping: StoppingParams { max_tokens: 1, min_tokens: 0, stop_token_ids: Vec::new() }.into(),
        tenant_salt: salt.to_le_bytes().into(),
        ..plain
    }
}
