use proptest::prelude::*;

use super::InvalidRequest as E;
use super::*;
use crate::types::{ChatMessage, SamplingParams, TemplateValue};

const VOCAB: u32 = 1000;
const CONTEXT: u32 = 100;

fn limits() -> Limits {
    Limits {
        context_length: CONTEXT,
        vocab_size: VOCAB,
        hidden_size: 8,
        default_max_tokens: 16,
        max_choices: 4,
        max_prompt_bytes: 64,
        max_stop_strings: 3,
        max_stop_bytes: 8,
        max_logprobs: 5,
        max_priority: 10,
        max_inline_adapter_bytes: 0,
        defaults: GenerationDefaults { eos_token_ids: vec![2], ..GenerationDefaults::default() },
    }
}

fn request(prompt: PromptInput) -> GenerateInput {
    GenerateInput {
        prompt,
        sampling: SamplingInput::default(),
        stopping: StoppingInput::default(),
        options: crate::types::OutputOptions::default(),
        choices: 0,
        priority: 0,
        cache_salt: String::new(),
    }
}

fn text() -> GenerateInput {
    request(PromptInput::Text("hello".into()))
}

fn changed(change: impl FnOnce(&mut GenerateInput)) -> GenerateInput {
    let mut input = text();
    change(&mut input);
    input
}

fn kwargs(variables: Vec<(&str, TemplateValue)>) -> PromptInput {
    let template_kwargs = variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    PromptInput::Chat(Chat { template_kwargs, ..Chat::from(vec![message("user", "x")]) })
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into() }
}

type Change = fn(&mut GenerateInput);
type SetFloat = fn(&mut SamplingInput, f32);

