use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::types::Sha256Digest;

fn receipt() -> Receipt {
    let version = |byte: u8| hex::encode([byte; 32]).parse().unwrap();
    let mut logprobs = LogprobHasher::default();
    [-0.25, -1.5].into_iter().for_each(|logprob| logprobs.add(logprob));
    let part = |name: &str, byte, weight| PartRecord { name: name.parse().unwrap(), version: version(byte), weight };
    Receipt {
        polydelta_receipt: FORMAT,
        origin: Origin {
            program: "1.2.3".into(),
            base_sha256: hex::encode([1; 32]).parse().unwrap(),
            config_sha256: Sha256Digest([2; 32]),
            numerics: NumericsClass {
                device: "cpu".into(),
                isa: "avx2".into(),
                target: "x86_64-unknown-linux-gnu".into(),
                weights: "bf16".into(),
                compute: "bf16".into(),
                kv: "bf16".into(),
                kv_tile: 16,
            },
        },
        delta: DeltaRecord::Mix { version: version(3), parts: vec![part("a", 4, 0.7), part("org/b", 5, -0.3)] },
        active_from: Some(0),
        prompt_token_ids: vec![1, 70, 5],
        sampling: SamplingRecord {
            temperature: 0.8,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: u64::MAX,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: [(7, -1.5), (12, 2.0)].into(),
        },
        stopping: StoppingRecord { max_tokens: 8, min_tokens: 1, stop: vec!["\"é\n".into()], stop_token_ids: vec![2] },
        prompt_logprobs_sha256: None,
        choices: vec![
            ChoiceRecord {
                token_ids: vec![9, 10],
                finish_reason: FinishRecord::Stop,
                stop_match: Some(StopRecord::TokenId(2)),
                logprobs_sha256: logprobs.digest(),
            },
            ChoiceRecord {
                token_ids: vec![],
                finish_reason: FinishRecord::Length,
                stop_match: None,
                logprobs_sha256: LogprobHasher::default().digest(),
            },
        ],
    }
}

/// Written out, and its digests worked out by `sha256sum`: a change of any byte is a change of the format.
#[test]
fn the_text_of_a_receipt_is_always_the_same() {
    let repeated = |byte: &str| byte.repeat(32);
    let content = format!(
        concat!(
            r#"{{"polydelta_receipt":1,"origin":{{"program":"1.2.3","base_sha256":"{}","config_sha256":"{}","#,
            r#""numerics":{{"device":"cpu","isa":"avx2","target":"x86_64-unknown-linux-gnu","weights":"bf16","#,
            r#""compute":"bf16","kv":"bf16","kv_tile":16}}}},"delta":{{"kind":"mix","version":"{}","parts":["#,
            r#"{{"name":"a","version":"{}","weight":0.7}},{{"name":"org/b","version":"{}","weight":-0.3}}]}},"#,
            r#""active_from":0,"prompt_token_ids":[1,70,5],"sampling":{{"temperature":0.8,"top_k":0,"top_p":1.0,"#,
            r#""min_p":0.0,"seed":"18446744073709551615","repetition_penalty":1.0,"presence_penalty":0.0,"#,
            r#""frequency_penalty":0.0,"logit_bias":{{"7":-1.5,"12":2.0}}}},"stopping":{{"max_tokens":8,"#,
            r#""min_tokens":1,"stop":["\"é\n"],"stop_token_ids":[2]}},"prompt_logprobs_sha256":null,"choices":["#,
            r#"{{"token_ids":[9,10],"finish_reason":"stop","stop_match":{{"token_id":2}},"logprobs_sha256":"{}"}},"#,
            r#"{{"token_ids":[],"finish_reason":"length","stop_match":null,"logprobs_sha256":"{}"}}]}}"#,
        ),
        repeated("01"),
        repeated("02"),
        repeated("03"),
        repeated("04"),
        repeated("05"),
        LOGPROBS,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    );
    let sealed = format!("{},\"digest\":\"{CONTENT}\"}}", content.strip_suffix('}').unwrap());
    assert_eq!(receipt().text(), sealed);
    assert_eq!(Receipt::read(sealed.as_bytes()).unwrap(), receipt());
}

/// Of the bytes 00 00 80 be, 00 00 c0 bf.
const LOGPROBS: &str = "2f02069e36b5be803f2286d3c82deabd4c952bad7d43937600d2c71966f0c7f6";
const CONTENT: &str = "c7396b0207f2e711e478825246f4cd1dc882f10926607bce00b65265b6f3e852";

