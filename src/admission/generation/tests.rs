use super::super::testing::{Events, House, id, metric, recorded, request};
use super::GenerationEvent as Event;
use super::*;
use crate::admission::{AdapterChoice, AdmissionRequest, DeltaChoice};

struct Running {
    house: House,
    generation: Generation,
    engine_id: RequestId,
    /// Taken when the engine is to be gone.
    events: Option<Events>,
}

impl Running {
    async fn with(change: impl FnOnce(&mut AdmissionRequest)) -> Self {
        Self::of(House::new(), change).await
    }

    async fn of(house: House, change: impl FnOnce(&mut AdmissionRequest)) -> Self {
        let mut wanted = request("prompt");
        change(&mut wanted);
        let generation = house.gate.admit(wanted, Arrival::now()).await.unwrap();
        let submitted = house.engine.take();
        let (engine_id, events) = (submitted.request.id, Some(submitted.events()));
        Self { house, generation, engine_id, events }
    }

    fn events(&self) -> &Events {
        self.events.as_ref().unwrap()
    }

    async fn delta(&mut self) -> ChoiceDelta {
        match self.generation.next().await {
            Some(Ok(Event::Delta(delta))) => delta,
            other => panic!("no delta: {other:?}"),
        }
    }

    async fn finished(&mut self) -> (Usage, Timings) {
        let finished = match self.generation.next().await {
            Some(Ok(Event::Finished { usage, timings, receipt: None })) => (usage, timings),
            other => panic!("not finished: {other:?}"),
        };
        assert!(self.generation.next().await.is_none(), "nothing follows");
        finished
    }

    async fn error(&mut self) -> GenerationError {
        let error = match self.generation.next().await {
            Some(Err(error)) => error,
            other => panic!("no error: {other:?}"),
        };
        assert!(self.generation.next().await.is_none(), "nothing follows");
        error
    }

    /// What is said of the engine once the generation is gone.
    fn aborted_by_drop(self) -> bool {
        drop(self.generation);
        self.house.engine.aborted() == [self.engine_id]
    }
}

fn stop(text: &str) -> Option<(FinishReason, Option<StopMatch>)> {
    Some((FinishReason::Stop, Some(StopMatch::Text(text.to_owned()))))
}

/// A token after a stop string was completed is none of the answer, and its log-probability none of the digest.
#[tokio::test]
async fn a_receipt_is_of_what_was_said() {
    use crate::receipt::{ChoiceRecord, DeltaRecord, FinishRecord, LogprobHasher};
    let mut running = Running::with(|r| {
        r.input.options.receipt = true;
        r.input.stopping.stop = vec!["ND".into()];
        r.input.choices = 2;
    })
    .await;
    let said = |choice, text, logprob: f32| {
        let logprob = Some(TokenLogprob { logprob, top: Vec::new() });
        SequenceEvent::Token { choice, token: Some(id(text)), logprob, finish: None, at: Instant::now() }
    };
    for (choice, text, logprob) in [(0, "E", -0.5), (1, "x", -1.0), (0, "N", -0.25), (0, "D", -2.0)] {
        running.events().sender.try_send(said(choice, text, logprob)).unwrap();
        let delta = running.delta().await;
        assert_eq!(delta.tokens, [OutputToken { id: id(text), logprob: None }], "log-probabilities were not asked for");
    }
    running.events().sender.try_send(said(0, "z", -9.0)).unwrap();
    running.events().stop(9, 1, 7);
    running.delta().await;
    let Some(Ok(Event::Finished { receipt: Some(receipt), .. })) = running.generation.next().await else {
        panic!("no receipt");
    };
    let choice = |texts: &[&str], logprobs: &[f32], stop_match| {
        let mut hasher = LogprobHasher::default();
        logprobs.iter().for_each(|logprob| hasher.add(*logprob));
        ChoiceRecord {
            token_ids: texts.iter().map(|text| id(text)).collect(),
            finish_reason: FinishRecord::Stop,
            stop_match: Some(stop_match),
            logprobs_sha256: hasher.digest(),
        }
    };
    let first = choice(&["E", "N", "D"], &[-0.5, -0.25, -2.0], StopRecord::Text("ND".into()));
    assert_eq!(receipt.choices, [first, choice(&["x"], &[-1.0], StopRecord::TokenId(7))]);
    assert_eq!((&receipt.delta, receipt.active_from), (&DeltaRecord::Base, None));
    let prompt: Vec<u32> = "prompt".chars().map(|c| id(&c.to_string())).collect();
    assert_eq!(receipt.prompt_token_ids[1..], prompt, "behind the beginning of a sequence");
    assert_eq!(receipt.stopping.stop, ["ND"]);
}

