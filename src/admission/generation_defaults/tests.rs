use super::GenerationDefaultsError as E;
use super::*;

fn of(generation_config: Option<&str>, config: &str) -> Result<GenerationDefaults, GenerationDefaultsError> {
    let config = parse_object(config.as_bytes()).unwrap();
    GenerationDefaults::read(generation_config.map(str::as_bytes), &config, 1000)
}

fn read(generation_config: &str, config: &str) -> Result<GenerationDefaults, GenerationDefaultsError> {
    of(Some(generation_config), config)
}

fn defaults(generation_config: &str) -> GenerationDefaults {
    read(generation_config, "{}").unwrap()
}

#[test]
fn without_do_sample_it_is_greedy_whatever_else_is_written() {
    for text in [
        "{}",
        r#"{"do_sample": false, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}"#,
        r#"{"temperature": 0.6, "top_p": 0.9}"#,
        r#"{"do_sample": null}"#,
    ] {
        assert_eq!(defaults(text), GenerationDefaults::default(), "{text}");
    }
}

#[test]
fn with_do_sample_what_is_written_counts_and_what_is_not_is_neutral() {
    let all = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1}"#;
    let expected = GenerationDefaults {
        temperature: 0.6,
        top_k: 20,
        top_p: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.1,
        ..GenerationDefaults::default()
    };
    assert_eq!(defaults(all), expected);
    let sampled = GenerationDefaults { temperature: 1.0, ..GenerationDefaults::default() };
    assert_eq!(defaults(r#"{"do_sample": true}"#), sampled);
    assert_eq!(defaults(r#"{"do_sample": true, "top_k": 0, "top_p": 1.5}"#), sampled);
    // As transformers: the likeliest token is kept whatever top-p says.
    assert_eq!(defaults(r#"{"do_sample": true, "top_p": 0}"#).top_p, f32::MIN_POSITIVE);
}

#[test]
fn the_repetition_penalty_counts_without_do_sample() {
    assert_eq!(defaults(r#"{"repetition_penalty": 1.05}"#).repetition_penalty, 1.05);
}

#[test]
fn end_of_sequence_is_a_number_or_a_list_of_the_file_that_counts() {
    let eos = |generation_config: Option<&str>, config: &str| of(generation_config, config).unwrap().eos_token_ids;
    assert_eq!(eos(Some(r#"{"eos_token_id": 7}"#), r#"{"eos_token_id": 2}"#), [7]);
    assert_eq!(eos(Some(r#"{"eos_token_id": [9, 7, 9]}"#), "{}"), [7, 9]);
    assert_eq!(eos(Some(r#"{"eos_token_id": -1}"#), "{}"), [0u32; 0]);
    assert_eq!(eos(Some(r#"{"eos_token_id": [5, -1]}"#), "{}"), [5]);
    // transformers reads nothing off config.json beside a generation_config.json.
    assert_eq!(eos(Some(r#"{"eos_token_id": null}"#), r#"{"eos_token_id": 2}"#), [0u32; 0]);
    assert_eq!(eos(Some("{}"), r#"{"eos_token_id": [3, 2]}"#), [0u32; 0]);
    assert_eq!(eos(None, r#"{"eos_token_id": [3, 2]}"#), [2, 3]);
    assert_eq!(eos(None, r#"{"eos_token_id": 2}"#), [2]);
    assert_eq!(eos(None, r#"{"text_config": {"eos_token_id": [1, 106]}}"#), [1, 106]);
    assert_eq!(eos(None, "{}"), [0u32; 0]);
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    for (text, wanted) in [
        (r#"{"do_sample": "yes"}"#, "do_sample"),
        (r#"{"do_sample": true, "temperature": -0.1}"#, "temperature"),
        (r#"{"do_sample": true, "temperature": 1e300}"#, "temperature"),
        (r#"{"do_sample": true, "temperature": "0.7"}"#, "temperature"),
        (r#"{"do_sample": true, "top_k": 2.5}"#, "top_k"),
        (r#"{"do_sample": true, "top_k": -1}"#, "top_k"),
        (r#"{"do_sample": true, "temperature": 0.0}"#, "temperature"),
        (r#"{"do_sample": true, "top_p": -0.5}"#, "top_p"),
        (r#"{"do_sample": true, "min_p": 1.5}"#, "min_p"),
        (r#"{"do_sample": true, "min_p": -0.5}"#, "min_p"),
        (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
        (r#"{"repetition_penalty": 2}"#, "repetition_penalty"),
        (r#"{"repetition_penalty": "1.1"}"#, "repetition_penalty"),
        (r#"{"eos_token_id": []}"#, "eos_token_id"),
        (r#"{"eos_token_id": "2"}"#, "eos_token_id"),
        (r#"{"eos_token_id": [2, null]}"#, "eos_token_id"),
        (r#"{"eos_token_id": [[2]]}"#, "eos_token_id"),
        (r#"{"eos_token_id": [2, "3"]}"#, "eos_token_id"),
    ] {
        let Err(E::BadField { field, file: GENERATION_CONFIG, .. }) = read(text, "{}") else { panic!("{text}") };
        assert_eq!(field, wanted, "{text}");
    }
    let Err(E::BadField { field: "eos_token_id", file: CONFIG, .. }) = read("{}", r#"{"eos_token_id": "2"}"#) else {
        panic!("config.json is looked at even where it does not count")
    };
    assert!(matches!(read("[]", "{}"), Err(E::NotAnObject { file: GENERATION_CONFIG })));
    assert!(matches!(read("{", "{}"), Err(E::Json { file: GENERATION_CONFIG, .. })));
    assert!(matches!(read(r#"{"eos_token_id": NaN}"#, "{}"), Err(E::Json { file: GENERATION_CONFIG, .. })));
}

#[test]
fn an_end_that_the_model_cannot_generate_is_left_out_and_named() {
    let of = |generation, config| {
        let read = read(generation, config).unwrap();
        (read.eos_token_ids, read.unreachable_eos)
    };
    assert_eq!(of(r#"{"eos_token_id": [1000, 2, 1000, 999]}"#, "{}"), (vec![2, 999], vec![1000]));
    assert_eq!(of(r#"{"eos_token_id": 4294967298}"#, "{}"), (vec![], vec![4_294_967_298]));
}

#[test]
fn settings_this_server_does_not_have_are_named_unless_they_are_off() {
    let text = r#"{"no_repeat_ngram_size": 3, "num_beams": 1, "suppress_tokens": [5], "bad_words_ids": [],
        "typical_p": 1.0, "min_length": 0, "max_length": 20, "guidance_scale": null}"#;
    assert_eq!(defaults(text).ignored, ["no_repeat_ngram_size", "suppress_tokens"]);
}

#[test]
fn without_a_file_of_its_own_config_json_has_the_word_on_sampling_too() {
    let config =
        r#"{"do_sample": true, "temperature": 0.25, "top_k": 7, "repetition_penalty": 1.5, "eos_token_id": 3}"#;
    let alone = of(None, config).unwrap();
    let expected = GenerationDefaults {
        temperature: 0.25,
        top_k: 7,
        repetition_penalty: 1.5,
        eos_token_ids: vec![3],
        ..GenerationDefaults::default()
    };
    assert_eq!(alone, expected);
    let beside = read(r#"{"eos_token_id": 3}"#, config).unwrap();
    assert_eq!(beside, GenerationDefaults { eos_token_ids: vec![3], ..GenerationDefaults::default() });
}