/// Every value in a document with another one of its kind in its place.
fn changed(value: &Value) -> Vec<Value> {
    match value {
        Value::Object(fields) => {
            let with = |key: &String, value: Option<Value>| {
                let mut fields = fields.clone();
                match value {
                    Some(value) => fields.insert(key.clone(), value),
                    None => fields.remove(key),
                };
                Value::Object(fields)
            };
            let within = |(key, value)| changed(value).into_iter().map(move |value| with(key, Some(value)));
            let mut all: Vec<_> = fields.iter().flat_map(within).collect();
            all.extend(fields.keys().map(|key| with(key, None)));
            all.push(with(&"another".to_owned(), Some(json!(1))));
            all
        }
        Value::Array(values) => {
            let with = |at: usize, value| [&values[..at], &[value], &values[at + 1..]].concat();
            let within = |(at, value)| changed(value).into_iter().map(move |value| Value::Array(with(at, value)));
            let mut all: Vec<_> = values.iter().enumerate().flat_map(within).collect();
            all.push(Value::Array([&values[..], &values[..1.min(values.len())], &[json!(3)]].concat()));
            all
        }
        Value::Number(number) if number.is_f64() => vec![json!(number.as_f64().unwrap() + 0.125)],
        Value::Number(number) => vec![json!(number.as_u64().unwrap() + 1)],
        Value::String(text) => {
            let last = if text.ends_with('1') { "2" } else { "1" };
            let mut other = text.clone();
            other.pop();
            vec![json!(other.clone() + last), json!(other)]
        }
        Value::Bool(_) | Value::Null => vec![json!(0)],
    }
}

