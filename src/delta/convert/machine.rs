//! A pickle read as data. A pickle is a program for a stack machine, and what makes it dangerous is that it can call any
//! function. Here nothing is ever called: the machine builds values, it knows by name the few functions with which torch
//! builds tensors and dictionaries, and any other name ends it.
//!
//! Everything is bounded by the length of the text: values live once, in one table, and are referred to by number, so
//! copies cost nothing, nothing is nested on our own stack, and no length is believed before its bytes are there.

use std::collections::HashMap;

/// Most values of one pickle; a state dict of a thousand tensors has some ten thousand.
const MAX_VALUES: usize = 2 << 20;

/// Number of a value in [`Pickle::values`].
pub(super) type Id = u32;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// A function or class that torch writes, by its full name.
    Name(String),
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// `Name` called with a tuple. Nothing was run.
    Call(Id, Id),
    /// What torch keeps outside the pickle.
    Persistent(Id),
    /// None, truth values, fractions: nothing that a tensor is made of.
    Other,
}

/// Why a text is no pickle of tensors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It ends too early.
    #[error("it ends in the middle of an instruction at byte {at}")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// An instruction that torch does not write.
    #[error("it has the instruction {code:#04x} at byte {at}, which a file of tensors does not need")]
    Instruction {
        /// Code of the instruction.
        code: u8,
        /// Where.
        at: usize,
    },
    /// A function or class that no tensor needs.
    #[error("it names {name}, which a file of tensors does not need; nothing of it was run")]
    Name {
        /// Module and name, shortened.
        name: String,
    },
    /// Instructions that do not fit each other.
    #[error("its instructions do not fit each other at byte {at}")]
    Malformed {
        /// Where.
        at: usize,
    },
    /// More values than any adapter has.
    #[error("it has more than {max} values")]
    TooManyValues {
        /// The limit.
        max: usize,
    },
}

