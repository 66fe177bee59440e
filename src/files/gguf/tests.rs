use std::io::Write;

use proptest::prelude::*;

use super::testing::{Value, bytes};
use super::*;

fn header(content: &[u8]) -> Result<GgufHeader, GgufError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    GgufHeader::read(&file, content.len() as u64)
}

fn refused(content: &[u8]) -> String {
    header(content).unwrap_err().to_string()
}

fn small() -> Vec<u8> {
    let texts = ["", "é", "abc"].map(str::to_owned).to_vec();
    let values = [
        ("general.architecture", Value::Text("llama".to_owned())),
        ("a.count", Value::U32(7)),
        ("a.number", Value::F32(0.5)),
        ("a.flag", Value::Bool(true)),
        ("a.texts", Value::Texts(texts)),
        ("a.numbers", Value::I32s(vec![1, -2])),
        ("a.floats", Value::F32s(vec![0.5, f32::NAN])),
    ];
    bytes(&values, &[("w", &[2, 3], 0, vec![0; 24]), ("v", &[4], 1, vec![0; 8])])
}

#[test]
fn values_and_tensors_are_what_was_written() {
    let content = small();
    let found = header(&content).unwrap();
    let metadata = &found.metadata;
    assert_eq!(metadata.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.count("a.count").unwrap(), Some(7));
    assert_eq!((metadata.number("a.number").unwrap(), metadata.number("a.count").unwrap()), (Some(0.5), Some(7.0)));
    assert_eq!(metadata.flag("a.flag").unwrap(), Some(true));
    assert_eq!(metadata.texts("a.texts").unwrap().unwrap(), ["", "é", "abc"]);
    assert_eq!(metadata.numbers("a.numbers").unwrap().unwrap(), [1.0, -2.0]);
    assert!(metadata.numbers("a.floats").unwrap().unwrap()[1].is_nan());
    assert_eq!((metadata.text("none").unwrap(), metadata.shown("a.texts")), (None, "a list of 3 texts".to_owned()));
    let wrong = metadata.count("a.texts").unwrap_err().to_string();
    assert_eq!(wrong, "`a.texts` is a list of 3 texts, expected a whole number of at least 0");
    let w = GgufTensor { name: "w".to_owned(), shape: vec![2, 3], kind: 0, offset: 0 };
    let v = GgufTensor { name: "v".to_owned(), shape: vec![4], kind: 1, offset: 32 };
    assert_eq!(found.tensors, [w, v]);
    assert_eq!(found.data_start + 64, content.len() as u64);
}

#[test]
fn another_format_version_or_byte_order_is_told() {
    let mut content = small();
    assert_eq!(refused(b"PK\x03\x04\0\0\0\0"), "it does not begin with GGUF");
    assert!(refused(b"version https://git-lfs").contains("git lfs pull"));
    content[4..8].copy_from_slice(&1u32.to_le_bytes());
    assert!(refused(&content).contains("version 1"));
    content[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(refused(&content).contains("big-endian"));
    content[4..8].copy_from_slice(&2u32.to_le_bytes());
    assert!(header(&content).is_ok());
}

/// Where a part of the header lies.
fn place(content: &[u8], part: &[u8]) -> usize {
    content.windows(part.len()).position(|window| window == part).unwrap()
}

#[test]
fn a_count_or_a_length_that_cannot_be_is_refused_before_memory_is_taken() {
    let huge = |at: usize, number: u64| {
        let mut content = small();
        content[at..at + 8].copy_from_slice(&number.to_le_bytes());
        refused(&content)
    };
    let of_key = |key: &str, behind: usize| place(&small(), key.as_bytes()) + key.len() + behind;
    for number in [u64::MAX, 1 << 40, 1 << 20] {
        assert!(huge(8, number).contains("tensors: "), "{number}");
        assert!(huge(16, number).contains("values: "), "{number}");
        assert!(huge(24, number).contains("bytes of a name: "), "{number}");
        // Behind a key: the type, and of a list the type of its entries.
        assert!(huge(of_key("general.architecture", 4), number).contains("bytes of a value: "), "{number}");
        assert!(huge(of_key("a.texts", 8), number).contains("entries of a list: "), "{number}");
        assert!(huge(of_key("a.numbers", 8), number).contains("entries of a list: "), "{number}");
        assert!(huge(of_key("a.texts", 16), number).contains("bytes of a value: "), "{number}");
    }
    let columns = place(&small(), &[3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert!(huge(columns, u64::MAX / 2).contains("tensor `w` has the shape"));
    assert!(huge(columns, 0).contains("tensor `w` has the shape [2, 0]"));
}

#[test]
fn what_a_key_or_a_type_cannot_be_is_refused_by_name() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut content = small();
        change(&mut content);
        refused(&content)
    };
    let behind = |key: &str| place(&small(), key.as_bytes()) + key.len();
    assert_eq!(with(&|content| content[behind("a.count")] = 13), "`a.count` has values of the unknown type 13");
    assert!(with(&|content| content[behind("a.texts") + 4] = 9).contains("a list of lists"));
    assert!(with(&|content| content[behind("a.flag") + 4] = 2).contains("`a.flag` is neither true nor false: 2"));
    assert!(with(&|content| content[behind("general.architecture") + 12] = 0xff).contains("is not UTF-8"));
    assert!(with(&|content| content[place(&small(), b"a.count")] = b'\n').contains("is no name"));
    let twice = bytes(&[("a", Value::U32(1)), ("a", Value::U32(1))], &[]);
    assert_eq!(refused(&twice), "`a` is there twice");
    let twice = bytes(&[], &[("w", &[1], 0, vec![0; 4]), ("w", &[1], 0, vec![0; 4])]);
    assert_eq!(refused(&twice), "`w` is there twice");
    for alignment in [0, 4, 33, 1 << 20] {
        let odd = bytes(&[("general.alignment", Value::U32(alignment))], &[]);
        assert!(refused(&odd).contains("a power of two"), "{alignment}");
    }
}

#[test]
fn a_header_that_ends_early_is_refused_wherever_it_ends() {
    let content = small();
    // Behind the last name: dimensions, one size, type, place.
    let end = place(&content, b"\x01\0\0\0\0\0\0\0v") + 9 + 4 + 8 + 4 + 8;
    assert!(header(&content[..end]).is_ok());
    for length in 0..end {
        assert!(header(&content[..length]).is_err(), "{length}");
    }
    // It had these bytes when it was opened.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content[..40]).unwrap();
    assert!(matches!(GgufHeader::read(&file, content.len() as u64), Err(GgufError::Truncated { .. })));
}

proptest! {
    #[test]
    fn no_byte_of_a_header_makes_the_reader_panic(at in 8usize..400, byte: u8, more: [u8; 8]) {
        let mut content = small();
        let at = at.min(content.len() - 9);
        content[at] = byte;
        let _ = header(&content);
        content[at..at + 8].copy_from_slice(&more);
        let _ = header(&content);
    }
}