#[test]
fn every_field_out_of_range_is_refused_by_its_path() {
    let cases: &[(&str, Change)] = &[
        ("n", |r| r.choices = 5),
        ("n", |r| r.choices = u32::MAX),
        ("options.logprobs", |r| r.options.logprobs = Some(6)),
        ("options.prompt_logprobs", |r| r.options.prompt_logprobs = Some(6)),
        ("options.prompt_logprobs", |r| r.options.prompt_logprobs = Some(u32::MAX)),
        ("sampling.temperature", |r| r.sampling.temperature = Some(-0.1)),
        ("sampling.temperature", |r| r.sampling.temperature = Some(-1e-45)),
        ("sampling.top_p", |r| r.sampling.top_p = Some(0.0)),
        ("sampling.top_p", |r| r.sampling.top_p = Some(-0.0)),
        ("sampling.top_p", |r| r.sampling.top_p = Some(1.000_001)),
        ("sampling.min_p", |r| r.sampling.min_p = Some(-0.1)),
        ("sampling.min_p", |r| r.sampling.min_p = Some(1.1)),
        ("sampling.repetition_penalty", |r| r.sampling.repetition_penalty = Some(0.0)),
        ("sampling.repetition_penalty", |r| r.sampling.repetition_penalty = Some(-1.0)),
        ("sampling.presence_penalty", |r| r.sampling.presence_penalty = Some(2.1)),
        ("sampling.presence_penalty", |r| r.sampling.presence_penalty = Some(-2.1)),
        ("sampling.frequency_penalty", |r| r.sampling.frequency_penalty = Some(2.1)),
        ("sampling.frequency_penalty", |r| r.sampling.frequency_penalty = Some(-2.1)),
        ("sampling.logit_bias", |r| r.sampling.logit_bias = vec![(0, 100.1)]),
        ("sampling.logit_bias", |r| r.sampling.logit_bias = vec![(0, -100.1)]),
        ("sampling.logit_bias", |r| r.sampling.logit_bias = vec![(VOCAB, 1.0)]),
        ("sampling.logit_bias", |r| r.sampling.logit_bias = vec![(7, 1.0), (8, 1.0), (7, 1.0)]),
        ("sampling.logit_bias", |r| r.sampling.logit_bias = vec![(0, 1.0); MAX_LOGIT_BIAS + 1]),
        ("stopping.max_tokens", |r| r.stopping.max_tokens = Some(0)),
        ("stopping.max_tokens", |r| r.stopping.max_tokens = Some(CONTEXT)),
        ("stopping.max_tokens", |r| r.stopping.max_tokens = Some(u32::MAX)),
        ("stopping.min_tokens", |r| {
            r.stopping.max_tokens = Some(3);
            r.stopping.min_tokens = Some(4);
        }),
        ("stopping.stop", |r| r.stopping.stop = vec!["x".into(); 4]),
        ("stopping.stop[1]", |r| r.stopping.stop = vec!["x".into(), String::new()]),
        ("stopping.stop[2]", |r| r.stopping.stop = vec!["x".into(), "y".into(), "é".repeat(5)]),
        ("stopping.stop_token_ids", |r| r.stopping.stop_token_ids = vec![0; MAX_STOP_TOKEN_IDS + 1]),
        ("stopping.stop_token_ids[1]", |r| r.stopping.stop_token_ids = vec![0, VOCAB]),
        ("prompt", |r| r.prompt = PromptInput::Text("x".repeat(65))),
        ("token_ids.ids", |r| r.prompt = PromptInput::TokenIds(vec![])),
        ("token_ids.ids", |r| r.prompt = PromptInput::TokenIds(vec![0; CONTEXT as usize])),
        ("token_ids.ids[2]", |r| r.prompt = PromptInput::TokenIds(vec![0, 1, VOCAB])),
        ("chat.messages", |r| r.prompt = PromptInput::Chat(vec![].into())),
        ("chat.messages", |r| r.prompt = PromptInput::Chat(vec![message("user", ""); MAX_CHAT_MESSAGES + 1].into())),
        ("chat.messages", |r| r.prompt = PromptInput::Chat(vec![message("user", &"x".repeat(30)); 2].into())),
        ("chat.template_kwargs", |r| r.prompt = kwargs(vec![("x", TemplateValue::Null); MAX_TEMPLATE_KWARGS + 1])),
        ("chat.template_kwargs.messages", |r| r.prompt = kwargs(vec![("messages", TemplateValue::Null)])),
        ("chat.template_kwargs.x", |r| {
            let nest = |value, _| TemplateValue::List(vec![value]);
            r.prompt = kwargs(vec![("x", (0..=MAX_TEMPLATE_KWARGS_DEPTH).fold(TemplateValue::Null, nest))]);
        }),
        ("chat.messages", |r| r.prompt = kwargs(vec![("x", TemplateValue::Text("x".repeat(60)))])),
        ("chat.messages[1].role", |r| {
            r.prompt = PromptInput::Chat(vec![message("user", "x"), message("", "x")].into())
        }),
    ];
    for (index, (field, change)) in cases.iter().enumerate() {
        let Err(refused) = limits().check(&changed(change)) else { panic!("case {index} is allowed: {field}") };
        assert_eq!(refused.field(), *field, "case {index}: {refused}");
        assert!(refused.to_string().starts_with(field), "case {index}: {refused}");
    }
}

#[test]
fn no_float_may_be_nan_or_infinite() {
    let fields: [(&str, SetFloat); 7] = [
        ("sampling.temperature", |s, x| s.temperature = Some(x)),
        ("sampling.top_p", |s, x| s.top_p = Some(x)),
        ("sampling.min_p", |s, x| s.min_p = Some(x)),
        ("sampling.repetition_penalty", |s, x| s.repetition_penalty = Some(x)),
        ("sampling.presence_penalty", |s, x| s.presence_penalty = Some(x)),
        ("sampling.frequency_penalty", |s, x| s.frequency_penalty = Some(x)),
        ("sampling.logit_bias", |s, x| s.logit_bias = vec![(3, x)]),
    ];
    for (field, set) in fields {
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let refused = limits().check(&changed(|r| set(&mut r.sampling, value)));
            assert!(matches!(refused, Err(E::NotFinite { field: named, .. }) if named == field), "{field} {value}");
        }
    }
}

