use proptest::prelude::*;

use super::*;

/// A file with this header and this many bytes of data.
fn file(json: &str, data: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

fn read(json: &str, data: usize) -> Result<Header, SafetensorsError> {
    read_header(&file(json, data), &HeaderLimits::default())
}

fn tensor(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
    "b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},
    "a.weight":{"data_offsets":[0,16],"shape":[2,2],"dtype":"F32"}}   "#;

#[test]
fn a_good_file_is_read_in_the_order_of_its_data() {
    let bytes = file(GOOD, 22);
    let header = read_header(&bytes, &HeaderLimits::default()).unwrap();
    let names: Vec<_> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a.weight", "b"]);
    assert_eq!((header.tensors[0].shape.as_slice(), header.tensors[1].dtype), (&[2, 2][..], TensorDtype::BF16));
    assert_eq!(header.metadata["format"], "pt");
    assert_eq!(header.data(&bytes, &header.tensors[1]).unwrap().len(), 6);
}

#[test]
fn what_the_reference_library_writes_is_accepted() {
    let data = [0u8; 24];
    let view = |shape: Vec<usize>, bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape, bytes);
    let tensors = [("x", view(vec![2, 4], &data[..16]).unwrap()), ("y", view(vec![4], &data[..8]).unwrap())];
    let bytes = safetensors::serialize(tensors, None).unwrap();
    let header = read_header(&bytes, &HeaderLimits::default()).unwrap();
    assert_eq!(header.tensors.len(), 2);
}

#[test]
fn lengths_are_refused_before_anything_is_read() {
    let read = |length: u64, rest: &[u8]| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(rest);
        read_header(&bytes, &HeaderLimits::default()).unwrap_err()
    };
    assert!(matches!(read_header(b"1234567", &HeaderLimits::default()), Err(SafetensorsError::TooShort { bytes: 7 })));
    assert_eq!(read(0, b""), SafetensorsError::NotAnObject);
    assert_eq!(read(1, b"{"), SafetensorsError::NotAnObject);
    assert_eq!(read(3, b"{}"), SafetensorsError::HeaderTruncated { bytes: 3, available: 2 });
    for bytes in [(1 << 23) + 1, u64::MAX] {
        assert_eq!(read(bytes, b"{}"), SafetensorsError::HeaderTooLarge { bytes, max: 1 << 23 });
    }
    assert_eq!(read(3, b" {}"), SafetensorsError::NotAnObject);
    assert_eq!(read(2, b"{}"), SafetensorsError::NoTensors);
}

#[test]
fn other_formats_are_told_by_their_first_bytes() {
    for (start, words) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0"[..], "git lfs pull"),
        (b"PK\x03\x04archive/data.pkl", "as torch.save writes"),
        (b"GGUF\x03\0\0\0\0\0", "a GGUF file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0", "unpack it"),
        (b"\x89HDF\r\n\x1a\n\0", "in another format"),
    ] {
        let error = read_header(start, &HeaderLimits::default()).unwrap_err();
        assert!(matches!(error, SafetensorsError::OtherFormat { .. }) && error.to_string().contains(words), "{error}");
    }
}

#[test]
fn duplicates_are_refused_at_every_level() {
    let a = tensor("F32", "[1]", 0, 4);
    let cases = [
        format!(r#"{{"a":{a},"a":{a}}}"#),
        format!(r#"{{"a":{a},"\u0061":{a}}}"#),
        r#"{"__metadata__":{"k":"1","k":"2"}}"#.to_owned(),
        r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}}"#.to_owned(),
    ];
    for json in cases {
        assert!(matches!(read(&json, 4), Err(SafetensorsError::Duplicate { .. })), "{json}");
    }
}

