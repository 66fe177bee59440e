//! The kernels that travel in the binary are those of the sources beside them: `tools/kernels/build.py` made the one of
//! the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use polydelta::ops::cuda::ptx::{directive, entries};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::command::root;

/// PTX ISA of CUDA 12.2, which drivers from 535 on take.
const NEWEST_ISA: (u32, u32) = (8, 2);
const REMEDY: &str = "run tools/kernels/build.py and commit what it writes";

/// A source and all it includes, by name. What lies elsewhere is the host's compiler's.
fn files_of(kernels: &Path, source: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut wanted = vec![source.to_owned()];
    while let Some(name) = wanted.pop() {
        if found.contains_key(&name) || name.contains('/') {
            continue;
        }
        let text = fs::read_to_string(kernels.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let includes = text.lines().filter_map(|line| {
            let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
            Some(rest.strip_prefix('"')?.split('"').next()?.to_owned())
        });
        wanted.extend(includes);
        found.insert(name, text.into_bytes());
    }
    found
}

/// As `tools/kernels/sources.py` has it.
fn digest_of(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut sha = Sha256::new();
    for (name, content) in files {
        sha.update(format!("{name}\n{}\n", content.len()));
        sha.update(content);
    }
    hex::encode(sha.finalize())
}

/// Names of the files with an extension, without it.
fn stems(folder: &Path, extension: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let with = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    with.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn isa(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = directive(text, ".version")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What is wrong with the text of one file.
fn problems_of_ptx(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if isa(text).is_none_or(|isa| isa > NEWEST_ISA) {
        problems.push(format!(".version {:?} is above {NEWEST_ISA:?}", directive(text, ".version")));
    }
    if directive(text, ".target") != Some("sm_80") {
        problems.push(format!(".target is {:?}", directive(text, ".target")));
    }
    let entries: Vec<_> = entries(text).collect();
    if entries.is_empty() {
        problems.push("no kernel".to_owned());
    }
    for entry in entries {
        if entry.parameters.len() != 1 {
            problems.push(format!("{} takes {} parameters instead of one struct", entry.name, entry.parameters.len()));
        }
        if entry.static_shared > 0 {
            problems.push(format!("{} declares {} bytes of shared memory", entry.name, entry.static_shared));
        }
    }
    problems
}

fn problems(kernels: &Path) -> Vec<String> {
    let manifest = kernels.join("ptx/digests.json");
    let manifest: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let listed: BTreeSet<String> = manifest["kernels"].as_object().unwrap().keys().cloned().collect();
    let (sources, made) = (stems(kernels, "cu"), stems(&kernels.join("ptx"), "ptx"));
    let mut problems = Vec::new();
    for (what, found) in [("PTX", &made), ("line in digests.json", &listed)] {
        problems.extend(sources.difference(found).map(|name| format!("{name}.cu has no {what}")));
        problems.extend(found.difference(&sources).map(|name| format!("{name} has {what} and no source")));
    }
    for name in sources.intersection(&made).filter(|name| listed.contains(*name)) {
        let entry = &manifest["kernels"][name];
        let files = files_of(kernels, &format!("{name}.cu"));
        let names: Vec<_> = files.keys().cloned().collect();
        if entry["source"] != digest_of(&files) || entry["files"] != json!(names) {
            problems.push(format!("{name}.ptx is stale: {} have changed", names.join(", ")));
        }
        let text = fs::read_to_string(kernels.join(format!("ptx/{name}.ptx"))).unwrap();
        if entry["ptx"] != hex::encode(Sha256::digest(&text)) {
            problems.push(format!("{name}.ptx is not what the compiler wrote"));
        }
        problems.extend(problems_of_ptx(&text).into_iter().map(|problem| format!("{name}.ptx: {problem}")));
    }
    problems
}

#[test]
fn the_ptx_is_that_of_the_sources() {
    let found = problems(&root("kernels"));
    assert!(found.is_empty(), "{REMEDY}:\n{}", found.join("\n"));
}

/// One source with an include, its PTX, and a manifest that fits them.
fn scratch() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path();
    fs::create_dir(kernels.join("ptx")).unwrap();
    let source = "#include \"device.cuh\"\n#include \"../tests/shim.h\"\n";
    fs::write(kernels.join("rows.cu"), source).unwrap();
    fs::write(kernels.join("device.cuh"), "#pragma once\n").unwrap();
    let mut ptx = String::from(".version 8.2\n.target sm_80\n");
    for name in ["add", "copy"] {
        write!(ptx, ".visible .entry {name}(\n.param .align 8 .b8 {name}_param_0[64]\n)\n{{\nret;\n}}\n").unwrap();
    }
    fs::write(kernels.join("ptx/rows.ptx"), ptx).unwrap();
    write_manifest(kernels);
    folder
}

/// As if the compiler had just written what lies there.
fn write_manifest(kernels: &Path) {
    let files = files_of(kernels, "rows.cu");
    let ptx = hex::encode(Sha256::digest(fs::read(kernels.join("ptx/rows.ptx")).unwrap()));
    let entry = json!({ "files": files.keys().collect::<Vec<_>>(), "source": digest_of(&files), "ptx": ptx });
    let manifest = json!({ "kernels": { "rows": entry } });
    fs::write(kernels.join("ptx/digests.json"), manifest.to_string()).unwrap();
}

#[test]
fn ptx_that_does_not_fit_its_source_is_found() {
    let after = |change: &dyn Fn(&Path)| {
        let folder = scratch();
        change(folder.path());
        problems(folder.path())
    };
    let append = |name: &'static str, text: &'static str| {
        move |kernels: &Path| {
            let before = fs::read_to_string(kernels.join(name)).unwrap_or_default();
            fs::write(kernels.join(name), before + text).unwrap();
        }
    };
    assert_eq!(after(&|_| ()), [""; 0]);
    assert_eq!(after(&append("rows.cu", "//")), ["rows.ptx is stale: device.cuh, rows.cu have changed"]);
    assert_eq!(after(&append("device.cuh", "//")), ["rows.ptx is stale: device.cuh, rows.cu have changed"]);
    assert_eq!(after(&append("ptx/rows.ptx", "//")), ["rows.ptx is not what the compiler wrote"]);
    let new = ["gemm.cu has no PTX", "gemm.cu has no line in digests.json"];
    assert_eq!(after(&append("gemm.cu", "")), new);
    assert_eq!(after(&append("ptx/old.ptx", "")), ["old has PTX and no source"]);
    assert_eq!(after(&|kernels| fs::remove_file(kernels.join("rows.cu")).unwrap()).len(), 2);
}

#[test]
fn ptx_that_drivers_or_launches_would_refuse_is_found() {
    let after = |from: &str, to: &str| {
        let folder = scratch();
        let path = folder.path().join("ptx/rows.ptx");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        write_manifest(folder.path());
        problems(folder.path())
    };
    assert_eq!(after(".version 8.2", ".version 8.0"), [""; 0]);
    assert_eq!(after(".version 8.2", ".version 8.3"), ["rows.ptx: .version Some(\"8.3\") is above (8, 2)"]);
    assert_eq!(after("sm_80", "sm_90a"), ["rows.ptx: .target is Some(\"sm_90a\")"]);
    let second = ".b8 add_param_0[64],\n.param .u32 add_param_1";
    assert_eq!(after(".b8 add_param_0[64]", second), ["rows.ptx: add takes 2 parameters instead of one struct"]);
    let shared = "ret;\n.shared .align 4 .b8 sums[8];";
    assert_eq!(after("ret;", shared), ["rows.ptx: add declares 8 bytes of shared memory"]);
}
