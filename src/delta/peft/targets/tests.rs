//! What PEFT 0.21's `check_target_module_exists` and `get_pattern_key` say, run on the same paths.

use super::*;
use crate::delta::layout::{LayerSite, Site};

const LINEARS: [(&str, LayerSite); 7] = [
    ("self_attn.q_proj", LayerSite::Q),
    ("self_attn.k_proj", LayerSite::K),
    ("self_attn.v_proj", LayerSite::V),
    ("self_attn.o_proj", LayerSite::O),
    ("mlp.gate_proj", LayerSite::Gate),
    ("mlp.up_proj", LayerSite::Up),
    ("mlp.down_proj", LayerSite::Down),
];

/// Three layers and a head, each with a short name: `0q`, `2d`, `lm_head`.
fn modules() -> Vec<(String, Module)> {
    let module = |path: String, site, kind| Module {
        weight: format!("{path}.weight"),
        path,
        site,
        kind,
        input: 8,
        output: 8,
        bias: false,
    };
    let mut modules = Vec::new();
    for layer in 0..3 {
        for (name, part) in LINEARS {
            let path = format!("model.layers.{layer}.{name}");
            let short = format!("{layer}{}", &name[name.find('.').unwrap() + 1..][..1]);
            modules.push((short, module(path, Site::Layer(layer, part), ModuleKind::Linear)));
        }
    }
    modules.push(("lm_head".to_owned(), module("lm_head".to_owned(), Site::LmHead, ModuleKind::Linear)));
    modules
}

fn hits(config: &str) -> Result<String, DeltaError> {
    let targets = Targets::read_with_layers(&Fields::parse(config.as_bytes())?, None)?;
    let mut hits = Vec::new();
    for (short, module) in modules() {
        if targets.contain(&module, &module.path)? {
            hits.push(short);
        }
    }
    Ok(hits.join(" "))
}

