use tokio_stream::StreamExt;
use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use crate::admission::testing::{House, id};
use crate::types::{FinishReason, RequestFailure, SequenceEvent, TokenLogprob};
use pb::generate_request::Input;
use pb::generate_stream_response::Event;

const STALL: Duration = Duration::from_secs(5);

fn generator(house: &House) -> Generator {
    Generator::new(Arc::clone(&house.gate), STALL, 4 << 20)
}

fn request(change: impl FnOnce(&mut pb::GenerateRequest)) -> Request<pb::GenerateRequest> {
    let mut message = pb::GenerateRequest { input: Some(Input::Prompt("hi".into())), ..Default::default() };
    change(&mut message);
    Request::new(message)
}

async fn next(stream: &mut Streamed) -> Option<Result<Event, Status>> {
    let message = stream.next().await?;
    Some(message.map(|message| message.event.unwrap()))
}

#[tokio::test]
async fn both_calls_say_the_same() {
    let house = House::new();
    let generator = generator(&house);
    let with_logprobs = |message: &mut pb::GenerateRequest| {
        let options = pb::OutputOptions { logprobs: Some(0), token_ids: true, ..Default::default() };
        (message.options, message.request_id) = (Some(options), "trace-7".into());
    };
    let unary = tokio::spawn({
        let generator = generator.clone();
        async move { generator.generate(request(with_logprobs)).await.unwrap() }
    });
    let mut stream = generator.generate_stream(request(with_logprobs)).await.unwrap();
    while house.engine.submitted() < 2 {
        tokio::task::yield_now().await;
    }
    for submitted in [house.engine.take(), house.engine.take()] {
        let events = submitted.events();
        events.started(1, 0);
        for (ms, text, finish) in [(2, "a", None), (3, "b", Some((FinishReason::Length, None)))] {
            let logprob = Some(TokenLogprob { logprob: -0.5, top: vec![] });
            let at = events.start + Duration::from_millis(ms);
            let event = SequenceEvent::Token { choice: 0, token: Some(id(text)), logprob, finish, at };
            submitted.events.try_send(event).unwrap();
        }
    }
    let unary = unary.await.unwrap();
    assert_eq!(unary.metadata().get("x-request-id").unwrap(), "trace-7");
    assert_eq!(stream.metadata().get("x-request-id").unwrap(), "trace-7");
    let unary = unary.into_inner();
    let Some(Ok(Event::Started(started))) = next(stream.get_mut()).await else { panic!("started first") };
    assert_eq!(started.request_id, "trace-7");
    let mut choice = pb::Choice::default();
    loop {
        match next(stream.get_mut()).await {
            Some(Ok(Event::Delta(delta))) => {
                choice.text += &delta.text;
                choice.token_ids.extend(delta.token_ids);
                choice.logprobs.extend(delta.logprobs);
                (choice.finish_reason, choice.stop_match) = (delta.finish_reason, delta.stop_match);
            }
            Some(Ok(Event::Finished(finished))) => {
                assert_eq!((finished.usage, finished.timings.is_some()), (unary.usage, unary.timings.is_some()));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(unary.choices, [choice]);
    assert_eq!(unary.choices[0].text, "ab");
    assert!(next(stream.get_mut()).await.is_none());
}

#[tokio::test]
async fn a_failure_ends_the_stream_with_its_status_and_once() {
    let house = House::new();
    let mut stream = generator(&house).generate_stream(request(|_| ())).await.unwrap().into_inner();
    let submitted = house.engine.take();
    submitted.events().token(1, 0, id("a"));
    submitted.events().fail(RequestFailure::NonFinite);
    assert!(matches!(next(&mut stream).await, Some(Ok(Event::Started(_)))));
    assert!(matches!(next(&mut stream).await, Some(Ok(Event::Delta(_)))));
    let status = next(&mut stream).await.unwrap().unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().reason, "NON_FINITE");
    assert!(next(&mut stream).await.is_none());
    let unary = tokio::spawn({
        let generator = generator(&house);
        async move { generator.generate(request(|_| ())).await }
    });
    while house.engine.submitted() == 0 {
        tokio::task::yield_now().await;
    }
    house.engine.take().events().fail(RequestFailure::NonFinite);
    assert_eq!(unary.await.unwrap().unwrap_err().code(), Code::Internal);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let house = House::new();
    let mut stream = generator(&house).generate_stream(request(|_| ())).await.unwrap().into_inner();
    let submitted = house.engine.take();
    assert!(next(&mut stream).await.is_some());
    drop(stream);
    while house.engine.aborted().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(house.engine.aborted(), [submitted.request.id]);
    assert_eq!(house.gate.free_places(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_ended_and_told() {
    let house = House::new();
    let asked = request(|message| {
        message.stopping = Some(pb::StoppingParams { max_tokens: Some(60), ..Default::default() });
    });
    let mut stream = generator(&house).generate_stream(asked).await.unwrap().into_inner();
    let submitted = house.engine.take();
    for ms in 0..60 {
        submitted.events().token(ms, 0, id("a"));
    }
    let begun = tokio::time::Instant::now();
    while house.engine.aborted().is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() >= STALL && begun.elapsed() < STALL * 2);
    assert_eq!(house.gate.free_places(), 2, "what it held is free though the stream is still open");
    let mut messages = 0;
    let status = loop {
        match next(&mut stream).await {
            Some(Ok(_)) => messages += 1,
            Some(Err(status)) => break status,
            None => panic!("the stream ended without a status"),
        }
    };
    assert_eq!(messages, AHEAD, "what had been made ready for it");
    assert_eq!(status.get_details_error_info().unwrap().reason, "STREAM_STALLED");
    assert!(next(&mut stream).await.is_none());
}

#[tokio::test]
async fn a_refusal_comes_before_the_stream() {
    let house = House::new();
    let refused = generator(&house).generate_stream(request(|message| message.n = 99)).await;
    let status = refused.err().unwrap();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "n");
    let missing = generator(&house).generate(request(|message| message.input = None)).await.unwrap_err();
    assert_eq!(missing.get_details_bad_request().unwrap().field_violations[0].field, "input");
}

#[tokio::test]
async fn tokenizing_says_what_generating_would_see() {
    let house = House::new();
    let input = Some(pb::tokenize_request::Input::Prompt("hi".into()));
    let said = generator(&house)
        .tokenize(Request::new(pb::TokenizeRequest { input, ..Default::default() }))
        .await
        .unwrap()
        .into_inner();
    let _stream = generator(&house).generate_stream(request(|_| ())).await.unwrap();
    assert_eq!(&house.engine.take().request.prompt[..], said.token_ids);
    assert_eq!(said.text, "hi");
}