/// Names that may occur, and nothing is done by them: tensors, their types, dictionaries.
fn is_known(name: &str) -> bool {
    let storage = name.strip_prefix("torch.").and_then(|name| name.strip_suffix("Storage"));
    matches!(
        name,
        "collections.OrderedDict"
            | "torch._utils._rebuild_tensor_v2"
            | "torch._utils._rebuild_tensor"
            | "torch._utils._rebuild_parameter"
            | "torch._tensor._rebuild_from_type_v2"
            | "torch.nn.parameter.Parameter"
            | "torch.Tensor"
            | "torch.Size"
            | "torch.storage.UntypedStorage"
    ) || storage.is_some_and(|kind| kind.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// The values of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Read a pickle to its end.
    pub(super) fn read(text: &[u8]) -> Result<Self, PickleError> {
        let mut machine =
            Machine { text, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let root = loop {
            if let Some(root) = machine.step()? {
                break root;
            }
        };
        Ok(Self { values: machine.values, root })
    }

    /// The value the whole pickle is.
    pub(super) fn root(&self) -> &Value {
        self.get(self.root)
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        // Ids come from the machine alone, which gives only numbers of values it has.
        self.values.get(id as usize).unwrap_or(&Value::Other)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn name(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Name(name) => Some(name),
            _ => None,
        }
    }

    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// A tuple of sizes.
    pub(super) fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.tuple(id)?.iter().map(|item| self.size(*item)).collect()
    }
}

struct Machine<'a> {
    text: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn malformed(&self) -> PickleError {
        PickleError::Malformed { at: self.at }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PickleError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(PickleError::Truncated { at: self.at })?;
        self.at += count;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| PickleError::Truncated { at: self.at })
    }

    /// Up to a line's end.
    fn line(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or(PickleError::Truncated { at: self.at })?;
        let line = self.take(length)?;
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) -> Result<(), PickleError> {
        if self.values.len() >= MAX_VALUES {
            return Err(PickleError::TooManyValues { max: MAX_VALUES });
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// Take the uppermost value; those below a mark are not there.
    fn pop(&mut self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.malformed());
        }
        self.stack.pop().ok_or_else(|| self.malformed())
    }

    fn top(&self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(<[Id]>::last).copied().ok_or_else(|| self.malformed())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed())?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, count: usize) -> Result<(), PickleError> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn global(&mut self, module: &[u8], name: &[u8]) -> Result<(), PickleError> {
        let name = format!("{}.{}", String::from_utf8_lossy(module), String::from_utf8_lossy(name));
        if is_known(&name) {
            return self.push(Value::Name(name));
        }
        Err(PickleError::Name { name: name.chars().take(128).flat_map(char::escape_debug).collect() })
    }

    fn text(&mut self, length: usize) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| self.malformed())?;
        self.push(Value::Text(text))
    }

    fn call(&mut self) -> Result<(), PickleError> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        match self.values.get(callee as usize) {
            Some(Value::Name(name)) if name == "collections.OrderedDict" => {
                // Its entries are set one by one; given at once they would be lost here.
                match self.values.get(arguments as usize) {
                    Some(Value::Tuple(given)) if given.is_empty() => self.push(Value::Dict(Vec::new())),
                    _ => Err(self.malformed()),
                }
            }
            Some(Value::Name(_)) => self.push(Value::Call(callee, arguments)),
            _ => Err(self.malformed()),
        }
    }

    fn append(&mut self, new: Vec<Id>) -> Result<(), PickleError> {
        let list = self.top()? as usize;
        match self.values.get_mut(list) {
            Some(Value::List(items)) => items.extend(new),
            _ => return Err(self.malformed()),
        }
        Ok(())
    }

    fn set(&mut self, new: &[Id]) -> Result<(), PickleError> {
        let dict = self.top()? as usize;
        let (pairs, []) = new.as_chunks::<2>() else { return Err(self.malformed()) };
        match self.values.get_mut(dict) {
            Some(Value::Dict(entries)) => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => return Err(self.malformed()),
        }
        Ok(())
    }

    fn remember(&mut self, place: u32) -> Result<(), PickleError> {
        let value = self.top()?;
        self.memo.insert(place, value);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), PickleError> {
        let value = *self.memo.get(&place).ok_or_else(|| self.malformed())?;
        if self.stack.len() >= MAX_VALUES {
            return Err(PickleError::TooManyValues { max: MAX_VALUES });
        }
        self.stack.push(value);
        Ok(())
    }

    /// Whole numbers of up to eight bytes, as torch writes the sizes of large storages.
    fn long(&mut self) -> Result<(), PickleError> {
        let length = usize::from(self.number::<1>()?[0]);
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Err(self.malformed());
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 8];
        number[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(number)))
    }

    /// One instruction; the value of the whole at the last of them. Codes and names are those of Python's `pickletools`.
    fn step(&mut self) -> Result<Option<Id>, PickleError> {
        let at = self.at;
        let [code] = self.number::<1>()?;
        match code {
            0x80 => drop(self.number::<1>()?),   // PROTO
            0x95 => drop(self.number::<8>()?),   // FRAME
            b'.' => return self.pop().map(Some), // STOP
            b'(' => self.marks.push(self.stack.len()),
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => self.stack_global()?,
            b'R' | 0x81 => self.call()?, // REDUCE, NEWOBJ
            b'b' => drop(self.pop()?),   // BUILD: attributes, such as the `_metadata` of a state dict
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }
            b'K' => {
                let [number] = self.number()?;
                self.push(Value::Int(number.into()))?;
            }
            b'M' => {
                let number = u16::from_le_bytes(self.number()?);
                self.push(Value::Int(number.into()))?;
            }
            b'J' => {
                let number = i32::from_le_bytes(self.number()?);
                self.push(Value::Int(number.into()))?;
            }
            0x8a => self.long()?,
            b'X' => {
                let length = u32::from_le_bytes(self.number()?);
                self.text(length as usize)?;
            }
            0x8c => {
                let [length] = self.number()?;
                self.text(length.into())?;
            }
            b'N' | 0x88 | 0x89 => self.push(Value::Other)?, // None, True, False
            b'G' => {
                self.number::<8>()?;
                self.push(Value::Other)?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            b'q' => {
                let [place] = self.number()?;
                self.remember(place.into())?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.number()?);
                self.remember(place)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?, // MEMOIZE
            b'h' => {
                let [place] = self.number()?;
                self.recall(place.into())?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.number()?);
                self.recall(place)?;
            }
            _ => return Err(PickleError::Instruction { code, at }),
        }
        Ok(None)
    }

    fn stack_global(&mut self) -> Result<(), PickleError> {
        let (name, module) = (self.pop()?, self.pop()?);
        let text = |id: Id| match self.values.get(id as usize) {
            Some(Value::Text(text)) => Some(text.clone().into_bytes()),
            _ => None,
        };
        let (Some(module), Some(name)) = (text(module), text(name)) else { return Err(self.malformed()) };
        self.global(&module, &name)
    }
}