#[test]
fn targets_are_the_ones_peft_finds() {
    let cases = [
        (r#"{"target_modules": ["q_proj"]}"#, "0q 1q 2q"),
        (r#"{"target_modules": ["proj"]}"#, ""),
        (r#"{"target_modules": ["self_attn.q_proj", "lm_head"]}"#, "0q 1q 2q lm_head"),
        (r#"{"target_modules": ["model.layers.1.mlp.up_proj"]}"#, "1u"),
        (r#"{"target_modules": "q_proj"}"#, ""),
        (r#"{"target_modules": ".*\\.q_proj"}"#, "0q 1q 2q"),
        (r#"{"target_modules": ".*(q|v)_proj"}"#, "0q 0v 1q 1v 2q 2v"),
        (r#"{"target_modules": "q_proj|.*up_proj"}"#, "0u 1u 2u"),
        (r#"{"target_modules": ".*\\.1\\..*"}"#, "1q 1k 1v 1o 1g 1u 1d"),
        (r#"{"target_modules": "model\\.layers\\.(?!0\\.)\\d+\\.self_attn\\.(q|k)_proj"}"#, "1q 1k 2q 2k"),
        (r#"{"target_modules": "(?i).*Q_PROJ"}"#, "0q 1q 2q"),
        (r#"{"target_modules": ".*(?P<x>[qv])_proj$"}"#, "0q 0v 1q 1v 2q 2v"),
        (r#"{"target_modules": "^model.*\\.down_proj\\Z"}"#, "0d 1d 2d"),
        (r#"{"target_modules": "lm_head"}"#, "lm_head"),
        (r#"{"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]}"#, "0q 1q 2q"),
        (r#"{"target_modules": ["q_proj", "v_proj"], "exclude_modules": ".*\\.0\\..*"}"#, "1q 1v 2q 2v"),
        (
            r#"{"target_modules": ".*_proj", "exclude_modules": ["mlp.up_proj", "model.layers.2.self_attn.q_proj"]}"#,
            "0q 0k 0v 0o 0g 0d 1q 1k 1v 1o 1g 1d 2k 2v 2o 2g 2d",
        ),
        (r#"{"target_modules": ["q_proj"], "exclude_modules": "q_proj"}"#, "0q 1q 2q"),
        (r#"{"target_modules": ["q_proj"], "exclude_modules": []}"#, "0q 1q 2q"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": 1}"#, "1q"),
        (r#"{"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]}"#, "0q 0u 2q 2u"),
        // A full path is targeted in any layer, and the head has none.
        (r#"{"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0]}"#, "0q lm_head"),
        (r#"{"target_modules": ["model.layers.2.self_attn.q_proj", "v_proj"], "layers_to_transform": [0]}"#, "0v 2q"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": []}"#, "0q 1q 2q"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [7]}"#, ""),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}"#, "0q"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["blocks", "layers"]}"#, "0q"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "blocks"}"#, ""),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "h|layers"}"#, ""),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "(h|layers)"}"#, "1q"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ""}"#, "1q"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["model.layers"]}"#, "1q"),
        (r#"{"target_modules": "all-linear", "exclude_modules": ".*self_attn.*"}"#, "0g 0u 0d 1g 1u 1d 2g 2u 2d"),
        (r#"{"target_modules": "All-Linear", "exclude_modules": ".*mlp.*"}"#, "0q 0k 0v 0o 1q 1k 1v 1o 2q 2k 2v 2o"),
    ];
    for (config, expected) in cases {
        assert_eq!(hits(config).unwrap(), expected, "{config}");
    }
}

#[test]
fn what_peft_cannot_load_is_refused() {
    let cases = [
        (r#"{"target_modules": ".*", "layers_to_transform": [0]}"#, "layers_to_transform"),
        (r#"{"target_modules": "all-linear", "layers_to_transform": 0}"#, "layers_to_transform"),
        (r#"{"target_modules": ["q_proj"], "layers_pattern": "layers"}"#, "layers_pattern"),
        (r#"{"target_modules": null}"#, "target_modules"),
        (r#"{}"#, "target_modules"),
        (r#"{"target_modules": 5}"#, "target_modules"),
        (r#"{"target_modules": ["q_proj", 5]}"#, "target_modules"),
        (r#"{"target_modules": ["q_proj"], "exclude_modules": {"a": 1}}"#, "exclude_modules"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [-1]}"#, "layers_to_transform"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": "0"}"#, "layers_to_transform"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": [0.5]}"#, "layers_to_transform"),
        (r#"{"target_modules": "(q_proj"}"#, "target_modules"),
        (r#"{"target_modules": ["q_proj"], "exclude_modules": "[z-a]"}"#, "exclude_modules"),
        (r#"{"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "("}"#, "layers_pattern"),
    ];
    for (config, field) in cases {
        let error = hits(config).unwrap_err();
        assert!(error.to_string().contains(&format!("`{field}`")), "{config}: {error}");
    }
}

#[test]
fn an_expression_cannot_take_the_time_of_others() {
    // Backtracks exponentially: `(a+)+` with a look-around, so that it is not run by an automaton.
    let slow = r#"{"target_modules": "(?=m)((([a-z.0-9_]+)+)+)+!"}"#;
    let error = hits(slow).unwrap_err();
    assert!(matches!(error, DeltaError::Regex { ref field, .. } if field == "target_modules"), "{error}");
    let long = format!(r#"{{"target_modules": "{}"}}"#, "a".repeat(MAX_EXPRESSION + 1));
    assert!(matches!(hits(&long), Err(DeltaError::Regex { .. })));
    let large = r#"{"target_modules": "((a{1000}){1000}){1000}"}"#;
    assert!(matches!(hits(large), Err(DeltaError::Regex { .. })));
}

#[test]
fn there_is_a_limit_to_what_is_held_against_every_module() {
    let table = |entries: usize, key: fn(usize) -> String| {
        let entries: Vec<_> = (0..entries).map(|at| format!("{:?}: 4", key(at))).collect();
        let config = format!("{{\"rank_pattern\": {{{}}}}}", entries.join(", "));
        PatternTable::read(&Fields::parse(config.as_bytes()).unwrap(), "rank_pattern").map(|_| ())
    };
    let name = |at: usize| format!("model.layers.{at}.mlp.up_proj");
    let expression = |at: usize| format!("layers.{at}.(q|v)_proj");
    table(16_384, name).unwrap();
    assert!(matches!(table(16_385, name), Err(DeltaError::BadField { .. })));
    table(MAX_EXPRESSIONS, expression).unwrap();
    assert!(matches!(table(MAX_EXPRESSIONS + 1, expression), Err(DeltaError::Regex { .. })));
    let list = |field: &str, item: &str, count: usize| {
        hits(&format!("{{\"target_modules\": [\"q_proj\"], {field}: [{}]}}", vec![item; count].join(", ")))
    };
    assert!(matches!(list("\"exclude_modules\"", "\"a\"", 16_385), Err(DeltaError::BadField { .. })));
    assert!(matches!(list("\"layers_to_transform\"", "0", 16_385), Err(DeltaError::BadField { .. })));
    let patterns = list("\"layers_to_transform\": 0, \"layers_pattern\"", "\"layers\"", MAX_EXPRESSIONS + 1);
    assert!(matches!(patterns, Err(DeltaError::Regex { .. })));
}

#[test]
fn the_first_key_of_a_pattern_table_wins() {
    let lookup = |keys: &[&str], path: &str| {
        let entries: Vec<_> = keys.iter().enumerate().map(|(at, key)| format!("{key:?}: {at}")).collect();
        let config = format!("{{\"rank_pattern\": {{{}}}}}", entries.join(", "));
        let table = PatternTable::read_whole(&Fields::parse(config.as_bytes()).unwrap(), "rank_pattern").unwrap();
        table.lookup(path).unwrap().map(|found| keys[found as usize].to_owned())
    };
    let q0 = "model.layers.0.self_attn.q_proj";
    let q1 = "model.layers.1.self_attn.q_proj";
    let found = |key: &str| Some(key.to_owned());
    assert_eq!(lookup(&["q_proj"], q0), found("q_proj"));
    assert_eq!(lookup(&["proj"], q0), None);
    assert_eq!(lookup(&["self.attn.q_proj"], q0), found("self.attn.q_proj"), "a dot is any character");
    assert_eq!(lookup(&["a.model.layers.0.self_attn.q_proj", ""], q0), None);
    assert_eq!(lookup(&["self_attn"], q0), None);
    assert_eq!(lookup(&[q0, "q_proj"], q0), found(q0));
    assert_eq!(lookup(&[q0, "q_proj"], q1), found("q_proj"));
    assert_eq!(lookup(&["q_proj", q0], q0), found("q_proj"));
    assert_eq!(
        lookup(&[r"layers\.\d+\.mlp\.down_proj"], "model.layers.2.mlp.down_proj"),
        found(r"layers\.\d+\.mlp\.down_proj")
    );
    assert_eq!(lookup(&["0.self_attn.q_proj"], q0), found("0.self_attn.q_proj"));
    assert_eq!(lookup(&["^model.layers.0.self_attn.q_proj"], q0), found("^model.layers.0.self_attn.q_proj"));
    assert_eq!(lookup(&["q_proj|v_proj"], "model.layers.1.self_attn.v_proj"), found("q_proj|v_proj"));
    assert_eq!(lookup(&["[qk]_proj"], "model.layers.1.self_attn.k_proj"), found("[qk]_proj"));
    for bad in [r#"{"rank_pattern": {"q": 1.5}}"#, r#"{"rank_pattern": {"q": -1}}"#, r#"{"rank_pattern": {"q": "4"}}"#]
    {
        let read = PatternTable::read_whole(&Fields::parse(bad.as_bytes()).unwrap(), "rank_pattern");
        assert!(matches!(read.err(), Some(DeltaError::BadField { .. })), "{bad}");
    }
}

#[test]
fn feedforward_lists_match_any_tail() {
    let contain = |value: &str, short: &str| {
        let config = format!("{{\"feedforward_modules\": {value}}}");
        let feedforward = Feedforward::read(&Fields::parse(config.as_bytes()).unwrap(), Some(&["down_proj"])).unwrap();
        let (_, module) = modules().into_iter().find(|(name, _)| name == short).unwrap();
        feedforward.contain(&module.path).unwrap()
    };
    assert!(contain(r#"["down_proj"]"#, "0d"));
    assert!(contain(r#"["_proj"]"#, "0q"), "PEFT compares tails without a dot here");
    assert!(!contain(r#"["down_proj"]"#, "0u"));
    assert!(contain(r#"".*\\.mlp\\..*""#, "1u"));
    assert!(!contain(r#""mlp""#, "1u"));
    assert!(!contain("[]", "1u"));
    assert!(contain("null", "1d") && !contain("null", "1u"), "PEFT's default for the base");
}