#[test]
fn whatever_is_changed_in_a_receipt_is_refused() {
    let document: Value = serde_json::from_str(&receipt().text()).unwrap();
    let changed = changed(&document);
    assert!(changed.len() > 100);
    for other in changed {
        let text = other.to_string();
        assert_ne!(other, document);
        assert!(Receipt::read(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_refusal_says_what_is_wrong() {
    let said = |text: &str| Receipt::read(text.as_bytes()).unwrap_err().to_string();
    let text = receipt().text();
    assert!(said("{\"polydelta_receipt\": 1").contains("no receipt of polydelta: EOF"), "{}", said("{"));
    assert!(said("[1]").contains("it is no JSON object"));
    assert!(said("{\"a\": 1}").contains("it has no polydelta_receipt"));
    let later = text.replacen("\"polydelta_receipt\":1", "\"polydelta_receipt\":2", 1);
    assert_eq!(said(&later), "it has format 2, this program reads format 1");
    let temperature = text.replacen("0.8", "0.9", 1);
    let found = receipt();
    let found = Receipt { sampling: SamplingRecord { temperature: 0.9, ..found.sampling.clone() }, ..found };
    let digests = format!("its content has the digest {}, it says {CONTENT}", found.digest());
    assert_eq!(said(&temperature), format!("it was changed after it was made: {digests}"));
    assert!(said(&text.replacen("\"min_tokens\"", "\"least\"", 1)).contains("unknown field `least`"));
    assert!(said(&text.replacen("\"temperature\":0.8,", "", 1)).contains("missing field `temperature`"));
    assert!(said(&text.replacen(",\"digest\"", ",\"digset\"", 1)).contains("it has no digest"));
    assert!(said(&text.replacen("0101", "01x1", 1)).contains("64 lower-case hexadecimal digits"));
}

#[test]
fn blanks_and_the_order_of_fields_may_change_on_the_way() {
    let document: Value = serde_json::from_str(&receipt().text()).unwrap();
    let mut turned = document.as_object().unwrap().clone();
    let origin = turned.remove("origin").unwrap();
    turned.insert("origin".into(), origin);
    let pretty = serde_json::to_string_pretty(&turned).unwrap();
    assert_eq!(Receipt::read(pretty.as_bytes()).unwrap(), receipt());
}

fn verdicts(findings: &[Finding]) -> Vec<(&str, Verdict)> {
    let bad = findings.iter().filter(|finding| finding.verdict != Verdict::Agrees);
    bad.map(|finding| (finding.what.as_str(), finding.verdict)).collect()
}

#[test]
fn what_differs_is_found_and_nothing_else() {
    let kept = receipt();
    assert_eq!(verdicts(&kept.compare_answer(&kept)), []);
    assert_eq!(verdicts(&compare_origins(&kept.origin, &kept.origin)), []);
    let answer = |change: &dyn Fn(&mut Receipt)| {
        let mut answer = receipt();
        change(&mut answer);
        let findings = kept.compare_answer(&answer);
        verdicts(&findings).into_iter().map(|(what, verdict)| (what.to_owned(), verdict)).collect::<Vec<_>>()
    };
    let differs = |what: &str| vec![(what.to_owned(), Verdict::Differs)];
    assert_eq!(answer(&|r| r.choices[0].token_ids[1] = 11), differs("choice 0 tokens"));
    assert_eq!(answer(&|r| r.choices[1].token_ids.push(11)), differs("choice 1 tokens"));
    assert_eq!(answer(&|r| r.choices[0].stop_match = None), differs("choice 0 finish"));
    assert_eq!(answer(&|r| r.choices[1].logprobs_sha256 = Sha256Digest([0; 32])), differs("choice 1 log-probs"));
    assert_eq!(answer(&|r| r.prompt_logprobs_sha256 = Some(Sha256Digest([0; 32]))), differs("prompt log-probs"));
    assert_eq!(answer(&|r| drop(r.choices.pop())), differs("choices"));
    assert_eq!(answer(&|r| r.sampling.seed = 1), differs("request"));
    let elsewhere = [("adapter".to_owned(), Verdict::NotHere)];
    assert_eq!(answer(&|r| r.delta = DeltaRecord::Base), elsewhere);
    assert_eq!(answer(&|r| r.active_from = Some(4)), elsewhere);

    let mut here = kept.origin.clone();
    here.program = "1.2.4".into();
    here.config_sha256 = Sha256Digest([9; 32]);
    let warned = [("program", Verdict::Warning), ("config.json", Verdict::Warning)];
    assert_eq!(verdicts(&compare_origins(&kept.origin, &here)), warned);
    let mut here = kept.origin.clone();
    here.numerics.isa = "avx512".into();
    here.base_sha256 = hex::encode([8; 32]).parse().unwrap();
    let elsewhere = [("base", Verdict::NotHere), ("numerics", Verdict::NotHere)];
    assert_eq!(verdicts(&compare_origins(&kept.origin, &here)), elsewhere);
}

#[test]
fn a_finding_says_the_first_token_that_is_another() {
    let (kept, mut answer) = (receipt(), receipt());
    answer.choices[0].token_ids = vec![9, 12, 13];
    let findings = kept.compare_answer(&answer);
    let tokens = findings.iter().find(|finding| finding.what == "choice 0 tokens").unwrap();
    assert_eq!((tokens.recorded.as_str(), tokens.found.as_str()), ("2, number 1 is 10", "3, number 1 is 12"));
}

#[test]
fn log_probabilities_have_one_digest_for_the_same_bits() {
    let of = |logprobs: &[f32]| {
        let mut hasher = LogprobHasher::default();
        logprobs.iter().for_each(|logprob| hasher.add(*logprob));
        hasher.digest()
    };
    assert_eq!(of(&[-0.25, -1.5]).to_string(), LOGPROBS);
    assert_ne!(of(&[0.0]), of(&[-0.0]));
    assert_ne!(of(&[-0.25]), of(&[f32::from_bits((-0.25f32).to_bits() + 1)]));
}

fn finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |number| number.is_finite())
}

proptest! {
    #[test]
    fn numbers_come_back_to_the_last_bit(
        (temperature, top_p, weight, bias) in (finite(), finite(), finite(), finite()),
        seed in any::<u64>(),
        ids in proptest::collection::vec(any::<u32>(), 0..9),
        stop in any::<String>(),
    ) {
        let mut made = receipt();
        (made.sampling.temperature, made.sampling.top_p, made.sampling.seed) = (temperature, top_p, seed);
        made.sampling.logit_bias = [(ids.len() as u32, bias)].into();
        if let DeltaRecord::Mix { parts, .. } = &mut made.delta {
            parts[0].weight = weight;
        }
        (made.prompt_token_ids, made.stopping.stop) = (ids, vec![stop]);
        let read = Receipt::read(made.text().as_bytes()).unwrap();
        prop_assert_eq!(read.text(), made.text());
        prop_assert_eq!(read.sampling.temperature.to_bits(), temperature.to_bits());
        prop_assert_eq!(read, made);
    }
}
