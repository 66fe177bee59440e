//! Arguments of launches by name: the structs of `kernels/abi.cuh`, read where they stand, so that what is said here of a kernel is
//! said in the kernel's own words.

use std::collections::BTreeMap;

use crate::emulator::Control;
use crate::support::Failure;

const HEADER: &str = include_str!("../../../kernels/abi.cuh");

/// What a field is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// A number of so many bytes.
    Number(usize),
    /// The address of some of these.
    Pointer(String),
    Struct(String),
}

#[derive(Clone, Debug)]
struct Field {
    offset: usize,
    kind: Kind,
}

#[derive(Clone, Debug, Default)]
struct Layout {
    fields: BTreeMap<String, Field>,
    bytes: usize,
    alignment: usize,
}

/// All structs of the header, and its sizes.
pub(crate) struct Structs {
    by_name: BTreeMap<String, Layout>,
    /// Numbers of each constant.
    sizes: BTreeMap<String, Vec<u64>>,
}

impl Structs {
    /// Read the header.
    pub(crate) fn read() -> Result<Self, Failure> {
        Self::parse(HEADER)
    }

    fn parse(header: &str) -> Result<Self, Failure> {
        let mut structs = Self { by_name: BTreeMap::new(), sizes: BTreeMap::new() };
        let mut open: Option<(String, Layout)> = None;
        for line in header.lines() {
            let line = line.split("//").next().unwrap_or_default().trim();
            if let Some((declaration, value)) = line.strip_prefix("constexpr ").and_then(|rest| rest.split_once(" = "))
            {
                let name = declaration.rsplit(' ').next().unwrap_or_default().to_owned();
                let numbers = value.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
                structs.sizes.insert(name, numbers.collect());
            } else if let Some(name) = line.strip_prefix("struct ").and_then(|rest| rest.strip_suffix('{')) {
                open = Some((name.trim().to_owned(), Layout { alignment: 1, ..Layout::default() }));
            } else if line == "};" {
                let Some((name, mut layout)) = open.take() else { continue };
                layout.bytes = layout.bytes.next_multiple_of(layout.alignment);
                structs.by_name.insert(name, layout);
            } else if let Some((name, layout)) = &mut open
                && let Some(declaration) = line.strip_suffix(';')
            {
                let field = structs.field(declaration).ok_or_else(|| format!("abi.cuh, {name}: `{line}`"))?;
                layout.push(field);
            }
        }
        Ok(structs)
    }

    /// Name, kind, size and alignment of a field.
    fn field(&self, declaration: &str) -> Option<(String, Kind, [usize; 2])> {
        let (kind, name) = declaration.rsplit_once([' ', '*'])?;
        let name = name.trim().to_owned();
        let is_pointer = declaration.contains('*');
        let what = kind.replace('*', " ").split_whitespace().find(|word| *word != "const")?.to_owned();
        if is_pointer {
            return Some((name, Kind::Pointer(what), [8, 8]));
        }
        let bytes = match what.as_str() {
            "u32" | "i32" | "f32" => 4,
            "u64" | "f64" => 8,
            _ => {
                let layout = self.by_name.get(&what)?;
                return Some((name, Kind::Struct(what), [layout.bytes, layout.alignment]));
            }
        };
        Some((name, Kind::Number(bytes), [bytes, bytes]))
    }

    /// A size of the header.
    pub(crate) fn number(&self, name: &str) -> Result<u64, Failure> {
        self.sizes
            .get(name)
            .and_then(|numbers| numbers.first().copied())
            .ok_or_else(|| format!("abi.cuh has no {name}").into())
    }

    /// Rows, outputs and shared bytes of a block of a GEMM, by its kernel's name.
    pub(crate) fn gemm_block(&self, kernel: &str) -> Result<[u64; 3], Failure> {
        let numbers = self.sizes.get(&kernel.to_uppercase()).and_then(|numbers| numbers[..].try_into().ok());
        numbers.ok_or_else(|| format!("abi.cuh has no block of {kernel}").into())
    }

    /// A struct in these bytes.
    pub(crate) fn view<'a>(&'a self, device: &'a Control, name: &str, bytes: Vec<u8>) -> Result<View<'a>, Failure> {
        let layout = self.by_name.get(name).ok_or_else(|| format!("abi.cuh has no struct {name}"))?;
        if layout.bytes != bytes.len() {
            return Err(format!("{name} has {} bytes, the launch gave {}", layout.bytes, bytes.len()).into());
        }
        Ok(View { structs: self, device, layout, bytes })
    }
}