const LENGTH: Option<(FinishReason, Option<StopMatch>)> = Some((FinishReason::Length, None));

#[tokio::test]
async fn text_that_a_stop_string_may_claim_waits_and_its_tokens_do_not() {
    let mut running = Running::with(|r| r.input.stopping.stop = vec!["END".into()]).await;
    let mut seen = Vec::new();
    for (ms, text) in ["a", "E", "N", "x", "E", "N", "D"].into_iter().enumerate() {
        running.events().token(ms as u64, 0, id(text));
        let delta = running.delta().await;
        assert_eq!(delta.tokens, [OutputToken { id: id(text), logprob: None }]);
        seen.push((delta.text, delta.finish));
    }
    let said = |text: &str| (text.to_owned(), None);
    let expected = [said("a"), said(""), said(""), said("ENx"), said(""), said(""), (String::new(), stop("END"))];
    assert_eq!(seen, expected);
    assert_eq!(running.house.engine.ended_choices(), [(running.engine_id, 0)], "the engine is told");
    let (usage, _) = running.finished().await;
    assert_eq!(usage.completion_tokens, 7, "the stop string's tokens were made");
}

#[tokio::test]
async fn a_stop_string_ends_a_choice_at_the_special_token_it_names() {
    let mut running = Running::with(|r| r.input.stopping.stop = vec!["</s>".into()]).await;
    let end = crate::text::fixtures::byte_level().token_id("</s>").unwrap();
    running.events().token(1, 0, id("a"));
    running.events().token(2, 0, end);
    running.events().token(3, 0, id("b"));
    assert_eq!(running.delta().await.text, "a");
    let last = running.delta().await;
    assert_eq!((last.text.as_str(), last.finish), ("", stop("</s>")));
    assert_eq!(last.tokens, [OutputToken { id: end, logprob: None }]);
    assert_eq!(running.house.engine.ended_choices(), [(running.engine_id, 0)], "the engine is told");
    assert_eq!(running.finished().await.0.completion_tokens, 2);
}

#[tokio::test]
async fn tokens_computed_after_a_stop_are_neither_shown_nor_counted() {
    let mut running = Running::with(|r| {
        r.input.choices = 2;
        r.input.stopping.stop = vec!["b".into()];
    })
    .await;
    running.events().token(1, 0, id("b"));
    running.events().token(2, 0, id("c"));
    running.events().token(2, 1, id("d"));
    running.events().last(3, 0, id("e"));
    running.events().last(3, 1, id("f"));
    let deltas = [running.delta().await, running.delta().await, running.delta().await];
    let said = deltas.map(|delta| (delta.index, delta.text, delta.finish));
    assert_eq!(said, [(0, String::new(), stop("b")), (1, "d".into(), None), (1, "f".into(), LENGTH)]);
    assert_eq!(running.finished().await.0.completion_tokens, 3);
    assert_eq!(running.house.engine.ended_choices(), [(running.engine_id, 0)]);
}

