//! The command line, read to its end: every problem is reported, not the first alone.
//!
//! clap stops at the first thing that it cannot read. That is noted and taken out, and the rest is read again, until
//! nothing is left to complain of; then what was read is checked as a whole. Help, versions and unknown verbs are
//! clap's own business.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::args::Args;
use super::environment::Environment;
use super::exit::Exit;
use super::problem::{ConfigProblem, ConfigProblems};
use super::variables;

/// Why there is nothing to do.
#[derive(Debug)]
pub enum Refused {
    /// Help, a version, or a verb that does not exist: clap has the words and the exit code.
    Shown(Box<clap::Error>),
    /// Everything that is wrong.
    Problems {
        /// Which verb, as in `polydelta serve`.
        verb: String,
        /// What is wrong with its flags and variables.
        problems: ConfigProblems,
    },
}

impl Refused {
    /// Say it, and give the exit code. A closed output is no reason to fail otherwise.
    #[must_use]
    pub fn report(&self) -> Exit {
        match self {
            Self::Shown(error) => {
                let _ = error.print();
                if error.use_stderr() { Exit::Usage } else { Exit::Ok }
            }
            Self::Problems { verb, problems } => {
                let text = format!("error: {problems}\n\n`{verb} --help` tells what there is.\n");
                let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
                problems.exit()
            }
        }
    }
}

/// Read the words of a command line, the program's name first, and the variables that belong to its verb, and check
/// them as a whole.
///
/// # Errors
/// [`Refused`], with every problem there is.
pub fn parse(words: Vec<OsString>, environment: &Environment) -> Result<Args, Refused> {
    let words = with_whole_numbers(words);
    let mut reader = Reader { words, unread: BTreeSet::new(), problems: Vec::new(), after_unknown: false };
    // Each turn takes a word or a variable away.
    loop {
        match reader.command().try_get_matches_from(&reader.words) {
            Ok(matches) => {
                let args = Args::from_arg_matches(&matches).map_err(|error| Refused::Shown(Box::new(error)))?;
                reader.check(&args, environment, &matches);
                return if reader.problems.is_empty() { Ok(args) } else { Err(reader.refused()) };
            }
            Err(error) => {
                if reader.take_out(error)? == Rest::Unreadable {
                    return Err(reader.refused());
                }
            }
        }
    }
}

/// `-.5` behind a flag as `-0.5`, which clap knows to be a number.
fn with_whole_numbers(mut words: Vec<OsString>) -> Vec<OsString> {
    for at in 1..words.len() {
        let before = words[at - 1].to_string_lossy();
        if before == "--" {
            break;
        }
        let fraction = words[at]
            .to_str()
            .and_then(|word| word.strip_prefix("-."))
            .filter(|rest| before.starts_with('-') && rest.starts_with(|first: char| first.is_ascii_digit()));
        if let Some(fraction) = fraction {
            words[at] = format!("-0.{fraction}").into();
        }
    }
    words
}

/// Whether anything can be said of what follows.
#[derive(PartialEq, Eq)]
enum Rest {
    Readable,
    Unreadable,
}

struct Reader {
    words: Vec<OsString>,
    /// Variables that are not looked at: their values cannot be read.
    unread: BTreeSet<String>,
    problems: Vec<ConfigProblem>,
    /// A word that fits nowhere may be the value of an unknown flag before it.
    after_unknown: bool,
}

impl Reader {
    fn command(&self) -> Command {
        variables::assign(command(), &self.unread)
    }

    /// The verb that the words name, its parents first.
    fn verb(&self) -> Vec<Command> {
        let mut path = vec![command()];
        for word in self.words.iter().skip(1) {
            let found = path.last().and_then(|above| above.find_subcommand(word).cloned());
            path.extend(found);
        }
        path
    }

    fn argument(&self, long: &str) -> Option<Arg> {
        let of = |command: &Command| command.get_arguments().find(|arg| arg.get_long() == Some(long)).cloned();
        self.verb().iter().rev().find_map(of)
    }

    fn refused(self) -> Refused {
        let verb: Vec<_> = self.verb().iter().map(|command| command.get_name().to_owned()).collect();
        Refused::Problems { verb: verb.join(" "), problems: ConfigProblems(self.problems) }
    }

    /// The variable that a flag's value is from, if it is from one.
    fn variable_of(&self, flag: &str, matches: &ArgMatches) -> Option<String> {
        let command = self.command();
        let (mut command, mut matches) = (&command, matches);
        while let Some((verb, below)) = matches.subcommand() {
            (command, matches) = (command.find_subcommand(verb)?, below);
        }
        let argument = command.get_arguments().find(|arg| arg.get_long() == flag.strip_prefix("--"))?;
        let from = matches.value_source(argument.get_id().as_str())?;
        let variable = argument.get_env()?.to_str()?.to_owned();
        (from == ValueSource::EnvVariable).then_some(variable)
    }