impl Layout {
    fn push(&mut self, (name, kind, [bytes, alignment]): (String, Kind, [usize; 2])) {
        let offset = self.bytes.next_multiple_of(alignment);
        self.fields.insert(name, Field { offset, kind });
        (self.bytes, self.alignment) = (offset + bytes, self.alignment.max(alignment));
    }
}

/// A struct of the device's, as the host reads it.
pub(crate) struct View<'a> {
    structs: &'a Structs,
    device: &'a Control,
    layout: &'a Layout,
    bytes: Vec<u8>,
}

impl<'a> View<'a> {
    /// Kind and place of a field, by its path, such as `x.cols`.
    fn find(&self, path: &str) -> Result<(&'a Kind, usize), Failure> {
        let (mut layout, mut at) = (self.layout, 0);
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let field = layout.fields.get(name).ok_or_else(|| format!("no field {path}"))?;
            at += field.offset;
            match &field.kind {
                kind if names.peek().is_none() => return Ok((kind, at)),
                Kind::Struct(inner) => layout = &self.structs.by_name[inner],
                _ => break,
            }
        }
        Err(format!("{path} is no field").into())
    }

    /// A struct that lies within this one.
    pub(crate) fn inner(&self, path: &str) -> Result<View<'a>, Failure> {
        let (Kind::Struct(inner), at) = self.find(path)? else { return Err(format!("{path} is no struct").into()) };
        let layout = &self.structs.by_name[inner];
        let bytes = self.bytes[at..at + layout.bytes].to_vec();
        Ok(View { structs: self.structs, device: self.device, layout, bytes })
    }

    /// A number, or an address.
    pub(crate) fn get(&self, path: &str) -> Result<u64, Failure> {
        let (kind, at) = self.find(path)?;
        let bytes = match kind {
            Kind::Number(bytes) => *bytes,
            Kind::Pointer(_) => 8,
            Kind::Struct(_) => return Err(format!("{path} is a struct").into()),
        };
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(&self.bytes[at..at + bytes]);
        Ok(u64::from_le_bytes(word))
    }

    /// The struct that a field points to.
    pub(crate) fn follow(&self, path: &str) -> Result<View<'a>, Failure> {
        self.list(path, 1)?.pop().ok_or_else(|| format!("{path} points to nothing").into())
    }

    /// As many of them, from there on.
    pub(crate) fn list(&self, path: &str, count: u64) -> Result<Vec<View<'a>>, Failure> {
        self.list_from(path, 0, count)
    }

    /// As many of them, from the `first` on.
    pub(crate) fn list_from(&self, path: &str, first: u64, count: u64) -> Result<Vec<View<'a>>, Failure> {
        let (kind, _) = self.find(path)?;
        let Kind::Pointer(name) = kind else { return Err(format!("{path} is no pointer").into()) };
        let structs = self.structs;
        let layout = structs.by_name.get(name).ok_or_else(|| format!("{path} points to no struct"))?;
        let at = self.get(path)? + first * layout.bytes as u64;
        let bytes = self.read(at, layout.bytes * count as usize)?;
        let view = |bytes: &[u8]| View { structs, device: self.device, layout, bytes: bytes.to_vec() };
        Ok(bytes.chunks_exact(layout.bytes).map(view).collect())
    }

    /// The address in a table of addresses, as the struct that it is of.
    pub(crate) fn entry(&self, path: &str, index: u64) -> Result<Option<View<'a>>, Failure> {
        let (kind, _) = self.find(path)?;
        let Kind::Pointer(name) = kind else { return Err(format!("{path} is no pointer").into()) };
        let table = self.get(path)?;
        let at = if table == 0 { 0 } else { word(&self.read(table + 8 * index, 8)?) };
        if at == 0 {
            return Ok(None);
        }
        let layout = self.structs.by_name.get(name).ok_or_else(|| format!("{path} points to no struct"))?;
        let bytes = self.read(at, layout.bytes)?;
        Ok(Some(View { structs: self.structs, device: self.device, layout, bytes }))
    }

    fn read(&self, at: u64, bytes: usize) -> Result<Vec<u8>, Failure> {
        self.device.read(at, bytes).ok_or_else(|| format!("{bytes} bytes at {at:#x} are not there").into())
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