#[test]
fn the_ends_of_every_range_are_allowed() {
    let cases: &[Change] = &[
        |r| r.choices = 4,
        |r| r.options.logprobs = Some(5),
        |r| r.options.logprobs = Some(0),
        |r| r.options.prompt_logprobs = Some(5),
        |r| (r.options.prompt_logprobs, r.stopping.max_tokens) = (Some(0), Some(0)),
        |r| r.sampling.temperature = Some(0.0),
        |r| r.sampling.temperature = Some(f32::MAX),
        |r| r.sampling.top_k = Some(u32::MAX),
        |r| r.sampling.top_p = Some(1.0),
        |r| r.sampling.top_p = Some(f32::MIN_POSITIVE),
        |r| r.sampling.min_p = Some(1.0),
        |r| r.sampling.presence_penalty = Some(-2.0),
        |r| r.sampling.frequency_penalty = Some(2.0),
        |r| r.sampling.logit_bias = vec![(0, 100.0), (VOCAB - 1, -100.0)],
        |r| r.sampling.seed = Some(u64::MAX),
        |r| r.stopping.max_tokens = Some(1),
        |r| r.stopping.min_tokens = Some(16),
        |r| r.stopping.stop = vec!["é".repeat(4); 3],
        |r| r.stopping.stop_token_ids = vec![VOCAB - 1; MAX_STOP_TOKEN_IDS],
        |r| r.prompt = PromptInput::Text("x".repeat(64)),
        |r| r.prompt = PromptInput::Text(String::new()),
        |r| r.prompt = PromptInput::TokenIds(vec![VOCAB - 1; CONTEXT as usize - 1]),
        |r| r.prompt = PromptInput::Chat(vec![message("user", &"x".repeat(60))].into()),
        |r| r.priority = -10,
    ];
    for (index, change) in cases.iter().enumerate() {
        let input = changed(change);
        assert_eq!(limits().check(&input), Ok(()), "case {index}");
        assert!(limits().resolve(&input, 5, 0).is_ok(), "case {index}");
    }
}

#[test]
fn output_takes_what_the_context_leaves() {
    let asked = |max_tokens| changed(|r| r.stopping.max_tokens = max_tokens);
    let room = |max_tokens, prompt, virtual_tokens| limits().room(&asked(max_tokens), prompt, virtual_tokens);
    assert_eq!(room(None, 10, 0), Ok(16), "the server's default");
    assert_eq!(room(None, 90, 0), Ok(10), "the context");
    assert_eq!(room(None, 90, 9), Ok(1), "virtual tokens count");
    assert_eq!(room(Some(90), 10, 0), Ok(90), "more than the default, where asked for");
    let max_tokens = |virtual_tokens| E::MaxTokens {
        max_tokens: 90,
        prompt_tokens: Some(10),
        virtual_tokens,
        context_length: CONTEXT,
    };
    assert_eq!(room(Some(90), 10, 1), Err(max_tokens(1)));
    let full = |prompt_tokens, virtual_tokens| E::PromptTooLong {
        field: "prompt",
        prompt_tokens,
        virtual_tokens,
        context_length: CONTEXT,
    };
    assert_eq!(room(None, 100, 0), Err(full(100, 0)));
    assert_eq!(room(Some(1), 90, 10), Err(full(90, 10)));
    assert_eq!(room(None, usize::MAX, u32::MAX), Err(full(usize::MAX, u32::MAX)));
    let chat = request(PromptInput::Chat(vec![message("user", "x")].into()));
    assert_eq!(limits().room(&chat, 100, 0).unwrap_err().field(), "chat.messages");
    let least = changed(|r| r.stopping.min_tokens = Some(17));
    assert_eq!(limits().room(&least, 10, 0), Err(E::MinTokens { min_tokens: 17, max_tokens: 16 }));
}

#[test]
fn the_messages_say_what_does_not_fit() {
    let limits = limits();
    let refused = limits.room(&changed(|r| r.stopping.max_tokens = Some(90)), 10, 1).unwrap_err();
    let wanted = "stopping.max_tokens is 90; behind a prompt of 10 tokens and 1 virtual ones of its adapter that \
                  exceeds the context of 100";
    assert_eq!(refused.to_string(), wanted);
    let refused = limits.room(&text(), 100, 0).unwrap_err();
    assert_eq!(refused.to_string(), "prompt has 100 tokens; the context of 100 has no room for one more");
    let refused = limits.check(&changed(|r| r.sampling.top_p = Some(0.0))).unwrap_err();
    assert_eq!(refused.to_string(), "sampling.top_p is 0, expected more than 0 and at most 1");
}

