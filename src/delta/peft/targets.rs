//! Which modules a PEFT config means: the rules of PEFT's `check_target_module_exists`.

use std::collections::BTreeSet;

use fancy_regex::{Regex, RegexBuilder};

use super::fields::{Fields, Names};
use super::saved::SavedNames;
use crate::delta::DeltaError;
use crate::delta::layout::{Module, ModuleKind};

/// Expressions come from uploads, and each is run on every module of the base: the longest accepted, in bytes; the
/// most of them in one list or table; and the most backtracking steps one match may take.
const MAX_EXPRESSION: usize = 8 << 10;
const MAX_EXPRESSIONS: usize = 64;
const MAX_BACKTRACKING: usize = 20_000;

/// An expression from a config.
struct Expression {
    field: &'static str,
    regex: Regex,
}

impl Expression {
    fn new(field: &'static str, expression: &str) -> Result<Self, DeltaError> {
        let failed = |reason: String| DeltaError::Regex { field: field.to_owned(), reason };
        if expression.len() > MAX_EXPRESSION {
            return Err(failed(format!("it has {} bytes, the limit is {MAX_EXPRESSION}", expression.len())));
        }
        let built = RegexBuilder::new(expression)
            .backtrack_limit(MAX_BACKTRACKING)
            .delegate_size_limit(1 << 20)
            .delegate_dfa_size_limit(1 << 20)
            .build();
        Ok(Self { field, regex: built.map_err(|error| failed(error.to_string()))? })
    }

    /// Python's `re.fullmatch`.
    fn full(field: &'static str, expression: &str) -> Result<Self, DeltaError> {
        Self::new(field, &format!(r"\A(?:{expression})\z"))
    }

    fn failed(&self, error: &fancy_regex::Error) -> DeltaError {
        DeltaError::Regex { field: self.field.to_owned(), reason: error.to_string() }
    }

    fn is_match(&self, path: &str) -> Result<bool, DeltaError> {
        self.regex.is_match(path).map_err(|error| self.failed(&error))
    }

    /// `None` if it does not match, else the number its group `idx` holds.
    fn layer_index(&self, path: &str) -> Result<Option<Option<usize>>, DeltaError> {
        let captures = self.regex.captures(path).map_err(|error| self.failed(&error))?;
        Ok(captures.map(|captures| captures.name("idx")?.as_str().parse().ok()))
    }
}

enum Matcher {
    Expression(Expression),
    /// All linear modules but the head.
    AllLinear,
    /// Exact paths or `.name` suffixes.
    List(BTreeSet<String>),
}

impl Matcher {
    fn new(field: &'static str, names: Names) -> Result<Self, DeltaError> {
        match names {
            Names::Pattern(text) if field == "target_modules" && text.eq_ignore_ascii_case("all-linear") => {
                Ok(Self::AllLinear)
            }
            Names::Pattern(text) => Ok(Self::Expression(Expression::full(field, &text)?)),
            Names::List(list) => Ok(Self::List(list.into_iter().collect())),
        }
    }

    fn matches(&self, module: &Module, path: &str) -> Result<bool, DeltaError> {
        match self {
            Self::Expression(expression) => expression.is_match(path),
            Self::AllLinear => Ok(module.kind == ModuleKind::Linear && module.layer().is_some()),
            Self::List(list) => Ok(has_tail(list, path)),
        }
    }

    fn expressions(&self) -> usize {
        usize::from(matches!(self, Self::Expression(_)))
    }
}

/// Whether a path itself or its tail after a dot is in a list.
fn has_tail(list: &BTreeSet<String>, path: &str) -> bool {
    let tails = path.match_indices('.').map(|(at, _)| &path[at + 1..]);
    tails.chain([path]).any(|tail| list.contains(tail))
}

/// `target_parameters`: the parameters of the base that have LoRA of their own, by the rules of PEFT's `_inject_parameters`,
/// which know no `exclude_modules` and no `layers_to_transform`.
#[derive(Default)]
pub(crate) struct TargetParameters(BTreeSet<String>);

impl TargetParameters {
    pub(crate) const FIELD: &str = "target_parameters";

