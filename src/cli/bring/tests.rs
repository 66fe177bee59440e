//! What people have, brought to what is served.

use super::*;
use crate::delta::safetensors::{HeaderLimits, read_header};

fn pickle() -> Vec<u8> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickle/plain.bin");
    fs::read(fixture).unwrap()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(root.path().join(name), content).unwrap();
    }
    root
}

fn from(folder: &TempDir) -> Result<Brought, BringError> {
    bring(&AdapterSource::Dir(folder.path().to_owned()), Saved::ALL, &Environment::default())
}

#[test]
fn an_adapter_as_peft_saves_it_stays_where_it_is() {
    let root = folder(&[(CONFIG_FILE, b"{}"), (WEIGHTS_FILE, b"x")]);
    let brought = from(&root).unwrap();
    assert_eq!((brought.dir(), brought.notes().len()), (root.path(), 0));
    let root = folder(&[(CONFIG_FILE, b"{}"), (WEIGHTS_FILE, b"x"), ("README.md", b""), ("optimizer.pt", b"")]);
    let notes = from(&root).unwrap().notes().join("\n");
    assert_eq!(notes, "left aside, as no part of the adapter: README.md, optimizer.pt");
}

#[test]
fn the_chat_template_that_was_saved_with_an_adapter_comes_with_it() {
    let of = |files: &[(&str, &[u8])]| {
        let plain: [(&str, &[u8]); 2] = [(CONFIG_FILE, b"{}"), (WEIGHTS_FILE, b"x")];
        let brought = from(&folder(&[&plain, files].concat()))?;
        Ok::<_, BringError>((brought.chat_template().map(<[u8]>::to_vec), brought.notes().join("\n")))
    };
    let (template, notes) = of(&[(CHAT_TEMPLATE_FILE, b"own"), ("tokenizer.json", b"")]).unwrap();
    assert_eq!(template.as_deref(), Some(&b"own"[..]));
    let said =
        "left aside, as no part of the adapter: tokenizer.json\nthe chat template that was saved with it goes with it";
    assert_eq!(notes, said);
    let config = (r"tokenizer_config.json", &br#"{"chat_template": "said"}"#[..]);
    assert_eq!(of(&[config]).unwrap().0.as_deref(), Some(&b"said"[..]));
    assert_eq!(of(&[config, (CHAT_TEMPLATE_FILE, b"own")]).unwrap().0.as_deref(), Some(&b"own"[..]));
    for none in [&[("tokenizer_config.json", &b"{}"[..])], &[(CHAT_TEMPLATE_FILE, &b""[..])]] {
        assert_eq!(of(none).unwrap().0, None);
    }
    for wrong in [("tokenizer_config.json", &b"["[..]), (CHAT_TEMPLATE_FILE, b"\xff")] {
        let refused = of(&[wrong]).unwrap_err();
        assert!(refused.to_string().contains(wrong.0) && refused.exit() == Exit::Rejected, "{refused}");
    }
    // Of converted weights too.
    let root = folder(&[(CONFIG_FILE, b"{}"), ("adapter_model.bin", &pickle()), (CHAT_TEMPLATE_FILE, b"own")]);
    let brought = from(&root).unwrap();
    assert_eq!(brought.folder().chat_template, Some(&b"own"[..]));
    // Left where it is, whatever it is.
    fs::write(root.path().join("tokenizer_config.json"), "[").unwrap();
    let source = AdapterSource::Dir(root.path().to_owned());
    let brought = bring(&source, Saved { chat_template: false, tokens: false }, &Environment::default()).unwrap();
    assert_eq!(brought.folder().chat_template, None);
    assert!(brought.notes()[0].contains("left aside") && brought.notes()[0].contains(CHAT_TEMPLATE_FILE));
}

#[test]
fn the_added_tokens_of_the_tokenizer_that_was_saved_with_an_adapter_come_with_it() {
    let of = |files: &[(&str, &[u8])], saved| {
        let plain: [(&str, &[u8]); 2] = [(CONFIG_FILE, b"{}"), (WEIGHTS_FILE, b"x")];
        let root = folder(&[&plain, files].concat());
        let brought = bring(&AdapterSource::Dir(root.path().to_owned()), saved, &Environment::default())?;
        let tokens = brought.saved_tokens().map(|tokens| String::from_utf8(tokens.to_file().unwrap()).unwrap());
        Ok::<_, BringError>((tokens, brought.notes().join("\n")))
    };
    let tokenizer: (&str, &[u8]) = (
        TOKENIZER_FILE,
        br#"{"model": {"vocab": {}}, "added_tokens": [{"id": 7, "content": "<a>", "special": true}]}"#,
    );
    let config: (&str, &[u8]) = ("tokenizer_config.json", br#"{"eos_token": "<a>"}"#);
    let token = r#"{"id":7,"content":"<a>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}"#;
    let (tokens, notes) = of(&[tokenizer, config], Saved::ALL).unwrap();
    assert_eq!(tokens, Some(format!(r#"{{"added_tokens":[{token}],"eos_token":"<a>"}}"#)));
    assert_eq!(notes, "left aside, as no part of the adapter: tokenizer_config.json");
    assert_eq!(of(&[tokenizer], Saved::ALL).unwrap().0, Some(format!(r#"{{"added_tokens":[{token}]}}"#)));
    assert_eq!(of(&[config], Saved::ALL).unwrap().0, None, "no token was added");
    let broken: (&str, &[u8]) = (TOKENIZER_FILE, b"{");
    let refused = of(&[broken], Saved::ALL).unwrap_err();
    assert!(refused.to_string().contains(TOKENIZER_FILE) && refused.exit() == Exit::Rejected, "{refused}");
    let (tokens, notes) = of(&[broken], Saved { tokens: false, ..Saved::ALL }).unwrap();
    assert!(tokens.is_none() && notes.contains(TOKENIZER_FILE), "{notes}");
}

#[test]
fn pickled_weights_are_converted_and_that_is_said() {
    let config = b"\xef\xbb\xbf{\"r\": 8}";
    let root = folder(&[(CONFIG_FILE, config), ("adapter_model.bin", &pickle())]);
    let brought = from(&root).unwrap();
    let dir = brought.dir().to_owned();
    assert_ne!(dir, root.path());
    assert_eq!(fs::read(dir.join(CONFIG_FILE)).unwrap(), config);
    let weights = fs::read(dir.join(WEIGHTS_FILE)).unwrap();
    let header = read_header(&weights, &HeaderLimits { max_dims: 3, ..HeaderLimits::default() }).unwrap();
    assert!(header.tensors.iter().any(|tensor| tensor.name == "plain" && tensor.shape == [2, 3]));
    assert!(brought.notes()[0].contains("adapter_model.bin was converted"), "{:?}", brought.notes());
    assert_eq!(fs::read(from(&root).unwrap().dir().join(WEIGHTS_FILE)).unwrap(), weights, "one version");
    drop(brought);
    assert!(!dir.exists());
}

#[test]
fn what_cannot_be_brought_is_named_with_its_exit_code() {
    type Files<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(Files<'_>, Exit, &str); 5] = [
        (&[], Exit::NotFound, "has no adapter_config.json"),
        (&[("config.json", b"{}"), ("model.safetensors", b"x")], Exit::Rejected, "is a whole model"),
        (
            &[(CONFIG_FILE, b"{}"), ("adapter_model.bin", b"cos\nsystem\n")],
            Exit::Rejected,
            "adapter_model.bin: it is no file of torch",
        ),
        (
            &[(CONFIG_FILE, b"{}"), (WEIGHTS_FILE, b"version https://git-lfs.github.com/spec/v1\n")],
            Exit::Rejected,
            "git lfs pull",
        ),
        (&[("sql.zip", b"PK")], Exit::Rejected, "unpack it"),
    ];
    for (files, exit, words) in cases {
        let error = from(&folder(files)).unwrap_err();
        assert_eq!(error.exit(), exit, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let missing =
        bring(&AdapterSource::Dir("/does/not/exist".into()), Saved::ALL, &Environment::default()).unwrap_err();
    assert_eq!(missing.exit(), Exit::NotFound);
    let offline = Environment { home: Some("/does/not/exist".into()), ..Environment::default() };
    let mut offline = offline;
    offline.hub.offline = true;
    let uncached = bring(&AdapterSource::Hub("org/name".parse().unwrap()), Saved::ALL, &offline).unwrap_err();
    assert_eq!(uncached.exit(), Exit::NotFound, "{uncached}");
}
