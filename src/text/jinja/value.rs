//! Values as Python has them.

use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use super::budget::{Budget, ELEMENT_BYTES, MAX_NESTING};
use super::error::RenderError;
use super::numbers;

const _: () = assert!(size_of::<Value>() <= ELEMENT_BYTES, "an element takes more than it is charged for");

/// A value of a template.
#[derive(Clone, Debug)]
pub enum Value {
    /// A variable or attribute that does not exist, and its name. It prints as nothing and has no attributes.
    Undefined(Arc<str>),
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number. Python's have no limit; what does not fit fails.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// Text.
    Text(Arc<str>),
    /// Text that `safe` or `escape` made: what is added to it is escaped.
    Markup(Arc<str>),
    /// A list, a tuple, or a view of a dict.
    Sequence(Kind, Rc<Sequence>),
    /// A dict, in the order in which it was written.
    Dict(Rc<Dict>),
    /// `range(start, stop, step)`.
    Range(i64, i64, i64),
    /// Something of the rendering, and where the machine keeps it.
    Object(Object, usize),
    /// A method of a value.
    Method(Rc<(Value, Arc<str>)>),
    /// A function of the environment.
    Function(Function),
}

/// What a sequence is to Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[…]`.
    List,
    /// `(…)`.
    Tuple,
    /// What `groupby` gives: a tuple with names.
    Group,
    /// `dict.keys()`.
    Keys,
    /// `dict.values()`.
    Values,
    /// `dict.items()`.
    Items,
}

/// Things with a state, which live as long as the rendering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// `namespace(…)`.
    Namespace,
    /// A macro, or the body of a call block.
    Macro,
    /// `loop`.
    Loop,
    /// What filters give that are lazy in Python: it can be iterated once.
    Generator,
    /// `cycler(…)`.
    Cycler,
    /// `joiner(…)`.
    Joiner,
}

/// Functions that a template finds in its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
}

/// Elements, and how many levels of values are inside each other here.
#[derive(Debug)]
pub struct Sequence {
    pub(super) elements: Vec<Value>,
    nesting: u32,
}

/// Entries, and how many levels of values are inside each other here.
#[derive(Debug)]
pub struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    nesting: u32,
}