#[test]
fn the_tokens_of_all_choices_together_are_bounded() {
    let long = Limits { context_length: 1 << 24, default_max_tokens: 1 << 24, max_choices: 1024, ..limits() };
    let asked = |max_tokens, choices| {
        changed(|r| {
            r.stopping.max_tokens = max_tokens;
            r.choices = choices;
        })
    };
    let most = MAX_REQUEST_TOKENS as u32 / 4;
    assert_eq!(long.check(&asked(Some(most), 4)), Ok(()));
    let refused = E::TotalTokens { max_tokens: most + 1, choices: 4, max: MAX_REQUEST_TOKENS };
    assert_eq!(long.check(&asked(Some(most + 1), 4)), Err(refused));
    for choices in [0, 1, 3, 1024] {
        let resolved = long.resolve(&asked(None, choices), 1, 0).unwrap();
        assert_eq!(u64::from(resolved.stopping.max_tokens), MAX_REQUEST_TOKENS / u64::from(choices.max(1)));
    }
}

#[test]
fn a_field_left_out_comes_from_the_model_and_else_is_neutral() {
    let sampled = GenerationDefaults {
        temperature: 0.6,
        top_k: 20,
        top_p: 0.9,
        min_p: 0.1,
        repetition_penalty: 1.1,
        ..GenerationDefaults::default()
    };
    let limits = Limits { defaults: sampled, ..limits() };
    let params = limits.resolve(&text(), 5, 0).unwrap().sampling;
    assert_eq!((params.temperature, params.top_k, params.top_p, params.min_p), (0.6, 20, 0.9, 0.1));
    assert_eq!((params.repetition_penalty, params.presence_penalty, params.frequency_penalty), (1.1, 0.0, 0.0));
    let own = changed(|r| {
        r.sampling = SamplingInput {
            temperature: Some(0.0),
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            repetition_penalty: Some(1.0),
            seed: Some(9),
            ..SamplingInput::default()
        };
    });
    let neutral = SamplingParams { seed: 9, ..SamplingParams::greedy() };
    assert_eq!(limits.resolve(&own, 5, 0).unwrap().sampling, neutral);
}

#[test]
fn temperature_alone_decides_between_greedy_and_sampling() {
    let temperature = |given| limits().resolve(&changed(|r| r.sampling.temperature = given), 5, 0).unwrap().sampling;
    assert_eq!(temperature(None).temperature, 0.0, "the model's own config is greedy");
    assert_eq!(temperature(Some(0.7)).temperature, 0.7, "asked for");
    for tiny in [0.0, -0.0, 1e-45, 9e-6] {
        assert_eq!(temperature(Some(tiny)).temperature.to_bits(), 0, "{tiny}");
    }
    assert_eq!(temperature(Some(1e-5)).temperature, 1e-5);
    let unset = limits().resolve(&changed(|r| r.sampling.top_p = Some(0.5)), 5, 0).unwrap().sampling;
    assert_eq!(unset.temperature, 0.0, "a filter alone does not sample");
}

#[test]
fn stop_ids_are_the_models_and_the_requests_each_once() {
    let ids = |change: Change| limits().resolve(&changed(change), 5, 0).unwrap().stopping.stop_token_ids;
    assert_eq!(ids(|_| ()), [2]);
    assert_eq!(ids(|r| r.stopping.stop_token_ids = vec![7, 2, 5, 7]), [2, 5, 7]);
    assert_eq!(ids(|r| r.stopping.ignore_eos = Some(true)), [0u32; 0]);
    assert_eq!(
        ids(|r| {
            r.stopping.ignore_eos = Some(true);
            r.stopping.stop_token_ids = vec![2];
        }),
        [2]
    );
}