#[test]
fn names_are_plain() {
    for name in ["", "a/b", "..", "a..b", "\\u0000", "é", "a b", "a\\\\b", &"x".repeat(513)] {
        let json = format!(r#"{{"{name}":{}}}"#, tensor("F32", "[1]", 0, 4));
        assert!(matches!(read(&json, 4), Err(SafetensorsError::BadName { .. })), "{name}");
    }
}

#[test]
fn shapes_and_dtypes_outside_the_served_set_name_their_tensor() {
    let read = |dtype: &str, shape: &str, end| {
        let error = read(&format!(r#"{{"w":{}}}"#, tensor(dtype, shape, 0, end)), 64).unwrap_err();
        assert!(error.to_string().contains("tensor w"), "{error}");
        error
    };
    for dtype in ["U64", "I8", "BOOL", "F8_E4M3", "f32", ""] {
        assert!(matches!(read(dtype, "[1]", 4), SafetensorsError::UnsupportedDtype { .. }), "{dtype}");
    }
    assert!(matches!(read("F32", "[]", 4), SafetensorsError::BadRank { dims: 0, max: 4, .. }));
    assert!(matches!(read("F32", "[1,1,1,1,1]", 4), SafetensorsError::BadRank { dims: 5, max: 4, .. }));
    assert!(matches!(read("F32", "[0]", 0), SafetensorsError::EmptyTensor { .. }));
    let huge = u64::MAX;
    assert!(matches!(read("F32", &format!("[{huge},{huge}]"), 4), SafetensorsError::SizeOverflow { .. }));
    assert!(matches!(read("F32", &format!("[{}]", 1u64 << 62), 0), SafetensorsError::SizeOverflow { .. }));
    assert!(matches!(read("F32", &format!("[{huge},0,{huge}]"), 0), SafetensorsError::SizeOverflow { .. }));
    assert!(matches!(read("F32", "[0,4]", 4), SafetensorsError::WrongSize { expected: 0, end: 4, .. }));
    assert!(matches!(read("F32", "[2]", 4), SafetensorsError::WrongSize { expected: 8, end: 4, .. }));
}

#[test]
fn descriptions_have_exactly_the_three_keys() {
    let extra = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#;
    assert!(matches!(read(extra, 4), Err(SafetensorsError::UnknownKey { key, .. }) if key == "x"));
    let short = r#"{"w":{"dtype":"F32","data_offsets":[0,4]}}"#;
    assert!(matches!(read(short, 4), Err(SafetensorsError::MissingKey { key: "shape", .. })));
    for json in [
        r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"w":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#,
        r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
        r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#,
        r#"{"w":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}"#,
        r#"{"w":3}"#,
        r#"{"__metadata__":{"k":1}}"#,
        r#"{"w""#,
        "{}{}",
    ] {
        assert!(matches!(read(json, 4), Err(SafetensorsError::Malformed { .. })), "{json}");
    }
}

#[test]
fn every_byte_of_the_data_belongs_to_one_tensor() {
    let two = |a: (u64, u64), b: (u64, u64)| {
        format!(r#"{{"a":{},"b":{}}}"#, tensor("F32", "[1]", a.0, a.1), tensor("F32", "[1]", b.0, b.1))
    };
    assert!(read(&two((4, 8), (0, 4)), 8).is_ok());
    let overlap = read(&two((0, 4), (0, 4)), 8);
    assert!(matches!(overlap, Err(SafetensorsError::NotContiguous { begin: 0, expected: 4, .. })));
    let hole = read(&two((0, 4), (8, 12)), 12);
    assert!(matches!(hole, Err(SafetensorsError::NotContiguous { begin: 8, expected: 4, .. })));
    for data in [7, 9] {
        let result = read(&two((0, 4), (4, 8)), data);
        assert!(matches!(result, Err(SafetensorsError::DataLength { expected: 8, .. })), "{data}");
    }
    let backwards = read(&format!(r#"{{"a":{}}}"#, tensor("F32", "[1]", 4, 0)), 4);
    assert!(matches!(backwards, Err(SafetensorsError::WrongSize { .. })));
}

#[test]
fn bombs_within_the_size_limit_are_refused_at_the_first_broken_rule() {
    let limits = HeaderLimits::default();
    let rank = format!(r#"{{"w":{{"dtype":"F32","shape":[{}1]}}}}"#, "1,".repeat(500_000));
    assert!(matches!(read(&rank, 0), Err(SafetensorsError::BadRank { dims: 5, .. })));
    let deep = format!(r#"{{"w":{{"x":{}}}}}"#, "[".repeat(500_000));
    assert!(matches!(read(&deep, 0), Err(SafetensorsError::UnknownKey { .. })));
    let deep = format!(r#"{{"w":{{"shape":{}}}}}"#, "[".repeat(500_000));
    assert!(matches!(read(&deep, 0), Err(SafetensorsError::Malformed { .. })));
    let few = HeaderLimits { max_tensors: 10, ..limits };
    let many: Vec<_> = (0..11).map(|i| format!(r#""t{i}":{}"#, tensor("F32", "[1]", i * 4, i * 4 + 4))).collect();
    let result = read_header(&file(&format!("{{{}}}", many.join(",")), 44), &few);
    assert_eq!(result, Err(SafetensorsError::TooManyTensors { max: 10 }));
}

#[test]
fn the_first_number_that_is_not_finite_is_named() {
    let words = |at: usize, value: f32| {
        let mut numbers = vec![1.0f32; 5000];
        numbers[at] = value;
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>()
    };
    for at in [0, 1, 1023, 1024, 1025, 4999] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let result = check_finite("w", TensorDtype::F32, &words(at, value));
            assert!(matches!(result, Err(SafetensorsError::NonFinite { index, .. }) if index == at));
        }
    }
    assert_eq!(check_finite("w", TensorDtype::F32, &words(7, f32::MAX)), Ok(()));
    let twice = [0u16, 0x7c00, 0xfc01].map(u16::to_le_bytes).concat();
    let result = check_finite("w", TensorDtype::F16, &twice);
    assert_eq!(result, Err(SafetensorsError::NonFinite { tensor: "w".into(), index: 1, value: f32::INFINITY }));
    assert_eq!(check_finite("w", TensorDtype::BF16, &twice), Ok(()), "0x7c00 is finite in bf16");
    let result = check_finite("w", TensorDtype::BF16, &0xff80u16.to_le_bytes());
    assert!(matches!(result, Err(SafetensorsError::NonFinite { value, .. }) if value == f32::NEG_INFINITY));
}

#[test]
fn numbers_that_become_infinite_in_bf16_are_found_exactly() {
    for bits in [0x7f7f_7fffu32, 0x7f7f_8000, 0xff7f_7fff, 0xff7f_8000, 0x7f7f_ffff, 0, 0x7f80_0000] {
        let rounded = half::bf16::from_f32(f32::from_bits(bits));
        let accepted = check_fits_bf16("w", TensorDtype::F32, &bits.to_le_bytes()).is_ok();
        assert_eq!(accepted, rounded.is_finite(), "{bits:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_files_never_panic_and_what_is_accepted_the_reference_accepts(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file(GOOD, 22);
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(header) = read_header(&bytes, &HeaderLimits::default()) {
            let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            prop_assert_eq!(reference.len(), header.tensors.len());
            for tensor in &header.tensors {
                let expected = reference.tensor(&tensor.name).unwrap();
                prop_assert_eq!(expected.data(), header.data(&bytes, tensor).unwrap());
                prop_assert_eq!(expected.shape(), &tensor.shape[..]);
            }
        }
    }

    #[test]
    fn finding_what_is_not_finite_agrees_with_looking_at_each(bits in prop::collection::vec(any::<u16>(), 0..64)) {
        let bytes: Vec<_> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let first = |finite: fn(u16) -> bool| bits.iter().position(|bits| !finite(*bits));
        let found = |dtype| match check_finite("w", dtype, &bytes) {
            Err(SafetensorsError::NonFinite { index, .. }) => Some(index),
            _ => None,
        };
        prop_assert_eq!(found(TensorDtype::F16), first(|bits| half::f16::from_bits(bits).is_finite()));
        prop_assert_eq!(found(TensorDtype::BF16), first(|bits| half::bf16::from_bits(bits).is_finite()));
    }
}

#[test]
fn a_number_alone_is_said_to_have_no_dimension() {
    let said = |dims| SafetensorsError::BadRank { tensor: "t".into(), dims, max: 2 }.to_string();
    assert_eq!(said(0), "tensor t has 0 dimensions, 1 to 2 are allowed");
    assert_eq!(said(3), "tensor t has 3 dimensions or more, 1 to 2 are allowed");
}