#[tokio::test]
async fn a_choice_says_why_it_ended() {
    let mut running = Running::with(|r| {
        r.input.choices = 3;
        r.input.stopping.stop = vec!["yz".into()];
    })
    .await;
    // 0: a stop id, while text is held back. 1: the length, while text is held back. 2: a stop string and the length at once.
    for (ms, choice, text) in [(1, 0, "y"), (1, 1, "a"), (1, 2, "y")] {
        running.events().token(ms, choice, id(text));
    }
    running.events().stop(2, 0, 7);
    running.events().last(2, 1, id("y"));
    running.events().last(2, 2, id("z"));
    let mut ends = Vec::new();
    for _ in 0..6 {
        let delta = running.delta().await;
        if delta.finish.is_some() {
            ends.push((delta.index, delta.text, delta.finish));
        }
    }
    let expected = [
        (0, "y".to_owned(), Some((FinishReason::Stop, Some(StopMatch::Token(7))))),
        (1, "y".to_owned(), LENGTH),
        (2, String::new(), stop("yz")),
    ];
    assert_eq!(ends, expected);
    let (usage, _) = running.finished().await;
    assert_eq!(usage.completion_tokens, 5, "the stop id is not counted");
    assert!(running.house.engine.ended_choices().is_empty(), "the engine ended all of them itself");
}

#[tokio::test]
async fn an_unfinished_character_is_given_out_at_the_end_and_not_before() {
    let mut running = Running::with(|_| ()).await;
    let crab = crate::text::fixtures::byte_level().encode("🦀", false).unwrap();
    assert!(crab.len() > 2, "several tokens make one character");
    for (ms, token) in crab[..crab.len() - 1].iter().enumerate() {
        running.events().token(ms as u64, 0, *token);
        assert_eq!(running.delta().await.text, "");
    }
    running.events().stop(9, 0, 7);
    let last = running.delta().await;
    assert_eq!((last.text.as_str(), last.tokens.len()), ("\u{fffd}", 0));
}

#[tokio::test]
async fn no_stop_string_matches_before_min_tokens() {
    let mut running = Running::with(|r| {
        r.input.stopping.stop = vec!["b".into()];
        r.input.stopping.min_tokens = Some(2);
    })
    .await;
    for text in ["b", "b", "b"] {
        running.events().token(1, 0, id(text));
    }
    assert_eq!(running.delta().await.text, "b");
    assert_eq!(running.delta().await.text, "b");
    assert_eq!(running.delta().await.finish, stop("b"));
}

#[tokio::test]
async fn log_probabilities_come_with_their_tokens() {
    let mut running = Running::with(|r| r.input.options.logprobs = Some(1)).await;
    let logprob = TokenLogprob { logprob: -0.5, top: vec![(id("a"), -0.5)] };
    let (token, at) = (Some(id("a")), Instant::now());
    let event = SequenceEvent::Token { choice: 0, token, logprob: Some(logprob), finish: None, at };
    running.events().sender.try_send(event).unwrap();
    let top = vec![TopToken { id: id("a"), logprob: -0.5, text: "a".into() }];
    let said = OutputLogprob { logprob: -0.5, text: "a".into(), top };
    assert_eq!(running.delta().await.tokens, [OutputToken { id: id("a"), logprob: Some(said) }]);
}

#[tokio::test]
async fn the_echo_of_the_prompt_comes_first_for_every_choice() {
    let mut running = Running::with(|r| {
        r.input.choices = 2;
        r.input.options.echo = true;
    })
    .await;
    running.events().last(1, 1, id("a"));
    running.events().last(1, 0, id("a"));
    let prompt = crate::text::fixtures::byte_level().encode("prompt", true).unwrap();
    for index in [0, 1] {
        let delta = running.delta().await;
        assert_eq!((delta.index, delta.text.as_str(), delta.finish), (index, "prompt", None));
        assert_eq!(delta.tokens.iter().map(|token| token.id).collect::<Vec<_>>(), prompt);
        assert!(delta.tokens.iter().all(|token| token.logprob.is_none()));
    }
    assert_eq!((running.delta().await.index, running.delta().await.index), (1, 0));
    let usage = running.finished().await.0;
    assert_eq!((usage.prompt_tokens as usize, usage.completion_tokens), (prompt.len(), 2));
}