#[test]
fn something_must_be_left_to_sample_until_min_tokens() {
    let small = Limits { vocab_size: 3, ..limits() };
    let all = |min_tokens| {
        changed(|r| {
            r.stopping.stop_token_ids = vec![0, 1];
            r.stopping.min_tokens = min_tokens;
        })
    };
    assert!(small.resolve(&all(None), 5, 0).is_ok());
    assert_eq!(small.resolve(&all(Some(1)), 5, 0), Err(E::NothingToSample { vocab_size: 3 }));
}

#[test]
fn requests_without_a_seed_differ_and_seeds_are_kept() {
    let seed = |given| limits().resolve(&changed(|r| r.sampling.seed = given), 5, 0).unwrap().sampling.seed;
    assert_eq!(seed(Some(0)), 0);
    let fresh: std::collections::HashSet<u64> = (0..100).map(|_| seed(None)).collect();
    assert_eq!(fresh.len(), 100);
    // Not a counter: the upper half moves as well.
    let upper: std::collections::HashSet<u64> = fresh.iter().map(|seed| seed >> 32).collect();
    assert!(upper.len() > 90);
}

fn any_float() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![Just(None), (0.0f32..1.0).prop_map(Some), any::<u32>().prop_map(|bits| Some(f32::from_bits(bits))),]
}

fn any_count(near: u32) -> impl Strategy<Value = Option<u32>> {
    prop_oneof![Just(None), (0..=near).prop_map(Some), any::<u32>().prop_map(Some)]
}

prop_compose! {
    fn any_sampling()(
        temperature in any_float(), top_p in any_float(), min_p in any_float(), repetition_penalty in any_float(),
        presence_penalty in any_float(), frequency_penalty in any_float(), top_k in any_count(VOCAB),
        seed in any::<Option<u64>>(),
        logit_bias in proptest::collection::vec((0..VOCAB + 3, any_float().prop_map(Option::unwrap_or_default)), 0..5),
    ) -> SamplingInput {
        SamplingInput {
            temperature, top_k, top_p, min_p, seed, repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
        }
    }
}

/// It lists all tokens, and what it lists is asked for again.
#[test]
fn a_receipt_has_its_own_limits_and_needs_log_probabilities() {
    let wide = Limits { context_length: u32::MAX, max_choices: 4, ..limits() };
    let asking = |receipt, max_tokens| {
        let mut input = changed(|input| input.choices = 2);
        (input.options.receipt, input.stopping.max_tokens) = (receipt, Some(max_tokens));
        input
    };
    let most = (MAX_RECEIPT_TOKENS as u32 - 10) / 2;
    assert_eq!(wide.resolve(&asking(true, most), 10, 0).unwrap().sampling.logprobs, Some(0));
    assert_eq!(wide.resolve(&asking(false, most + 1), 10, 0).unwrap().sampling.logprobs, None);
    let refused = wide.resolve(&asking(true, most + 1), 10, 0).unwrap_err();
    assert_eq!(refused, E::ReceiptTokens { tokens: MAX_RECEIPT_TOKENS + 2, max: MAX_RECEIPT_TOKENS });
    assert_eq!(refused.field(), "options.receipt");

    // The model's own end of sequence is one more.
    let stopping = |receipt| {
        let mut input = asking(receipt, 5);
        input.stopping.stop_token_ids = (10..10 + MAX_STOP_TOKEN_IDS as u32).collect();
        wide.resolve(&input, 10, 0)
    };
    assert_eq!(stopping(false).unwrap().stopping.stop_token_ids.len(), MAX_STOP_TOKEN_IDS + 1);
    let (count, max) = (MAX_STOP_TOKEN_IDS + 1, MAX_STOP_TOKEN_IDS);
    assert_eq!(stopping(true).unwrap_err(), E::TooMany { field: "stopping.stop_token_ids", count, max });
    let options = crate::types::OutputOptions { logprobs: Some(3), receipt: true, ..Default::default() };
    let resolved = wide.resolve(&changed(|input| input.options = options), 10, 0).unwrap();
    assert_eq!(resolved.sampling.logprobs, Some(3), "as many as were asked for");
}