    pub(crate) fn read(fields: &Fields) -> Result<Self, DeltaError> {
        match fields.names(Self::FIELD)? {
            None => Ok(Self::default()),
            Some(Names::List(names)) => Ok(Self(names.into_iter().collect())),
            // PEFT takes no expression here.
            Some(Names::Pattern(_)) => Err(fields.bad(Self::FIELD, "a list of parameter names")),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the config targets a parameter, by its path in the model the adapter was trained on.
    pub(crate) fn contain(&self, path: &str) -> bool {
        has_tail(&self.0, path)
    }
}

/// The modules a config targets.
pub(crate) struct Targets {
    include: Matcher,
    exclude: Option<Matcher>,
    layers: Option<Layers>,
    saved: SavedNames,
}

/// `layers_to_transform` with `layers_pattern`.
struct Layers {
    indices: Vec<usize>,
    patterns: Vec<Expression>,
}

impl Targets {
    /// `default` is what null means for this method and base.
    pub(crate) fn read(fields: &Fields, default: Option<&[&str]>) -> Result<Self, DeltaError> {
        let include = fields.names("target_modules")?.or_else(|| default.map(Names::of));
        let include =
            include.ok_or_else(|| fields.bad("target_modules", "a list of module names, or an expression"))?;
        let exclude = fields.names("exclude_modules")?.filter(|names| *names != Names::List(Vec::new()));
        let include = Matcher::new("target_modules", include)?;
        let exclude = exclude.map(|names| Matcher::new("exclude_modules", names)).transpose()?;
        Ok(Self { include, exclude, layers: None, saved: SavedNames::read(fields)? })
    }

    /// The targets of a method that knows `layers_to_transform`.
    pub(crate) fn read_with_layers(fields: &Fields, default: Option<&[&str]>) -> Result<Self, DeltaError> {
        let targets = Self::read(fields, default)?;
        let layers = Layers::read(fields)?;
        if layers.is_some() && !matches!(targets.include, Matcher::List(_)) {
            // PEFT refuses to load this, so nothing tells what it would mean.
            let hint = " where target_modules is an expression: select the layers there";
            return Err(fields.unsupported("layers_to_transform", hint));
        }
        Ok(Self { layers, ..targets })
    }

    /// Expressions that every path is held against.
    pub(crate) fn expressions(&self) -> usize {
        let layers = self.layers.as_ref().map_or(0, |layers| layers.patterns.len());
        self.include.expressions() + self.exclude.as_ref().map_or(0, Matcher::expressions) + layers
    }

    /// Whether the config targets this module, which has this `path` in the model the adapter was trained on.
    pub(crate) fn contain(&self, module: &Module, path: &str) -> Result<bool, DeltaError> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(module, path)?
        {
            return Ok(false);
        }
        if self.saved.hide(path) {
            return Ok(false);
        }
        match (&self.layers, &self.include) {
            // A full path is targeted whatever its layer.
            (Some(_), Matcher::List(names)) if names.contains(path) => Ok(true),
            (Some(layers), include) => Ok(include.matches(module, path)? && layers.contain(path)?),
            (None, include) => include.matches(module, path),
        }
    }
}

impl Layers {
    fn read(fields: &Fields) -> Result<Option<Self>, DeltaError> {
        let indices = fields.indices("layers_to_transform")?;
        let patterns = match fields.names("layers_pattern")? {
            None => Vec::new(),
            Some(Names::Pattern(pattern)) if pattern.is_empty() => Vec::new(),
            Some(Names::Pattern(pattern)) => vec![pattern],
            Some(Names::List(patterns)) => patterns,
        };
        let Some(indices) = indices else {
            // PEFT refuses to load this.
            let hint = " without layers_to_transform";
            return if patterns.is_empty() { Ok(None) } else { Err(fields.unsupported("layers_pattern", hint)) };
        };
        let expression = |pattern: &String| {
            // In a group of its own, as `re.match` anchors each alternative of it.
            Expression::new("layers_pattern", &format!(r"\A(?:(?:|.*?\.){pattern}\.(?P<idx>\d+)\.)"))
        };
        let patterns = if patterns.is_empty() {
            vec![Expression::new("layers_pattern", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")?]
        } else {
            check_count("layers_pattern", patterns.len())?;
            patterns.iter().map(expression).collect::<Result<_, _>>()?
        };
        Ok(Some(Self { indices, patterns }))
    }

    /// By the first pattern that matches.
    fn contain(&self, path: &str) -> Result<bool, DeltaError> {
        for pattern in &self.patterns {
            if let Some(index) = pattern.layer_index(path)? {
                return Ok(index.is_some_and(|index| self.indices.contains(&index)));
            }
        }
        Ok(false)
    }
}

/// `rank_pattern` or `alpha_pattern`: the first key that matches a module's path, or its tail after a dot, wins.
pub(crate) struct PatternTable {
    entries: Vec<(Key, f64)>,
}

/// A key of a table. Most are plain names: full paths, one for each module of the base.
enum Key {
    /// A name without any special character but the dot, which stands for any character as in an expression.
    Name(String),
    Expression(Expression),
}

impl Key {
    fn new(field: &'static str, key: String) -> Result<Self, DeltaError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if key.bytes().all(plain) {
            return Ok(Self::Name(key));
        }
        Ok(Self::Expression(Expression::new(field, &format!(r"\A(.*\.)?({key})\z"))?))
    }

    fn matches(&self, path: &str) -> Result<bool, DeltaError> {
        let name = match self {
            Self::Name(name) => name.as_bytes(),
            Self::Expression(expression) => return expression.is_match(path),
        };
        let Some(start) = path.len().checked_sub(name.len()) else { return Ok(false) };
        let (before, tail) = path.as_bytes().split_at(start);
        let alike = tail.iter().zip(name).all(|(byte, of_name)| byte == of_name || *of_name == b'.');
        Ok(alike && before.last().is_none_or(|byte| *byte == b'.'))
    }
}

/// A table of whole numbers as FourierFT and C3A read theirs: the first key that stands behind a dot at the end of a module's
/// path wins, and where none does, the one that is the path.
pub(crate) struct TailTable {
    entries: Vec<(String, Key, usize)>,
}

impl TailTable {
    pub(crate) fn read(fields: &Fields, field: &'static str) -> Result<Self, DeltaError> {
        let mut entries = Vec::new();
        let mut expressions = 0;
        for (key, value) in fields.pattern(field)? {
            let tail = match Key::new(field, key.clone())? {
                Key::Name(name) => Key::Name(name),
                // Without a group of its own, as PEFT writes it.
                Key::Expression(_) => Key::Expression(Expression::new(field, &format!(r"\A(?:.*\.{key}\z)"))?),
            };
            expressions += usize::from(matches!(tail, Key::Expression(_)));
            check_count(field, expressions)?;
            let whole = (0.0..9e15).contains(&value) && value.fract() == 0.0;
            let value =
                if whole { value as usize } else { return Err(fields.bad(field, "an object of whole numbers")) };
            entries.push((key, tail, value));
        }
        Ok(Self { entries })
    }

