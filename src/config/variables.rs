//! Which environment variable belongs to which flag: one to each flag of each verb.
//!
//! A server's flags are what its container or unit is set up by, so they have the short names: `--max-num-seqs` of
//! `serve` is `POLYDELTA_MAX_NUM_SEQS`. Elsewhere the verb comes first: `--temperature` of `generate` is
//! `POLYDELTA_GENERATE_TEMPERATURE`. So what is set up for one verb is never read by another. Three groups mean the
//! same wherever they are and have one name: the log, the connection to a server, and where assembled kernels are kept.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::{Command, CommandFactory};

use super::args::Args;

const PREFIX: &str = "POLYDELTA_";
/// The verb whose variables have no verb in their name.
const SERVER: &str = "serve";
/// Flags of the log, of the connection, and of what `serve` keeps and `doctor` looks at.
const SHARED: [&str; 6] = ["log", "log-format", "server", "timeout", "connect-timeout", "kernel-cache"];
/// How much of a name must be right to be taken for a slip.
const ALIKE: f64 = 0.75;

/// A variable that looks like ours and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVariable {
    /// As it is set.
    pub name: String,
    /// What may be meant.
    pub meant: Option<String>,
}

/// The variable of a flag of the verb at `path`, as `["adapter", "upload"]`.
pub(super) fn of_flag(path: &[String], flag: &str) -> String {
    let verb: Vec<_> = match path {
        [verb] if verb == SERVER => Vec::new(),
        _ if SHARED.contains(&flag) => Vec::new(),
        path => path.iter().map(String::as_str).collect(),
    };
    let words: Vec<_> = verb.into_iter().chain([flag]).map(|word| word.replace('-', "_").to_uppercase()).collect();
    format!("{PREFIX}{}", words.join("_"))
}

/// Give every flag its variable, but for those in `unread`.
pub(super) fn assign(command: Command, unread: &BTreeSet<String>) -> Command {
    assign_below(command, &[], unread)
}

fn assign_below(command: Command, path: &[String], unread: &BTreeSet<String>) -> Command {
    let command = command.mut_args(|arg| {
        let variable = arg.get_long().map(|flag| of_flag(path, flag));
        match variable.filter(|variable| !unread.contains(variable)) {
            Some(variable) => arg.env(OsString::from(variable)),
            None => arg.env(None::<&str>),
        }
    });
    command.mut_subcommands(|below| {
        let path: Vec<_> = path.iter().cloned().chain([below.get_name().to_owned()]).collect();
        assign_below(below, &path, unread)
    })
}

/// The variables of all verbs.
fn known() -> BTreeSet<String> {
    fn collect(command: &Command, path: &[String], names: &mut BTreeSet<String>) {
        names.extend(command.get_arguments().filter_map(|arg| Some(of_flag(path, arg.get_long()?))));
        for below in command.get_subcommands() {
            let path: Vec<_> = path.iter().cloned().chain([below.get_name().to_owned()]).collect();
            collect(below, &path, names);
        }
    }
    let mut names = BTreeSet::new();
    collect(&Args::command(), &[], &mut names);
    names
}

/// Those of `set` that begin like ours and belong to no flag of any verb.
#[must_use]
pub fn unknown_variables(set: &[String]) -> Vec<UnknownVariable> {
    let known = known();
    let strangers = set.iter().filter(|name| name.starts_with(PREFIX) && !known.contains(*name));
    strangers.map(|name| UnknownVariable { name: name.clone(), meant: meant(name, &known) }).collect()
}

/// The flag's name without its verb, else what is spelled most alike.
fn meant(name: &str, known: &BTreeSet<String>) -> Option<String> {
    let flag = format!("_{}", name.strip_prefix(PREFIX)?);
    if let Some(of_a_verb) = known.iter().find(|known| known.ends_with(&flag)) {
        return Some(of_a_verb.clone());
    }
    let own = |name: &str| name.trim_start_matches(PREFIX).to_owned();
    let alike = |known: &String| (strsim::normalized_damerau_levenshtein(&own(name), &own(known)), known.clone());
    let (score, best) = known.iter().map(alike).max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (score >= ALIKE).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_belongs_to_one_verb_but_for_the_shared_ones() {
        fn collect(command: &Command, path: &[String], found: &mut Vec<(String, String, String)>) {
            for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
                found.push((of_flag(path, flag), path.join(" "), flag.to_owned()));
            }
            for below in command.get_subcommands() {
                let path: Vec<_> = path.iter().cloned().chain([below.get_name().to_owned()]).collect();
                collect(below, &path, found);
            }
        }
        let mut found = Vec::new();
        collect(&Args::command(), &[], &mut found);
        for (variable, verb, flag) in &found {
            let others = found.iter().filter(|(other, other_verb, _)| other == variable && other_verb != verb);
            let shared = SHARED.contains(&flag.as_str());
            assert!(shared || others.count() == 0, "{variable} of {verb} is another verb's too");
        }
        let of = |path: &[&str], flag: &str| {
            let path: Vec<_> = path.iter().map(|word| (*word).to_owned()).collect();
            of_flag(&path, flag)
        };
        assert_eq!(of(&["serve"], "max-num-seqs"), "POLYDELTA_MAX_NUM_SEQS");
        assert_eq!(of(&["generate"], "adapter"), "POLYDELTA_GENERATE_ADAPTER");
        assert_eq!(of(&["adapter", "upload"], "pin"), "POLYDELTA_ADAPTER_UPLOAD_PIN");
        assert_eq!(of(&["adapter", "upload"], "server"), "POLYDELTA_SERVER");
        assert_eq!(of(&[], "log"), "POLYDELTA_LOG");
    }

    #[test]
    fn what_belongs_to_no_flag_is_found_with_what_may_be_meant() {
        let set = ["POLYDELTA_MAX_NUM_SEQ", "POLYDELTA_TEMPERATURE", "POLYDELTA_X", "POLYDELTA_LISTEN", "HOME"];
        let unknown = unknown_variables(&set.map(str::to_owned));
        let found: Vec<_> = unknown.iter().map(|found| (found.name.as_str(), found.meant.as_deref())).collect();
        let expected = [
            ("POLYDELTA_MAX_NUM_SEQ", Some("POLYDELTA_MAX_NUM_SEQS")),
            ("POLYDELTA_TEMPERATURE", Some("POLYDELTA_GENERATE_TEMPERATURE")),
            ("POLYDELTA_X", None),
        ];
        assert_eq!(found, expected);
    }
}
