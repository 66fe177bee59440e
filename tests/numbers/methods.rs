//! The table of methods in the README says what is true: every kind, its group and the op classes that it compiles to.

use std::collections::{BTreeMap, BTreeSet};

use polydelta::delta::SERVED_KINDS;
use polydelta::types::OpClass;

use crate::fixture::{ADAPTERHUB, Case, FAMILIES, Family, VOCABULARY};
use crate::golden::adapters;
use crate::heads::{READ, texts};

/// Methods of which every family has golden adapters: those that most people use, and one for each op class.
const CORE: [&str; 11] =
    ["LoRA", "DoRA", "IA3", "LN tuning", "prompt tuning", "prefix tuning", "OFT", "SHiRA", "RoAd", "C3A", "BEFT"];

/// A row of the table.
struct Row {
    kinds: Vec<String>,
    group: String,
    classes: BTreeSet<String>,
}

/// The rows between the table's head and the next blank line.
fn rows() -> Vec<Row> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let table = readme.lines().skip_while(|line| !line.starts_with("| method |")).skip(2);
    let names = |cell: &str| cell.split(", ").map(|name| name.trim_matches('`').to_owned()).collect::<Vec<_>>();
    table
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            Row { kinds: names(cells[0]), group: cells[1].to_owned(), classes: names(cells[2]).into_iter().collect() }
        })
        .collect()
}

/// Every kind in the table.
pub(crate) fn kinds() -> BTreeSet<String> {
    rows().into_iter().flat_map(|row| row.kinds).collect()
}

#[test]
fn every_family_has_golden_adapters_of_a_core_set_of_methods() {
    for name in FAMILIES {
        let family = Family::open(name);
        let cases: Vec<&Case> = family.cases.iter().collect();
        let kinds = adapters(&cases).into_iter().map(|adapter| family.compile(&adapter).unwrap().kind);
        let kinds: BTreeSet<String> = kinds.collect();
        let lacking: Vec<&str> = CORE.into_iter().filter(|kind| !kinds.contains(*kind)).collect();
        assert_eq!(lacking, [""; 0], "{name}");
    }
}

#[test]
fn the_readme_has_every_served_kind_with_its_group_and_its_op_classes() {
    let rows = rows();
    let by_kind: BTreeMap<&str, &Row> =
        rows.iter().flat_map(|row| row.kinds.iter().map(move |kind| (kind.as_str(), row))).collect();
    let served: BTreeMap<&str, &str> = SERVED_KINDS.iter().map(|(kind, group)| (*kind, group.as_str())).collect();
    let said: BTreeMap<&str, &str> = by_kind.iter().map(|(kind, row)| (*kind, row.group.as_str())).collect();
    assert_eq!(said, served);

    let mut seen: BTreeMap<String, BTreeSet<OpClass>> = BTreeMap::new();
    for name in FAMILIES.into_iter().chain(ADAPTERHUB).chain(VOCABULARY) {
        let family = Family::open(name);
        let cases: Vec<&Case> = family.cases.iter().collect();
        let by_itself = |adapter: &String| family.mix(adapter).is_none();
        let read = if READ.contains(&name) { texts(&family) } else { Vec::new() };
        let with_heads = read.iter().filter_map(|text| text.adapter.clone());
        for adapter in adapters(&cases).into_iter().filter(by_itself).chain(with_heads) {
            let program = family.compile(&adapter).unwrap();
            assert!(program.group().is_some(), "{name} {adapter}: {} is not announced", program.kind);
            seen.entry(program.kind).or_default().extend(program.ops.iter().map(|(_, op)| op.class()));
        }
    }
    for row in &rows {
        let kinds =
            row.kinds.iter().map(|kind| seen.get(kind).unwrap_or_else(|| panic!("no golden adapter of {kind}")));
        let found: BTreeSet<String> = kinds.flatten().map(|class| class.as_str().to_owned()).collect();
        assert_eq!(found, row.classes, "{:?}", row.kinds);
    }
    let classes: BTreeSet<OpClass> = seen.into_values().flatten().collect();
    assert_eq!(classes, OpClass::ALL.into(), "every class has golden values");
}