    fn check(&mut self, args: &Args, environment: &Environment, matches: &ArgMatches) {
        let Err(found) = args.check(environment) else { return };
        for problem in found.0 {
            // What could not be read has its default now, about which there is nothing to say.
            let named = |known: &ConfigProblem| problem.flag().is_some() && known.flag() == problem.flag();
            if self.problems.iter().any(named) {
                continue;
            }
            let variable = problem.flag().and_then(|flag| self.variable_of(flag, matches));
            self.problems.push(match variable {
                Some(variable) => ConfigProblem::OfVariable { variable, problem: Box::new(problem) },
                None => problem,
            });
        }
    }

    fn take_out(&mut self, error: clap::Error) -> Result<Rest, Refused> {
        match error.kind() {
            ErrorKind::InvalidValue | ErrorKind::ValueValidation => Ok(self.take_value(&error)),
            ErrorKind::UnknownArgument => Ok(self.take_unknown(&error)),
            ErrorKind::ArgumentConflict => Ok(self.take_repeated(&error)),
            ErrorKind::MissingRequiredArgument => {
                let missing = texts(&error, ContextKind::InvalidArg);
                self.problems.extend(missing.into_iter().map(|what| ConfigProblem::Missing { what }));
                Ok(Rest::Unreadable)
            }
            _ if self.problems.is_empty() => Err(Refused::Shown(Box::new(error))),
            _ => Ok(Rest::Unreadable),
        }
    }

    /// A value that cannot be read, on the command line or in the flag's variable.
    fn take_value(&mut self, error: &clap::Error) -> Rest {
        let (shown, value) = (text(error, ContextKind::InvalidArg), text(error, ContextKind::InvalidValue));
        let name = shown.split([' ', '=']).next().unwrap_or_default().to_owned();
        let reason = reason(error);
        let Some(arg) = name.strip_prefix("--").and_then(|long| self.argument(long)) else {
            self.problems.push(ConfigProblem::Unreadable { flag: name.clone(), given_as: name, value, reason });
            return Rest::Unreadable;
        };
        if value.is_empty() && self.remove_bare(&name) {
            self.problems.push(ConfigProblem::NoValue { flag: name });
            return Rest::Readable;
        }
        let mut given_as = name.clone();
        let found = self.remove(&arg, |given| given == value.as_str());
        if !found {
            let path: Vec<_> = self.verb().iter().skip(1).map(|command| command.get_name().to_owned()).collect();
            given_as = variables::of_flag(&path, name.trim_start_matches('-'));
        }
        let readable = found || self.unread.insert(given_as.clone());
        self.problems.push(ConfigProblem::Unreadable { flag: name, given_as, value, reason });
        if readable { Rest::Readable } else { Rest::Unreadable }
    }

    fn take_unknown(&mut self, error: &clap::Error) -> Rest {
        let word = text(error, ContextKind::InvalidArg);
        let meant = texts(error, ContextKind::SuggestedArg).into_iter().next();
        let flag = word.starts_with('-');
        let is_it = |given: &OsString| {
            let given = given.to_string_lossy();
            *given == *word || (flag && given.strip_prefix(&*word).is_some_and(|rest| rest.starts_with('=')))
        };
        let Some(at) = self.words.iter().skip(1).position(is_it).map(|index| index + 1) else {
            self.problems.push(ConfigProblem::Unknown { word, meant });
            return Rest::Unreadable;
        };
        let with_value = self.words.remove(at).to_string_lossy().contains('=');
        if flag || !self.after_unknown {
            self.problems.push(ConfigProblem::Unknown { word, meant: meant.clone() });
        }
        let follows = self.words.get(at).is_some_and(|next| !next.to_string_lossy().starts_with('-'));
        if flag && !with_value && follows {
            let takes = |arg: &Arg| arg.get_action().takes_values();
            let meant = meant.and_then(|meant| self.argument(meant.trim_start_matches('-')));
            let positionals = self.verb().last().is_some_and(|verb| verb.get_positionals().next().is_some());
            match meant.as_ref().map(takes) {
                Some(false) => {}
                Some(true) => drop(self.words.remove(at)),
                None if !positionals => drop(self.words.remove(at)),
                None => self.after_unknown = true,
            }
        }
        Rest::Readable
    }