    pub(crate) fn lookup(&self, path: &str) -> Result<Option<usize>, DeltaError> {
        for (_, tail, value) in &self.entries {
            let is_path = matches!(tail, Key::Name(name) if name.len() == path.len());
            if !is_path && tail.matches(path)? {
                return Ok(Some(*value));
            }
        }
        Ok(self.entries.iter().find(|(key, ..)| key == path).map(|(.., value)| *value))
    }
}

fn check_count(field: &'static str, count: usize) -> Result<(), DeltaError> {
    match count <= MAX_EXPRESSIONS {
        true => Ok(()),
        false => {
            let reason = format!("there are {count} expressions, the limit is {MAX_EXPRESSIONS}");
            Err(DeltaError::Regex { field: field.to_owned(), reason })
        }
    }
}

impl PatternTable {
    pub(crate) fn read(fields: &Fields, field: &'static str) -> Result<Self, DeltaError> {
        let mut entries = Vec::new();
        let mut expressions = 0;
        for (key, value) in fields.pattern(field)? {
            let key = Key::new(field, key)?;
            expressions += usize::from(matches!(key, Key::Expression(_)));
            check_count(field, expressions)?;
            entries.push((key, value));
        }
        Ok(Self { entries })
    }

    /// A table of whole numbers.
    pub(crate) fn read_whole(fields: &Fields, field: &'static str) -> Result<Self, DeltaError> {
        let table = Self::read(fields, field)?;
        let whole = |value: f64| (0.0..9e15).contains(&value) && value.fract() == 0.0;
        match table.entries.iter().all(|(_, value)| whole(*value)) {
            true => Ok(table),
            false => Err(fields.bad(field, "an object of whole numbers")),
        }
    }

    /// Expressions that every path is held against.
    pub(crate) fn expressions(&self) -> usize {
        self.entries.iter().filter(|(key, _)| matches!(key, Key::Expression(_))).count()
    }

    pub(crate) fn lookup(&self, path: &str) -> Result<Option<f64>, DeltaError> {
        for (key, value) in &self.entries {
            if key.matches(path)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// IA3's `feedforward_modules`: a list here matches any tail of the path, dot or not.
pub(crate) struct Feedforward(FeedforwardNames);

enum FeedforwardNames {
    Expression(Expression),
    Tails(Vec<String>),
}

impl Feedforward {
    /// `default` is what null means for this base.
    pub(crate) fn read(fields: &Fields, default: Option<&[&str]>) -> Result<Self, DeltaError> {
        const FIELD: &str = "feedforward_modules";
        match fields.names(FIELD)?.or_else(|| default.map(Names::of)) {
            None => Err(fields.bad(FIELD, "a list of module names, or an expression")),
            Some(Names::Pattern(text)) => Ok(Self(FeedforwardNames::Expression(Expression::full(FIELD, &text)?))),
            Some(Names::List(list)) => Ok(Self(FeedforwardNames::Tails(list))),
        }
    }

    pub(crate) fn contain(&self, path: &str) -> Result<bool, DeltaError> {
        match &self.0 {
            FeedforwardNames::Expression(expression) => expression.is_match(path),
            FeedforwardNames::Tails(tails) => Ok(tails.iter().any(|tail| path.ends_with(tail))),
        }
    }
}

#[cfg(test)]
mod tests;