#[tokio::test]
async fn times_are_those_of_the_engines_events() {
    let mut running = Running::with(|_| ()).await;
    let events = running.events();
    events.started(5, 3);
    events.token(25, 0, id("a"));
    events.token(26, 0, id("b"));
    events.last(65, 0, id("c"));
    for _ in 0..3 {
        running.delta().await;
    }
    let (usage, timings) = running.finished().await;
    assert_eq!(usage.cached_tokens, 3);
    let ms = Duration::from_millis;
    let expected = Timings { queue: ms(5), prefill: ms(20), decode: ms(40), total: ms(65) };
    assert_eq!(timings, expected);
}

#[tokio::test]
async fn dropping_a_running_generation_aborts_it_and_gives_its_place_back() {
    let running = Running::with(|_| ()).await;
    assert_eq!(running.house.gate.free_places(), 1);
    let gate = Arc::clone(&running.house.gate);
    assert!(running.aborted_by_drop());
    assert_eq!(gate.free_places(), 2);
}

#[tokio::test]
async fn what_has_ended_is_not_aborted() {
    let mut ended = Running::with(|_| ()).await;
    ended.events().last(1, 0, id("a"));
    ended.delta().await;
    ended.finished().await;
    assert!(!ended.aborted_by_drop());

    let mut failed = Running::with(|_| ()).await;
    failed.events().fail(RequestFailure::NonFinite);
    failed.error().await;
    assert!(!failed.aborted_by_drop());

    let mut gone = Running::with(|_| ()).await;
    gone.events = None;
    assert!(matches!(gone.error().await, GenerationError::EngineGone));
    assert!(!gone.aborted_by_drop());
}

#[tokio::test]
async fn a_choice_that_still_runs_is_aborted_though_another_has_ended() {
    let mut running = Running::with(|r| r.input.choices = 2).await;
    running.events().last(1, 0, id("a"));
    running.delta().await;
    assert!(running.aborted_by_drop());
}

#[tokio::test]
async fn an_id_without_text_is_a_token_like_any_other() {
    let mut running = Running::with(|_| ()).await;
    running.events().token(1, 0, u32::MAX);
    let delta = running.delta().await;
    assert_eq!((delta.text.as_str(), delta.tokens.len()), ("", 1));
}

#[tokio::test]
async fn a_token_of_a_choice_that_does_not_exist_is_dropped() {
    let mut running = Running::with(|_| ()).await;
    running.events().token(1, 1, id("a"));
    running.events().last(2, 0, id("b"));
    assert_eq!(running.delta().await.text, "b");
    assert_eq!(running.finished().await.0.completion_tokens, 1);
}

/// How a request counts, by what happens to it.
#[tokio::test]
async fn every_end_is_counted_as_what_it_was() {
    async fn outcome(end: impl AsyncFnOnce(&mut Running)) -> Option<&'static str> {
        let (metrics, handle) = recorded();
        let house = House::with(|parts| parts.metrics = metrics);
        let mut running = Running::of(house, |r| r.input.choices = 2).await;
        end(&mut running).await;
        drop(running);
        let outcomes = ["stop", "length", "abort", "deadline", "error"];
        let counted = |outcome: &&str| {
            let label = format!("outcome=\"{outcome}\"");
            metric(&handle, "polydelta_adapter_requests_total", &[&label]).is_some()
        };
        let mut counted = outcomes.into_iter().filter(counted);
        let first = counted.next();
        assert_eq!(counted.next(), None, "counted once");
        first
    }
    let ended = async |running: &mut Running| {
        running.events().stop(1, 0, 7);
        running.events().last(1, 1, id("a"));
        running.delta().await;
        running.delta().await;
    };
    assert_eq!(outcome(ended).await, Some("length"), "the end of the last choice");
    let half = async |running: &mut Running| {
        running.events().stop(1, 0, 7);
        running.delta().await;
    };
    assert_eq!(outcome(half).await, Some("abort"), "one of two choices had ended");
    let late = async |running: &mut Running| running.generation.record.deadline = Some(Instant::now());
    assert_eq!(outcome(late).await, Some("deadline"), "given up because its time was over");
    for (failure, expected) in [
        (RequestFailure::DeadlineExceeded, "deadline"),
        (RequestFailure::Draining, "error"),
        (RequestFailure::NonFinite, "error"),
        (RequestFailure::EngineFailed, "error"),
    ] {
        let fails = async |running: &mut Running| {
            running.events().fail(failure);
            let error = running.error().await;
            assert!(matches!(error, GenerationError::Failed(given) if given == failure));
        };
        assert_eq!(outcome(fails).await, Some(expected), "{failure:?}");
    }
    let gone = async |running: &mut Running| {
        running.events = None;
        running.error().await;
    };
    assert_eq!(outcome(gone).await, Some("error"));
}