prop_compose! {
    fn any_stopping()(
        max_tokens in any_count(CONTEXT), min_tokens in any_count(20),
        stop in proptest::collection::vec("[a-zé🦀]{0,4}", 0..5),
        stop_token_ids in proptest::collection::vec(0..VOCAB + 3, 0..4), ignore_eos in any::<Option<bool>>(),
    ) -> StoppingInput {
        StoppingInput { max_tokens, min_tokens, stop, stop_token_ids, ignore_eos }
    }
}

fn any_prompt() -> impl Strategy<Value = PromptInput> {
    let chat = proptest::collection::vec(("[a-z]{0,4}", ".{0,20}"), 0..4);
    prop_oneof![
        ".{0,70}".prop_map(PromptInput::Text),
        proptest::collection::vec(0..VOCAB + 3, 0..120).prop_map(PromptInput::TokenIds),
        chat.prop_map(|all| PromptInput::Chat(
            all.iter().map(|(role, text)| message(role, text)).collect::<Vec<_>>().into()
        )),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes in, what comes out is within the bounds that `types::sampling` promises to the engine.
    #[test]
    fn every_accepted_request_resolves_within_bounds(
        prompt in any_prompt(), sampling in any_sampling(), stopping in any_stopping(),
        logprobs in any_count(6), prompt_logprobs in any_count(6), choices in any_count(5), priority in prop_oneof![9 => -10..=10i32, 1 => any::<i32>()],
        prompt_tokens in prop_oneof![0..150usize, any::<usize>()], virtual_tokens in prop_oneof![0..60u32, any::<u32>()],
    ) {
        let options = crate::types::OutputOptions { logprobs, prompt_logprobs, ..Default::default() };
        let choices = choices.unwrap_or(0);
        let input = GenerateInput { prompt, sampling, stopping, options, choices, priority, cache_salt: String::new() };
        let limits = limits();
        let Ok(()) = limits.check(&input) else { return Ok(()) };
        let Ok(resolved) = limits.resolve(&input, prompt_tokens, virtual_tokens) else { return Ok(()) };
        let Resolved { sampling: s, stopping: t, choices } = resolved;
        prop_assert!(s.temperature == 0.0 || (s.temperature.is_finite() && s.temperature >= 1e-5));
        prop_assert!(s.top_p > 0.0 && s.top_p <= 1.0);
        prop_assert!((0.0..=1.0).contains(&s.min_p));
        prop_assert!(s.repetition_penalty.is_finite() && s.repetition_penalty > 0.0);
        prop_assert!(s.presence_penalty.abs() <= 2.0 && s.frequency_penalty.abs() <= 2.0);
        prop_assert!(s.logit_bias.iter().all(|(id, bias)| *id < VOCAB && bias.abs() <= 100.0));
        prop_assert_eq!(s.logit_bias.len(), input.sampling.logit_bias.len());
        prop_assert!(s.logprobs.is_none_or(|logprobs| logprobs <= 5));
        prop_assert!((1..=4).contains(&choices));
        prop_assert!(s.prompt_logprobs.is_none_or(|logprobs| logprobs <= 5));
        prop_assert!((t.max_tokens >= 1 || s.prompt_logprobs.is_some()) && t.min_tokens <= t.max_tokens);
        prop_assert!(prompt_tokens as u64 + u64::from(virtual_tokens) + u64::from(t.max_tokens) <= u64::from(CONTEXT));
        prop_assert!(u64::from(t.max_tokens) * u64::from(choices) <= MAX_REQUEST_TOKENS);
        prop_assert!(t.stop_token_ids.iter().all(|id| *id < VOCAB));
        prop_assert!(t.stop_token_ids.is_sorted());
    }
}

#[test]
fn the_ids_of_a_request_are_of_its_adapters_vocabulary() {
    let limits = limits();
    let ask = |limits: &Limits, id: u32| limits.check(&request(PromptInput::TokenIds(vec![0, id]))).is_ok();
    assert!(ask(&limits, VOCAB - 1) && !ask(&limits, VOCAB));
    for tokens in [VOCAB + 3, VOCAB - 3] {
        let own = limits.of_vocabulary(Some(tokens));
        assert!(ask(&own, tokens - 1) && !ask(&own, tokens));
    }
    assert!(!ask(&limits.of_vocabulary(None), VOCAB));
}
