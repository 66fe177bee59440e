//! Which modules a PEFT config means: the rules of PEFT's `check_target_module_exists`.

use fancy_regex::{Regex, RegexBuilder};

use super::fields::{Fields, Names};
use crate::delta::DeltaError;
use crate::delta::layout::{Module, ModuleKind};

/// Longest expression accepted, in bytes; and the most backtracking steps one match may take. Expressions come from
/// uploads.
const MAX_EXPRESSION: usize = 8 << 10;
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

    fn layer_index(&self, path: &str) -> Result<Option<usize>, DeltaError> {
        let captures = self.regex.captures(path).map_err(|error| self.failed(&error))?;
        Ok(captures.and_then(|captures| captures.name("idx")?.as_str().parse().ok()))
    }
}

enum Matcher {
    Expression(Expression),
    /// All linear modules but the head.
    AllLinear,
    /// Exact paths or `.name` suffixes.
    List(Vec<String>),
}

impl Matcher {
    fn new(field: &'static str, names: Names) -> Result<Self, DeltaError> {
        match names {
            Names::Pattern(text) if text == "all-linear" && field == "target_modules" => Ok(Self::AllLinear),
            Names::Pattern(text) => Ok(Self::Expression(Expression::full(field, &text)?)),
            Names::List(list) => Ok(Self::List(list)),
        }
    }

    fn matches(&self, module: &Module) -> Result<bool, DeltaError> {
        match self {
            Self::Expression(expression) => expression.is_match(&module.path),
            Self::AllLinear => Ok(module.kind == ModuleKind::Linear && module.layer().is_some()),
            Self::List(list) => Ok(list.iter().any(|name| is_suffix(&module.path, name))),
        }
    }
}

/// The path itself or its tail after a dot.
fn is_suffix(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The modules a config targets.
pub(crate) struct Targets {
    include: Matcher,
    exclude: Option<Matcher>,
    layers: Option<Vec<usize>>,
    layer_patterns: Vec<Expression>,
}

impl Targets {
    pub(crate) fn read(fields: &Fields) -> Result<Self, DeltaError> {
        let include = fields.names("target_modules")?;
        let include =
            include.ok_or_else(|| fields.bad("target_modules", "a list of module names, or an expression"))?;
        let exclude = fields.names("exclude_modules")?.filter(|names| *names != Names::List(Vec::new()));
        let layers = fields.indices("layers_to_transform")?;
        let patterns = match fields.names("layers_pattern")? {
            None => Vec::new(),
            Some(Names::Pattern(pattern)) if pattern.is_empty() => Vec::new(),
            Some(Names::Pattern(pattern)) => vec![pattern],
            Some(Names::List(patterns)) => patterns,
        };
        let layer_patterns = if patterns.is_empty() {
            vec![Expression::new("layers_pattern", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")?]
        } else {
            let expression = |pattern: &String| format!(r"\A(?:|.*?\.){pattern}\.(?P<idx>\d+)\.");
            patterns.iter().map(|p| Expression::new("layers_pattern", &expression(p))).collect::<Result<_, _>>()?
        };
        let include = Matcher::new("target_modules", include)?;
        let exclude = exclude.map(|names| Matcher::new("exclude_modules", names)).transpose()?;
        Ok(Self { include, exclude, layers, layer_patterns })
    }

    /// Whether the config targets this module.
    pub(crate) fn contain(&self, module: &Module) -> Result<bool, DeltaError> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(module)?
        {
            return Ok(false);
        }
        if !self.include.matches(module)? {
            return Ok(false);
        }
        // PEFT filters by layer only where targets are a list.
        match (&self.layers, &self.include) {
            (Some(layers), Matcher::List(_)) => self.in_layers(layers, module),
            _ => Ok(true),
        }
    }

    fn in_layers(&self, layers: &[usize], module: &Module) -> Result<bool, DeltaError> {
        for pattern in &self.layer_patterns {
            if let Some(index) = pattern.layer_index(&module.path)? {
                return Ok(layers.contains(&index));
            }
        }
        Ok(false)
    }
}

/// `rank_pattern` or `alpha_pattern`: the first key that matches a module's path, or its tail after a dot, wins.
pub(crate) struct PatternTable {
    entries: Vec<(Expression, f64)>,
}

impl PatternTable {
    pub(crate) fn read(fields: &Fields, field: &'static str) -> Result<Self, DeltaError> {
        let entry = |(key, value): (String, f64)| Ok((Expression::new(field, &format!(r"\A(.*\.)?({key})\z"))?, value));
        Ok(Self { entries: fields.pattern(field)?.into_iter().map(entry).collect::<Result<_, DeltaError>>()? })
    }

    pub(crate) fn lookup(&self, path: &str) -> Result<Option<f64>, DeltaError> {
        for (expression, value) in &self.entries {
            if expression.is_match(path)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// IA3's `feedforward_modules`: a list here matches any tail of the path, dot or not.
pub(crate) struct Feedforward(Option<FeedforwardNames>);

enum FeedforwardNames {
    Expression(Expression),
    Tails(Vec<String>),
}

impl Feedforward {
    pub(crate) fn read(fields: &Fields) -> Result<Self, DeltaError> {
        Ok(Self(match fields.names("feedforward_modules")? {
            None => None,
            Some(Names::Pattern(text)) => {
                Some(FeedforwardNames::Expression(Expression::full("feedforward_modules", &text)?))
            }
            Some(Names::List(list)) => Some(FeedforwardNames::Tails(list)),
        }))
    }

    pub(crate) fn contain(&self, module: &Module) -> Result<bool, DeltaError> {
        match &self.0 {
            None => Ok(false),
            Some(FeedforwardNames::Expression(expression)) => expression.is_match(&module.path),
            Some(FeedforwardNames::Tails(tails)) => Ok(tails.iter().any(|tail| module.path.ends_with(tail))),
        }
    }
}