#[tokio::test]
async fn an_adapter_is_free_before_the_last_word_of_its_answer_is_out() {
    let house = House::new();
    let version = house.adapter("a", 1);
    let leases = |running: &Running| running.house.registry.residency().status(version).leases;
    let choice = AdapterChoice { name: "a".parse().unwrap(), version: None };
    let mut wanted = request("prompt");
    wanted.delta = DeltaChoice::Adapter(choice);
    wanted.input.choices = 2;
    wanted.input.stopping.stop = vec!["b".into()];
    let generation = house.gate.admit(wanted, Arrival::now()).await.unwrap();
    // The engine holds on: its step is not over.
    let submitted = house.engine.take();
    let (engine_id, events) = (submitted.request.id, Some(submitted.events()));
    let mut running = Running { house, generation, engine_id, events };
    running.events().token(1, 0, id("b"));
    assert_eq!(running.delta().await.finish, stop("b"));
    assert_eq!(leases(&running), 1, "the other choice runs on");
    running.events().token(1, 1, id("b"));
    assert_eq!(running.delta().await.finish, stop("b"));
    assert_eq!(leases(&running), 0);
    assert!(running.house.registry.unload(&"a".parse().unwrap()).unwrap());
    drop(submitted.lease);
}

#[tokio::test]
async fn the_metrics_say_which_adapters_have_requests() {
    let metrics = crate::telemetry::Metrics::disabled();
    let house = House::with(|parts| parts.metrics = metrics.clone());
    house.adapter("a", 1);
    let labels = |waiting: &str, running: &str| {
        let wanted = format!("waiting_lora_adapters=\"{waiting}\",running_lora_adapters=\"{running}\"");
        let found = metrics.lora_requests().render(2, std::time::UNIX_EPOCH);
        assert!(found.contains(&wanted), "{wanted}: {found}");
    };
    labels("", "");
    let adapter = AdapterChoice { name: "a".parse().unwrap(), version: None };
    let mut running = Running::of(house, |request| request.delta = DeltaChoice::Adapter(adapter.clone())).await;
    labels("a", "");
    running.events().started(1, 0);
    running.events().token(2, 0, id("x"));
    running.delta().await;
    labels("", "a");
    running.events().last(3, 0, id("x"));
    running.delta().await;
    labels("", "");
    // One that is given up, and one whose adapter never comes.
    let running = Running::of(running.house, |request| request.delta = DeltaChoice::Adapter(adapter.clone())).await;
    labels("a", "");
    let house = running.house;
    drop(running.generation);
    labels("", "");
    house.installer.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    house.adapter("b", 3);
    let delta = DeltaChoice::Adapter(AdapterChoice { name: "b".parse().unwrap(), version: None });
    assert!(house.gate.admit(AdmissionRequest { delta, ..request("prompt") }, Arrival::now()).await.is_err());
    labels("", "");
}