    fn take_repeated(&mut self, error: &clap::Error) -> Rest {
        let flag = text(error, ContextKind::InvalidArg);
        let flag = flag.split([' ', '=']).next().unwrap_or_default().to_owned();
        let arg = flag.strip_prefix("--").and_then(|long| self.argument(long));
        let removed = arg.is_some_and(|arg| self.remove(&arg, |_| true));
        self.problems.push(ConfigProblem::Repeated { flag });
        if removed { Rest::Readable } else { Rest::Unreadable }
    }

    /// Take away the first `--flag VALUE`, `--flag=VALUE`, `-f VALUE` or `-fVALUE` whose value is the one looked for.
    fn remove(&mut self, arg: &Arg, is_it: impl Fn(&str) -> bool) -> bool {
        let long = arg.get_long().map(|long| format!("--{long}")).unwrap_or_default();
        let short = arg.get_short().map(|short| format!("-{short}"));
        let takes_value = arg.get_action().takes_values();
        for at in 1..self.words.len() {
            let word = self.words[at].to_string_lossy().into_owned();
            if word == "--" {
                return false;
            }
            let spelled = word == long || short.as_ref() == Some(&word);
            if spelled && takes_value {
                let value = self.words.get(at + 1).map(|value| value.to_string_lossy().into_owned());
                if value.is_some_and(|value| is_it(&value)) {
                    self.words.drain(at..at + 2);
                    return true;
                }
            } else if spelled && is_it("") {
                self.words.remove(at);
                return true;
            }
            let attached = word.strip_prefix(&long).and_then(|rest| rest.strip_prefix('='));
            let attached = attached.or_else(|| {
                let rest = word.strip_prefix(short.as_deref()?)?;
                Some(rest.strip_prefix('=').unwrap_or(rest)).filter(|rest| !rest.is_empty())
            });
            if attached.is_some_and(&is_it) {
                self.words.remove(at);
                return true;
            }
        }
        false
    }

    /// Take away a flag that stands where its value should follow.
    fn remove_bare(&mut self, flag: &str) -> bool {
        let empty = format!("{flag}=");
        let bare = |at: &usize| {
            let next = self.words.get(at + 1).map(|next| next.to_string_lossy().into_owned());
            self.words[*at] == *flag && next.is_none_or(|next| next.is_empty() || next.starts_with('-'))
        };
        let Some(at) = (1..self.words.len()).find(|at| bare(at) || self.words[*at] == *empty) else { return false };
        let with_empty = self.words.get(at + 1).is_some_and(|next| next.is_empty()) && self.words[at] == *flag;
        self.words.drain(at..=at + usize::from(with_empty));
        true
    }
}

/// What clap parses: as derived, with numbers below zero as values wherever a value is due.
fn command() -> Command {
    fn lenient(command: Command) -> Command {
        let command = command.mut_args(|arg| {
            let takes = arg.get_action().takes_values();
            if takes { arg.allow_negative_numbers(true) } else { arg }
        });
        command.mut_subcommands(lenient)
    }
    lenient(Args::command())
}

fn texts(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    }
}

fn text(error: &clap::Error, kind: ContextKind) -> String {
    texts(error, kind).into_iter().next().unwrap_or_default()
}

/// What would be right, or what its parser said.
fn reason(error: &clap::Error) -> String {
    let valid = texts(error, ContextKind::ValidValue);
    if let Some(source) = error.source() {
        return source.to_string();
    }
    let expected = match &valid[..] {
        [] => "this is no value of it".to_owned(),
        [only] => format!("expected {only}"),
        [first @ .., last] => format!("expected {} or {last}", first.join(", ")),
    };
    match texts(error, ContextKind::SuggestedValue).first() {
        Some(meant) => format!("{expected}; is {meant} meant?"),
        None => expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_below_zero_is_a_number_behind_a_flag_and_a_word_elsewhere() {
        let read = |line: &str| {
            let words = with_whole_numbers(line.split(' ').map(OsString::from).collect());
            words.join(OsString::from(" ").as_os_str()).into_string().unwrap()
        };
        assert_eq!(
            read("polydelta generate --presence-penalty -.5 hi"),
            "polydelta generate --presence-penalty -0.5 hi"
        );
        for same in
            ["polydelta generate -.5", "polydelta generate --n 1 -- -.5", "polydelta generate --temperature -.x"]
        {
            assert_eq!(read(same), same);
        }
        let line = ["polydelta", "generate", "--frequency-penalty", "-.25", "hi"];
        let empty = Environment::default();
        assert!(parse(line.iter().map(OsString::from).collect(), &empty).is_ok());
    }
}
