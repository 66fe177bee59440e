//! The house holds: an import in `src/` points to the same room or to one further down, the two wings never meet
//! outside the hall, and what a wing must not know it does not name.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.

mod circles;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use circles::Needs;

/// Floors from the ground up. Rooms of one floor do not see each other unless a pair below says so.
const FLOORS: [&[&str]; 7] = [
    &["types", "files"],
    &["config", "telemetry", "receipt"],
    &["scheduler", "cache", "adapters", "model", "sampler", "delta", "ops", "hub"],
    &["engine", "text"],
    &["admission", "wire"],
    &["grpc", "http"],
    &["cli", "app"],
];

/// Within a floor: who may look at whom.
const BESIDE: [(&str, &str); 7] = [
    ("scheduler", "cache"),
    // Nothing of requests or adapters: the checkpoint's tensors in the terms of the compiler.
    ("model", "delta"),
    ("model", "ops"),
    ("delta", "ops"),
    ("app", "cli"),
    ("config", "telemetry"),
    // One row of logits at a time: the backend brings the rows, and its instructions.
    ("ops", "sampler"),
];

/// Crates that only some rooms may name.
const CRATES: [(&[&str], &[&str]); 6] = [
    (&["tonic", "prost"], &["grpc", "cli", "app"]),
    (&["hyper", "http_body"], &["wire", "grpc", "http"]),
    (&["axum"], &["http"]),
    (&["tokio"], &["engine", "admission", "wire", "grpc", "http", "cli", "app", "telemetry"]),
    (&["candle_core", "safetensors"], &["model", "delta", "ops"]),
    (&["hf_hub"], &["hub"]),
];

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    place: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.place.display(), self.line, self.what)
    }
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn may_see(room: &str, other: &str) -> bool {
    let (Some(from), Some(to)) = (floor(room), floor(other)) else { return false };
    room == other || to < from || (to == from && BESIDE.contains(&(room, other)))
}

/// Rooms named by `crate::room` in a line of code, several in `use crate::{a, b}`.
fn rooms_named(code: &str) -> Vec<&str> {
    let word = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').len();
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = &group[..group.find('}').unwrap_or(group.len())];
                rooms.extend(group.split(',').map(|part| &part.trim()[..word(part.trim())]));
            }
            None => rooms.push(&rest[..word(rest)]),
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') && after.starts_with("::")
    })
}

fn check(place: &Path, room: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        // Documentation may name any room; tests of a room may bring what they like from below all the same.
        let code = line.split("//").next().unwrap_or_default();
        let mut report = |what| found.push(Violation { place: place.to_owned(), line: index + 1, what });
        for other in rooms_named(code) {
            if floor(other).is_some() && !may_see(room, other) {
                report(format!("`{room}` must not import `{other}`"));
            }
        }
        for (crates, rooms) in CRATES {
            for name in crates.iter().filter(|name| !rooms.contains(&room) && names_crate(code, name)) {
                report(format!("`{room}` must not know the crate `{name}`"));
            }
        }
    }
    found
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let room = |path: &Path| {
        let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    };
    files.into_iter().map(|path| (path.clone(), room(&path), fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn imports_point_down() {
    let found: Vec<_> = sources()
        .iter()
        .filter(|(_, room, _)| room != "lib" && room != "main")
        .flat_map(|(path, room, text)| check(path, room, text))
        .map(|violation| violation.to_string())
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn no_two_files_need_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = sources();
    let below = sources.iter().map(|(path, _, text)| (path.strip_prefix(&root).unwrap(), text.as_str()));
    let circles: Vec<_> = Needs::of(below).circles().iter().map(|circle| circle.join(" ")).collect();
    assert!(circles.is_empty(), "files that need each other:\n{}", circles.join("\n"));
}

#[test]
fn every_room_has_a_floor() {
    for (path, room, _) in sources() {
        assert!(room == "lib" || room == "main" || floor(&room).is_some(), "{} is on no floor", path.display());
    }
}

#[test]
fn unsafe_code_stays_where_it_is_allowed() {
    let allowed = |path: &Path| {
        let path = path.to_string_lossy();
        ["/ops/cpu/", "/ops/cuda/"].iter().any(|folder| path.contains(folder))
    };
    for (path, _, text) in sources().into_iter().filter(|(path, ..)| !allowed(path)) {
        for (index, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            assert!(!code.contains("unsafe {") && !code.contains("unsafe fn"), "{}:{}", path.display(), index + 1);
        }
    }
}

#[test]
fn files_that_the_documents_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        let named = text.split('`').skip(1).step_by(2).filter(|quoted| quoted.ends_with(".rs"));
        let mut count = 0;
        for path in named {
            assert!(root.join(path).is_file() || root.join("src").join(path).is_file(), "{document}: {path}");
            count += 1;
        }
        assert!(count > 0, "{document} names no file");
    }
}

