//! Files as torch wrote them (`tools/golden/pickles.py`), and pickles made to do harm.

use std::io::{Cursor, Write};
use std::path::PathBuf;

use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use zip::write::{SimpleFileOptions, ZipWriter};

use super::machine::Pickle;
use super::tensors::OwnedTensor;
use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickle").join(format!("{name}.bin"))
}

fn convert(name: &str) -> Result<Vec<u8>, ConvertError> {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out.safetensors");
    pickle_to_safetensors(&fixture(name), &to)?;
    Ok(std::fs::read(to).unwrap())
}

/// The numbers of a tensor of every type, as float32.
fn numbers(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("{other:?}"),
    }
}

/// The numbers at these places of `arange / 4 - 1`.
fn at(places: &[usize]) -> Vec<f32> {
    places.iter().map(|place| *place as f32 / 4.0 - 1.0).collect()
}

#[test]
fn tensors_come_out_as_torch_had_them() {
    let bytes = convert("plain").unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let cases: [(&str, Dtype, &[usize], Vec<usize>); 11] = [
        ("plain", Dtype::F32, &[2, 3], (0..6).collect()),
        ("half", Dtype::F16, &[3, 2], (0..6).collect()),
        ("bfloat16", Dtype::BF16, &[3, 2], (0..6).collect()),
        ("double", Dtype::F64, &[2, 2], (0..4).collect()),
        ("vector", Dtype::F32, &[5], (0..5).collect()),
        ("transposed", Dtype::F32, &[3, 4], vec![0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]),
        ("rows", Dtype::F32, &[2, 4], (4..12).collect()),
        ("columns", Dtype::F32, &[6, 2], (0..24).step_by(2).collect()),
        ("last", Dtype::F32, &[4], (20..24).collect()),
        ("parameter", Dtype::F32, &[2, 2], (0..4).collect()),
        (
            "permuted",
            Dtype::F32,
            &[4, 2, 3],
            (0..4).flat_map(|k| (0..2).flat_map(move |i| (0..3).map(move |j| i * 12 + j * 4 + k))).collect(),
        ),
    ];
    assert_eq!(file.len(), cases.len());
    for (name, dtype, shape, places) in cases {
        let view = file.tensor(name).unwrap();
        assert_eq!((view.dtype(), view.shape()), (dtype, shape), "{name}");
        assert_eq!(numbers(&file, name), at(&places), "{name}");
    }
    // The same tensors in other words are the same bytes, so an adapter has one version.
    for name in ["ordered", "nested", "protocol4"] {
        assert_eq!(convert(name).unwrap(), bytes, "{name}");
    }
}

#[test]
fn what_is_no_dictionary_of_tensors_is_refused_by_name() {
    for (name, words) in [
        ("legacy", "the format torch had before 1.6"),
        ("integers", "numbers of type torch.LongStorage"),
        ("mixed", "its entry \"note\" is no tensor"),
        ("list", "no dictionary of tensors"),
        ("empty", "no dictionary of tensors"),
        ("object", "it names pathlib.PurePosixPath"),
    ] {
        let text = convert(name).unwrap_err().to_string();
        assert!(text.contains(words), "{name}: {text}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (content, words) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "git lfs pull"),
        (b"", "does not begin as one"),
        (b"PK\x03\x04", "no file of torch"),
        (b"\x80\x02}q\x00.", "does not begin as one"),
    ] {
        let place = folder.path().join("x.bin");
        std::fs::write(&place, content).unwrap();
        let text = pickle_to_safetensors(&place, &folder.path().join("out")).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }
}

/// An archive with this pickle and storages of these bytes.
fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, content: &[u8]| {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(name, options).unwrap();
        zip.write_all(content).unwrap();
    };
    add("archive/data.pkl", pickle);
    for (key, content) in storages {
        add(&format!("archive/data/{key}"), content);
    }
    zip.finish().unwrap().into_inner()
}

