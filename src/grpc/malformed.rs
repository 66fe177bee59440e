//! Where bytes stop being a message. prost knows, and tells only people; so the way to the field is looked for again by the
//! descriptors, with the rules of <https://protobuf.dev/programming-guides/encoding/>. Only bytes that prost has refused
//! come here.

use std::collections::HashMap;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use super::pb;

/// Messages inside each other that prost reads.
const MAX_DEPTH: usize = 100;

/// The way to the field at which `bytes` are no message of the type `message` (its full name): names from without, joined
/// by dots, a member of a oneof by the name of that. `message` where no field is at fault.
pub(super) fn broken_field(message: &str, bytes: &[u8]) -> String {
    let Ok(files) = FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET) else { return "message".to_owned() };
    let types = Types::of(&files);
    let mut way = match types.0.get(format!(".{message}").as_str()) {
        Some(message) => types.scan(message, &mut &bytes[..], 0, MAX_DEPTH).err().unwrap_or_default().0,
        None => Vec::new(),
    };
    way.reverse();
    if way.is_empty() { "message".to_owned() } else { way.join(".") }
}

/// Fields on the way to the one that is broken, from within.
#[derive(Default)]
struct Broken<'a>(Vec<&'a str>);

impl<'a> Broken<'a> {
    fn within(mut self, name: &'a str) -> Self {
        self.0.push(name);
        self
    }
}

/// How a value lies in the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Varint,
    Eight,
    Length,
    Group,
    GroupEnd,
    Four,
}

/// Messages by full name, with a leading dot as descriptors write them.
struct Types<'a>(HashMap<String, &'a DescriptorProto>);

impl<'a> Types<'a> {
    fn of(files: &'a FileDescriptorSet) -> Self {
        let mut types = Self(HashMap::new());
        for file in &files.file {
            file.message_type.iter().for_each(|message| types.add(&format!(".{}", file.package()), message));
        }
        types
    }

    fn add(&mut self, scope: &str, message: &'a DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        message.nested_type.iter().for_each(|nested| self.add(&name, nested));
        self.0.insert(name, message);
    }

    /// Go over a message that ends where `limit` bytes are left. Whatever lies in it may run over that end: prost sees so
    /// only behind it.
    fn scan(
        &self,
        message: &'a DescriptorProto,
        bytes: &mut &[u8],
        limit: usize,
        depth: usize,
    ) -> Result<(), Broken<'a>> {
        let is_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
        while bytes.len() > limit {
            let (number, wire) = key(bytes).ok_or_else(Broken::default)?;
            let known = message.field.iter().find(|field| u32::try_from(field.number()) == Ok(number));
            let Some(field) = known else {
                skip(number, wire, bytes, depth).ok_or_else(Broken::default)?;
                continue;
            };
            // An entry of a map is not a message to prost: its fields have no names.
            let named = |broken: Broken<'a>| if is_entry { broken } else { broken.within(shown(message, field)) };
            self.scan_value(field, wire, bytes, depth).map_err(named)?;
        }
        if bytes.len() == limit { Ok(()) } else { Err(Broken::default()) }
    }

    fn scan_value(
        &self,
        field: &'a FieldDescriptorProto,
        wire: Wire,
        bytes: &mut &[u8],
        depth: usize,
    ) -> Result<(), Broken<'a>> {
        if field.r#type() == Type::Message {
            let message = self.0.get(field.type_name()).ok_or_else(Broken::default)?;
            let limit = if wire == Wire::Length && depth > 0 { end_of_length(bytes) } else { None };
            return self.scan(message, bytes, limit.ok_or_else(Broken::default)?, depth - 1);
        }
        let fits = match field.r#type() {
            Type::String => {
                wire == Wire::Length && value(wire, bytes).is_some_and(|text| std::str::from_utf8(text).is_ok())
            }
            number => {
                let own = wire_of(number);
                let packed = own != Wire::Length && wire == Wire::Length && field.label() == Label::Repeated;
                if packed { skip_packed(own, bytes).is_some() } else { wire == own && value(wire, bytes).is_some() }
            }
        };
        if fits { Ok(()) } else { Err(Broken::default()) }
    }
}

/// As prost names it: a member of a oneof by the name of that.
fn shown<'a>(message: &'a DescriptorProto, field: &'a FieldDescriptorProto) -> &'a str {
    let index = field.oneof_index.filter(|_| !field.proto3_optional());
    let oneof = index.and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?));
    oneof.map_or_else(|| field.name(), |oneof| oneof.name())
}

fn wire_of(number: Type) -> Wire {
    match number {
        Type::Double | Type::Fixed64 | Type::Sfixed64 => Wire::Eight,
        Type::Float | Type::Fixed32 | Type::Sfixed32 => Wire::Four,
        Type::Int64
        | Type::Uint64
        | Type::Int32
        | Type::Uint32
        | Type::Bool
        | Type::Enum
        | Type::Sint32
        | Type::Sint64 => Wire::Varint,
        Type::String | Type::Bytes | Type::Message | Type::Group => Wire::Length,
    }
}

/// Go over numbers one after the other.
fn skip_packed(wire: Wire, bytes: &mut &[u8]) -> Option<()> {
    let limit = end_of_length(bytes)?;
    while bytes.len() > limit {
        value(wire, bytes)?;
    }
    (bytes.len() == limit).then_some(())
}

/// Read a length: how many bytes are left where what it measures ends.
fn end_of_length(bytes: &mut &[u8]) -> Option<usize> {
    let length = usize::try_from(varint(bytes)?).ok()?;
    bytes.len().checked_sub(length)
}

/// Number of a field, and how its value lies there.
fn key(bytes: &mut &[u8]) -> Option<(u32, Wire)> {
    let key = u32::try_from(varint(bytes)?).ok()?;
    let wire = match key & 7 {
        0 => Wire::Varint,
        1 => Wire::Eight,
        2 => Wire::Length,
        3 => Wire::Group,
        4 => Wire::GroupEnd,
        5 => Wire::Four,
        _ => return None,
    };
    (key >> 3 > 0).then_some((key >> 3, wire))
}

/// Go over the next value, if it is whole: what lies inside where it has a length.
fn value<'b>(wire: Wire, bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = match wire {
        Wire::Varint => return varint(bytes).map(|_| &[][..]),
        Wire::Eight => 8,
        Wire::Four => 4,
        Wire::Length => usize::try_from(varint(bytes)?).ok()?,
        Wire::Group | Wire::GroupEnd => return None,
    };
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(value)
}

/// Go over the value of a field that is not known: it may be a group, which the protocol itself has none of.
fn skip(number: u32, wire: Wire, bytes: &mut &[u8], depth: usize) -> Option<()> {
    if wire != Wire::Group {
        return value(wire, bytes).map(drop);
    }
    loop {
        match key(bytes)? {
            (end, Wire::GroupEnd) => return (end == number).then_some(()),
            (number, wire) => skip(number, wire, bytes, depth.checked_sub(1)?)?,
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            // The tenth has room for one bit.
            return (index < 9 || *byte < 2).then_some(number);
        }
    }
    None
}