/// Each line of the list is a class of one file, and each file that is no part of the frame has its line.
#[test]
fn every_op_class_has_its_file() {
    const FRAME: [&str; 4] = ["mod", "op", "loading", "input"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/delta/class");
    let list = fs::read_to_string(folder.join("mod.rs")).unwrap();
    let list = list.split("\nclasses! {").nth(1).unwrap().split('}').next().unwrap();
    let classes: Vec<&str> =
        list.lines().map(|line| line.trim().trim_end_matches(',')).filter(|line| !line.is_empty()).collect();
    let classes: Vec<&str> = classes.into_iter().filter(|line| !line.starts_with("///")).collect();
    assert!(classes.len() >= 8, "{classes:?}");
    let mut files = Vec::new();
    rust_files(&folder, &mut files);
    let name = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    files.retain(|path| !FRAME.contains(&name(path).as_str()));
    let mut implemented = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let of_file: Vec<String> = text
            .match_indices("impl ClassOp for ")
            .map(|(at, found)| text[at + found.len()..].split(' ').next().unwrap().to_owned())
            .collect();
        assert!(!of_file.is_empty(), "{} holds no class", path.display());
        implemented.extend(of_file);
    }
    implemented.sort();
    let mut listed: Vec<String> = classes.iter().map(ToString::to_string).collect();
    listed.sort();
    assert_eq!(implemented, listed);
}

/// Unit tests share a process, and a child holds every lock of it between its fork and its exec.
#[test]
fn nothing_starts_a_process() {
    for (path, _, text) in sources() {
        for (index, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let grouped = code.contains("process::{") && code.contains("Command");
            let starts = grouped || ["process::Command", "insta::"].iter().any(|name| code.contains(name));
            assert!(!starts, "{}:{}", path.display(), index + 1);
        }
    }
}

#[test]
fn violations_are_found() {
    let place = Path::new("x.rs");
    let what = |room, text| check(place, room, text).into_iter().map(|found| found.what).collect::<Vec<_>>();
    assert_eq!(what("scheduler", "use crate::ops::Numerics;"), ["`scheduler` must not import `ops`"]);
    assert_eq!(what("model", "use crate::engine::{A, B};"), ["`model` must not import `engine`"]);
    assert_eq!(what("ops", "use crate::{delta, types::A};"), ["`ops` must not import `delta`"]);
    assert_eq!(what("cache", "let x = tokio::spawn(y);"), ["`cache` must not know the crate `tokio`"]);
    assert_eq!(what("wire", "fn answer(status: tonic::Status)"), ["`wire` must not know the crate `tonic`"]);
    assert_eq!(what("types", "x(crate::config::Exit::Ok)"), ["`types` must not import `config`"]);
    assert!(what("model", "use crate::delta::BaseLayout; // not crate::grpc").is_empty());
    assert!(what("grpc", "use crate::admission::Gate;").is_empty());
    assert_eq!(check(place, "ops", "\n\nuse crate::model::A;")[0].line, 3);
}

#[test]
fn circles_between_files_are_found() {
    let circles = |sources: &[(&str, &str)]| {
        let sources = sources.iter().map(|(path, text)| (Path::new(*path), *text));
        Needs::of(sources).circles().iter().map(|circle| circle.join(" ")).collect::<Vec<_>>()
    };
    let low = ("a/low.rs", "pub struct Low;");
    // A parent may hand on what its child has, and the child may use what the parent writes, but not both at once.
    let handing_on = ("a/mod.rs", "mod low; mod high; pub use low::Low; pub use high::High;");
    assert!(circles(&[low, handing_on, ("a/high.rs", "use super::Low; pub struct High(Low);")]).is_empty());
    let using = ("a/mod.rs", "mod low; pub struct A; fn f() -> low::Low { low::Low }");
    assert!(circles(&[low, using]).is_empty());
    assert_eq!(circles(&[using, ("a/low.rs", "pub struct Low(super::A);")]), ["a a::low"]);
    let by_way_of_the_parent = ("a/low.rs", "use crate::a::High; pub struct Low; fn f(x: High) {}");
    let high = ("a/high.rs", "use super::low; pub struct High(low::Low);");
    assert_eq!(circles(&[by_way_of_the_parent, handing_on, high]), ["a::high a::low"]);
    let in_a_macro = ("a/low.rs", "fn f() { assert!(matches!(x, super::high::High(_))) } pub struct Low;");
    assert_eq!(circles(&[in_a_macro, handing_on, high]), ["a::high a::low"]);
    let in_a_test = ("a/low.rs", "pub struct Low; #[cfg(test)] mod tests { use super::super::high::High; }");
    assert!(circles(&[in_a_test, handing_on, high]).is_empty());
}