fn read(pickle: &[u8], storages: &[(&str, &[u8])]) -> Result<Tensors, ConvertError> {
    archive::read(Cursor::new(archive(pickle, storages)))
}

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

fn int(number: i32) -> Vec<u8> {
    [b"J", number.to_le_bytes().as_slice()].concat()
}

/// `{"t": tensor}` with these parts.
fn tensor(key: &str, count: i32, offset: i32, shape: &[i32], stride: &[i32]) -> Vec<u8> {
    let tuple = |numbers: &[i32]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| int(*number)).collect();
        [b"(", numbers.as_slice(), b"t"].concat()
    };
    let parts: [&[u8]; 13] = [
        b"\x80\x02}(",
        &text("t"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(key),
        &text("cpu"),
        &int(count),
        b"tQ",
        &int(offset),
        &tuple(shape),
        &tuple(stride),
        b"\x89ccollections\nOrderedDict\n)RtRu.",
    ];
    parts.concat()
}

#[test]
fn a_tensor_stays_within_its_numbers() {
    let storage = [0u8; 24];
    let storages = [("0", storage.as_slice())];
    assert!(read(&tensor("0", 6, 0, &[2, 3], &[3, 1]), &storages).is_ok());
    assert!(read(&tensor("0", 6, 5, &[1], &[1]), &storages).is_ok());
    let refused = [
        tensor("0", 6, 1, &[2, 3], &[3, 1]),
        tensor("0", 6, 6, &[1], &[1]),
        tensor("0", 6, -1, &[1], &[1]),
        tensor("0", 6, 0, &[7], &[1]),
        tensor("0", 6, 0, &[2], &[6]),
        tensor("0", 6, 0, &[2], &[-1]),
        tensor("0", 6, 0, &[2, 3], &[1]),
        tensor("0", 6, 0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0]),
        tensor("0", 6, 0, &[i32::MAX], &[0]),
        tensor("0", 6, i32::MAX, &[2, 2], &[i32::MAX, i32::MAX]),
        tensor("0", 6, 0, &[1; 9], &[1; 9]),
        tensor("0", 5, 0, &[6], &[1]),
        tensor("1", 6, 0, &[6], &[1]),
        tensor("../0", 6, 0, &[6], &[1]),
        tensor("", 6, 0, &[6], &[1]),
    ];
    for pickle in refused {
        assert!(read(&pickle, &storages).is_err());
    }
}

