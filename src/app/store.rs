//! `polydelta store check` and `repair`.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::error::AppError;
use crate::adapters::{
    CheckedName, DiskFs, IdleStore, Mend, NamelessObject, QuarantinedContent, QuarantinedEntry, RepairWishes,
    StoreCheck,
};
use crate::cli::{CliError, Table};
use crate::config::units::format_bytes;
use crate::config::{ConfigProblem, ConfigProblems, Environment, StoreCommand, StoreRepairArgs};

/// Run a verb. Blocks. A store that is not in order in the end is [`AppError::StoreProblems`].
pub(super) fn run(command: &StoreCommand, environment: &Environment, out: &mut impl Write) -> Result<(), AppError> {
    let args = match command {
        StoreCommand::Check(args) => args,
        StoreCommand::Repair(args) => &args.store,
    };
    let root = args.folder(environment)?;
    let store = IdleStore::open(&root, Arc::new(DiskFs)).map_err(AppError::IdleStore)?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
    let problems = match command {
        StoreCommand::Check(args) => {
            let check = store.check().map_err(AppError::IdleStore)?;
            let written =
                if args.json { writeln!(out, "{:#}", check_json(&check)) } else { write_check(&check, now_ms, out) };
            written.map_err(CliError::Output)?;
            check.problems.len()
        }
        StoreCommand::Repair(args) => repair(&store, args, now_ms, out)?,
    };
    if problems == 0 { Ok(()) } else { Err(AppError::StoreProblems { problems }) }
}

/// What is not in order afterwards.
fn repair(store: &IdleStore, args: &StoreRepairArgs, now_ms: u64, out: &mut impl Write) -> Result<usize, AppError> {
    let wishes = wishes(args)?;
    let mends = store.plan(&wishes, now_ms)?;
    if args.yes {
        store.carry_out(&mends).map_err(AppError::IdleStore)?;
    }
    let check = store.check().map_err(AppError::IdleStore)?;
    let written = if args.store.json {
        let mends: Vec<_> = mends.iter().map(Mend::to_string).collect();
        writeln!(out, "{:#}", json!({ "done": args.yes, "steps": mends, "check": check_json(&check) }))
    } else {
        write_mends(&mends, args.yes, &check, out)
    };
    written.map_err(CliError::Output)?;
    Ok(check.problems.len())
}

fn wishes(args: &StoreRepairArgs) -> Result<RepairWishes, ConfigProblems> {
    let mut problems = Vec::new();
    let mut bind = Vec::new();
    for text in &args.bind {
        let parts = text.split_once('=');
        match parts.and_then(|(name, version)| Some((name.parse().ok()?, version.parse().ok()?))) {
            Some(pair) => bind.push(pair),
            None => {
                let expected = "NAME=VERSION, the version in full";
                problems.push(ConfigProblem::Invalid { flag: "--bind", value: text.clone(), expected });
            }
        }
    }
    if problems.is_empty() {
        Ok(RepairWishes { bind, remove: args.remove.clone() })
    } else {
        Err(ConfigProblems(problems))
    }
}

fn write_check(check: &StoreCheck, now_ms: u64, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["NAME", "KIND", "STORED", "BASE", "AGE", "VERSION", "FILES"]);
    for CheckedName { adapter, flaw } in &check.names {
        let compiled = adapter.compiled.as_ref();
        table.row([
            adapter.name.to_string(),
            compiled.map_or_else(|| "-".to_owned(), |compiled| compiled.facts.kind.clone()),
            format_bytes(adapter.bytes()),
            compiled.map_or_else(|| "-".to_owned(), |compiled| compiled.base.short()),
            age(now_ms.saturating_sub(adapter.created_ms)),
            adapter.version.to_string().chars().take(12).collect(),
            flaw.as_ref().map_or_else(|| "intact".to_owned(), ToString::to_string),
        ]);
    }
    table.write(out)?;
    for NamelessObject { version, bytes, since_ms, .. } in &check.nameless {
        let since = since_ms.map_or_else(String::new, |since| format!(" for {}", age(now_ms.saturating_sub(since))));
        writeln!(out, "objects/{version}: no name refers to it{since}, {}", format_bytes(*bytes))?;
    }
    for QuarantinedEntry { entry, .. } in check.quarantine.iter().filter(|entry| entry.superseded) {
        writeln!(out, "quarantine/{entry}: the store has an intact one in its place")?;
    }
    write_problems(check, out)
}

fn write_problems(check: &StoreCheck, out: &mut impl Write) -> io::Result<()> {
    for problem in &check.problems {
        writeln!(out, "problem: {}: {}", problem.entry, problem.reason)?;
    }
    Ok(())
}

fn write_mends(mends: &[Mend], done: bool, check: &StoreCheck, out: &mut impl Write) -> io::Result<()> {
    match (mends, done) {
        ([], _) => writeln!(out, "nothing to mend")?,
        (_, true) => mends.iter().try_for_each(|mend| writeln!(out, "done: {mend}"))?,
        (_, false) => {
            mends.iter().try_for_each(|mend| writeln!(out, "would {mend}"))?;
            writeln!(out, "nothing was changed; --yes does it")?;
        }
    }
    if done || mends.is_empty() { write_problems(check, out) } else { Ok(()) }
}

/// Roughly, for people.
fn age(ms: u64) -> String {
    let minutes = ms / 60_000;
    match minutes {
        0..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} d", minutes / 1440),
    }
}

fn check_json(check: &StoreCheck) -> Value {
    let name = |CheckedName { adapter, flaw }: &CheckedName| {
        let compiled = adapter.compiled.as_ref();
        json!({
            "name": adapter.name.as_str(),
            "version": adapter.version.to_string(),
            "stored_bytes": adapter.bytes(),
            "created_ms": adapter.created_ms,
            "pinned": adapter.pinned,
            "base_digest": compiled.map(|compiled| compiled.base.to_string()),
            "kind": compiled.map(|compiled| compiled.facts.kind.clone()),
            "flaw": flaw.as_ref().map(ToString::to_string),
        })
    };
    let nameless = |object: &NamelessObject| {
        json!({
            "entry": format!("objects/{}", object.version),
            "version": object.version.to_string(),
            "stored_bytes": object.bytes,
            "since_ms": object.since_ms,
            "keep": object.keep,
            "flaw": object.flaw.as_ref().map(ToString::to_string),
        })
    };
    let quarantined = |QuarantinedEntry { entry, content, superseded }: &QuarantinedEntry| {
        let (kind, text, whole) = match content {
            QuarantinedContent::Manifest { adapter, salvaged } => ("name", adapter.name.to_string(), !salvaged),
            QuarantinedContent::Object { version, .. } => ("object", version.to_string(), true),
            QuarantinedContent::Other(reason) => ("other", reason.clone(), false),
        };
        let entry = format!("quarantine/{entry}");
        json!({ "entry": entry, "kind": kind, "what": text, "intact": whole, "superseded": superseded })
    };
    let problem = |fault: &crate::adapters::StoreFault| json!({ "entry": fault.entry, "reason": fault.reason });
    json!({
        "adapters": check.names.iter().map(name).collect::<Vec<_>>(),
        "nameless": check.nameless.iter().map(nameless).collect::<Vec<_>>(),
        "quarantine": check.quarantine.iter().map(quarantined).collect::<Vec<_>>(),
        "problems": check.problems.iter().map(problem).collect::<Vec<_>>(),
    })
}
