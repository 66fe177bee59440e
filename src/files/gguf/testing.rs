//! Writes GGUF files that nobody else would write.

use std::path::Path;

/// A value to write.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A tensor to write: name, shape with rows first, ggml's number of its type, its bytes.
pub(crate) type Tensor<'a> = (&'a str, &'a [u64], u32, Vec<u8>);

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn list<T>(out: &mut Vec<u8>, kind: u32, items: &[T], mut each: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    items.iter().for_each(|item| each(out, item));
}

/// The header and the tensors' bytes, with the alignment that files have by default.
pub(crate) fn bytes(values: &[(&str, Value)], tensors: &[Tensor<'_>]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for (key, value) in values {
        text(&mut out, key);
        match value {
            Value::U32(number) => out.extend([4u32.to_le_bytes(), number.to_le_bytes()].concat()),
            Value::F32(number) => out.extend([6u32.to_le_bytes(), number.to_le_bytes()].concat()),
            Value::Bool(value) => out.extend([&7u32.to_le_bytes()[..], &[u8::from(*value)]].concat()),
            Value::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
            Value::Texts(items) => list(&mut out, 8, items, |out, item| text(out, item)),
            Value::I32s(items) => list(&mut out, 5, items, |out, item| out.extend(item.to_le_bytes())),
            Value::F32s(items) => list(&mut out, 6, items, |out, item| out.extend(item.to_le_bytes())),
        }
    }
    let mut data = Vec::new();
    for (name, shape, kind, content) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| out.extend(size.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(content);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// Write [`bytes`] to a file.
pub(crate) fn write(path: &Path, values: &[(&str, Value)], tensors: &[Tensor<'_>]) {
    std::fs::write(path, bytes(values, tensors)).unwrap();
}