#[test]
fn nothing_is_called_and_what_would_be_is_named() {
    for (pickle, name) in [
        (&b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R."[..], "posix.system"),
        (b"cos\nsystem\n(S'ls'\ntR.", "os.system"),
        (b"c__builtin__\neval\n.", "__builtin__.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", "builtins.exec"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"ctorch.hub.x\nStorage\n.", "torch.hub.x.Storage"),
        (b"cnumpy.core.multiarray\n_reconstruct\n.", "numpy.core.multiarray._reconstruct"),
        (b"c\x1b[31m\nx\n.", r"\u{1b}[31m.x"),
    ] {
        let error = read(pickle, &[]).unwrap_err();
        assert!(matches!(&error, ConvertError::Pickle(PickleError::Name { .. })), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    for code in [b'i', b'o', b'I', b'S', b'P', b'0', b'2', 0x82, 0x8b, 0x97] {
        let error = Pickle::read(&[0x80, 2, code, 0, 0]).unwrap_err();
        assert!(matches!(error, PickleError::Instruction { at: 2, .. }), "{error}");
    }
}

#[test]
fn what_would_grow_or_nest_without_end_does_not() {
    // Each tuple holds the one before it twice: 2^60 values if they were copied.
    let doubled: Vec<u8> = (0..60).flat_map(|place| [b'q', place, b'h', place, 0x86]).collect();
    assert!(Pickle::read(&[b")".as_slice(), &doubled, b"."].concat()).is_ok());
    // A million levels deep.
    let deep = [b")".as_slice(), &[0x85; 1 << 20], b"."].concat();
    assert!(Pickle::read(&deep).is_ok());
    let many = vec![b')'; (2 << 20) + 1];
    assert!(matches!(Pickle::read(&many), Err(PickleError::TooManyValues { .. })));
    let recalled = [b")q\x00".as_slice(), &b"h\x00".repeat(2 << 20)].concat();
    assert!(Pickle::read(&recalled).is_err());
    // Four gigabytes that are not there.
    assert!(matches!(Pickle::read(b"X\xff\xff\xff\xffa"), Err(PickleError::Truncated { .. })));
    assert!(Pickle::read(&[b"\x8a\xff".as_slice(), &[1; 255], b"."].concat()).is_err(), "a number of 255 bytes");
    // A list and a dictionary that hold themselves.
    assert!(Pickle::read(b"]q\x00h\x00a.").is_ok());
    assert!(read(b"}q\x00(X\x0a\x00\x00\x00state_dicth\x00u.", &[]).is_err());
    for broken in
        [&b"."[..], b"(", b"t.", b"(.", b")s.", b"}(K\x01u.", b"h\x09.", b"q\x00.", b"Q.", b")R.", b"K\x01K\x02R.", b""]
    {
        assert!(Pickle::read(broken).is_err(), "{broken:?}");
    }
}

#[test]
fn parts_are_joined_and_a_part_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let part = |name: &str, tensors: &[(&str, f32)]| {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, value)| {
                (*name, OwnedTensor { dtype: Dtype::F32, shape: vec![1], bytes: value.to_le_bytes().to_vec() })
            })
            .collect();
        let bytes = safetensors::serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)), None).unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
    };
    part("1", &[("a", 1.0), ("c", 3.0)]);
    part("2", &[("b", 2.0)]);
    part("3", &[("a", 9.0)]);
    std::fs::write(folder.path().join("4"), "no").unwrap();
    let join = |parts: &[&str]| {
        let to = folder.path().join("out");
        let parts: Vec<_> = parts.iter().map(|part| (*part).to_owned()).collect();
        join_safetensors(folder.path(), &parts, &to).map(|()| std::fs::read(to).unwrap())
    };
    let bytes = join(&["1", "2"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(["a", "b", "c"].map(|name| numbers(&file, name)), [vec![1.0], vec![2.0], vec![3.0]]);
    assert_eq!(join(&["2", "1"]).unwrap(), bytes);
    assert!(matches!(join(&["1", "3"]), Err(ConvertError::Duplicate { tensor }) if tensor == "a"));
    assert!(matches!(join(&["1", "4"]), Err(ConvertError::Part { file, .. }) if file == "4"));
}

proptest! {
    /// A file that was damaged anywhere is read or refused, and never a panic.
    #[test]
    fn damaged_files_are_refused_or_read(
        byte in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>(), whole: bool,
    ) {
        let mut bytes = std::fs::read(fixture("plain")).unwrap();
        let index = byte.index(bytes.len());
        bytes[index] = value;
        if !whole {
            let end = cut.index(bytes.len());
            bytes.truncate(end);
        }
        drop(archive::read(Cursor::new(bytes)));
    }

    #[test]
    fn any_text_is_a_pickle_or_a_reason(text in prop::collection::vec(any::<u8>(), 0..512)) {
        drop(Pickle::read(&text));
    }

    /// Instructions that torch writes, in any order.
    #[test]
    fn any_order_of_instructions_is_a_pickle_or_a_reason(
        codes in prop::collection::vec(prop::sample::select(
            [&b"}"[..], b")", b"]", b"(", b"t", b"u", b"s", b"a", b"e", b"b", b"Q", b"R", b"K\x01", b"q\x00", b"h\x00", b"N",
             b"\x85", b"\x86", b"X\x01\x00\x00\x00t", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n",
             b"ctorch._utils\n_rebuild_tensor_v2\n"].to_vec()), 0..40),
    ) {
        let mut text = codes.concat();
        text.push(b'.');
        drop(read(&text, &[("0", &[0; 4])]));
    }
}