impl Value {
    /// Text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(Arc::from(text))
    }

    /// A list; `None` where it is nested too deep.
    #[must_use]
    pub fn list(elements: Vec<Value>) -> Option<Self> {
        Self::sequence(Kind::List, elements)
    }

    /// A dict with these keys; `None` where it is nested too deep. A key that comes again replaces the one before.
    #[must_use]
    pub fn dict(entries: impl IntoIterator<Item = (String, Value)>) -> Option<Self> {
        let mut dict: Vec<(Value, Value)> = Vec::new();
        for (key, value) in entries {
            dict.push((Self::text(&key), value));
        }
        Self::from_entries(dict)
    }

    pub(super) fn sequence(kind: Kind, elements: Vec<Value>) -> Option<Self> {
        let nesting = 1 + elements.iter().map(Value::nesting).max().unwrap_or(0);
        (nesting <= MAX_NESTING).then(|| Self::Sequence(kind, Rc::new(Sequence { elements, nesting })))
    }

    /// Keys are taken as they are: they differ.
    pub(super) fn from_entries(entries: Vec<(Value, Value)>) -> Option<Self> {
        let deepest = entries.iter().map(|(key, value)| key.nesting().max(value.nesting())).max();
        let nesting = 1 + deepest.unwrap_or(0);
        (nesting <= MAX_NESTING).then(|| Self::Dict(Rc::new(Dict { entries, nesting })))
    }

    fn nesting(&self) -> u32 {
        match self {
            Self::Sequence(_, sequence) => sequence.nesting,
            Self::Dict(dict) => dict.nesting,
            Self::Method(method) => 1 + method.0.nesting(),
            _ => 0,
        }
    }

    pub(super) fn as_text(&self) -> Option<&Arc<str>> {
        match self {
            Self::Text(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// Booleans are numbers in Python.
    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Python's truth.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) | Self::Markup(text) => !text.is_empty(),
            Self::Sequence(_, sequence) => !sequence.elements.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::Range(start, stop, step) => numbers::range_length(*start, *stop, *step) > 0,
            Self::Object(..) | Self::Method(_) | Self::Function(_) => true,
        }
    }

    /// The type's name as Python's messages have it.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::Markup(_) => "Markup",
            Self::Sequence(Kind::List, _) => "list",
            Self::Sequence(Kind::Tuple | Kind::Group, _) => "tuple",
            Self::Sequence(Kind::Keys, _) => "dict_keys",
            Self::Sequence(Kind::Values, _) => "dict_values",
            Self::Sequence(Kind::Items, _) => "dict_items",
            Self::Dict(_) => "dict",
            Self::Range(..) => "range",
            Self::Object(Object::Namespace, _) => "Namespace",
            Self::Object(Object::Macro, _) => "Macro",
            Self::Object(Object::Loop, _) => "LoopContext",
            Self::Object(Object::Generator, _) => "generator",
            Self::Object(Object::Cycler, _) => "Cycler",
            Self::Object(Object::Joiner, _) => "Joiner",
            Self::Method(_) => "method",
            Self::Function(_) => "function",
        }
    }

    /// Python's `str`.
    pub(super) fn to_text(&self, budget: &mut Budget) -> Result<Arc<str>, RenderError> {
        match self {
            Self::Text(text) | Self::Markup(text) => Ok(Arc::clone(text)),
            _ => {
                let mut out = String::new();
                self.print(&mut out, budget)?;
                Ok(Arc::from(out))
            }
        }
    }

    /// Append Python's `str`.
    pub(super) fn print(&self, out: &mut String, budget: &mut Budget) -> Result<(), RenderError> {
        match self {
            Self::Undefined(_) => Ok(()),
            Self::Text(text) | Self::Markup(text) => {
                budget.bytes(text.len())?;
                out.push_str(text);
                Ok(())
            }
            _ => self.represent(out, budget),
        }
    }

    /// Append Python's `repr`.
    pub(super) fn represent(&self, out: &mut String, budget: &mut Budget) -> Result<(), RenderError> {
        budget.step()?;
        budget.bytes(8)?;
        match self {
            Self::Undefined(_) => out.push_str("Undefined"),
            Self::None => out.push_str("None"),
            Self::Bool(true) => out.push_str("True"),
            Self::Bool(false) => out.push_str("False"),
            Self::Int(value) => out.push_str(&value.to_string()),
            Self::Float(value) => out.push_str(&numbers::float(*value)),
            Self::Text(text) => represent_text(text, out, budget)?,
            Self::Markup(text) => {
                out.push_str("Markup(");
                represent_text(text, out, budget)?;
                out.push(')');
            }
            Self::Sequence(kind, sequence) => represent_sequence(*kind, &sequence.elements, out, budget)?,
            Self::Dict(dict) => {
                out.push('{');
                for (index, (key, value)) in dict.entries.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    key.represent(out, budget)?;
                    out.push_str(": ");
                    value.represent(out, budget)?;
                }
                out.push('}');
            }
            Self::Range(start, stop, 1) => out.push_str(&format!("range({start}, {stop})")),
            Self::Range(start, stop, step) => out.push_str(&format!("range({start}, {stop}, {step})")),
            Self::Object(..) | Self::Method(_) | Self::Function(_) => {
                out.push_str(&format!("<{}>", self.type_name()));
            }
        }
        Ok(())
    }
}

fn represent_sequence(
    kind: Kind,
    elements: &[Value],
    out: &mut String,
    budget: &mut Budget,
) -> Result<(), RenderError> {
    let (open, close) = match kind {
        Kind::List => ("[", "]"),
        Kind::Tuple | Kind::Group => ("(", if elements.len() == 1 { ",)" } else { ")" }),
        Kind::Keys => ("dict_keys([", "])"),
        Kind::Values => ("dict_values([", "])"),
        Kind::Items => ("dict_items([", "])"),
    };
    out.push_str(open);
    for (index, element) in elements.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        element.represent(out, budget)?;
    }
    out.push_str(close);
    Ok(())
}

fn represent_text(text: &str, out: &mut String, budget: &mut Budget) -> Result<(), RenderError> {
    budget.bytes(text.len().saturating_mul(2))?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => {
                out.push('\\');
                out.push(character);
            }
            _ if is_printable(character) => out.push(character),
            _ => {
                let code = u32::from(character);
                // Writing to a string does not fail.
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
    Ok(())
}

/// Python's `str.isprintable`, but for code points that are not assigned. Supplementary private use is the caller's, who
/// may mark text with it, and stays as it is.
fn is_printable(character: char) -> bool {
    !(character.is_control()
        || (character != ' ' && character.is_whitespace())
        || matches!(
            u32::from(character),
            0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f
                | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xfffe | 0xffff | 0x1bca0..=0x1bca3
                | 0x1d173..=0x1d17a | 0xe0001 | 0xe0020..=0xe007f
        ))
}
