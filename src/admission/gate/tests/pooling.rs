//! Texts that are read: what the engine is asked for, and that a call is admitted as a whole.

use super::*;
use crate::admission::Wanted;
use crate::types::pool::{EmbedOptions, PoolInput, PoolRows, PoolSpec, PoolWanted, Pooling};
use crate::types::{AdapterTask, FinishReason, SequenceEvent};

fn read(texts: &[&str], wanted: PoolWanted) -> PoolRequest {
    let inputs = texts.iter().map(|text| PromptInput::Text((*text).to_owned())).collect();
    let input = PoolInput { inputs, wanted, priority: 2, cache_salt: String::new() };
    PoolRequest { request_id: "r".to_owned(), delta: DeltaChoice::Base, input, max_answer_bytes: 1 << 20 }
}

fn mean() -> PoolWanted {
    PoolWanted::Embeddings(EmbedOptions { pooling: Pooling::Mean, normalize: false, dimensions: None })
}

async fn refused(house: &House, request: PoolRequest) -> AdmissionError {
    match house.gate.pool(request, Arrival::now()).await {
        Ok(_) => panic!("admitted"),
        Err(refusal) => refusal,
    }
}

#[tokio::test]
async fn every_text_is_a_request_of_its_own_that_wants_no_token() {
    let house = House::new();
    let reading = house.gate.pool(read(&["a", "bc"], mean()), Arrival::now()).await.unwrap();
    assert_eq!((reading.info().request_id.as_str(), house.gate.free_places()), ("r", 0));
    for (text, sum) in [("a", [6.0, 2.0]), ("bc", [8.0, 4.0])] {
        let submitted = house.engine.take();
        let request = &submitted.request;
        assert_eq!(&request.prompt[..], house.gate.parts.tokenizer.encode(text, true).unwrap());
        assert_eq!(request.sampling.pool, Some(PoolSpec { rows: PoolRows::Sum, labels: None }));
        assert_eq!((request.stopping.max_tokens, request.choices, request.priority), (0, 1, 2));
        let sums = sum.map(|number| number * request.prompt.len() as f32);
        let end = Some((FinishReason::Length, None));
        for event in [
            SequenceEvent::Pooled(vec![sums.into()]),
            SequenceEvent::Token { choice: 0, token: None, logprob: None, finish: end, at: request.arrived },
        ] {
            submitted.events.try_send(event).unwrap();
        }
    }
    let answer = reading.finish().await.unwrap();
    let vectors: Vec<_> = answer.texts.iter().map(|text| text.vectors.concat()).collect();
    assert_eq!(vectors, [[6.0, 2.0], [8.0, 4.0]]);
    assert_eq!(answer.usage.prompt_tokens, answer.texts.iter().map(|text| text.tokens).sum::<u32>());
    assert_eq!(house.gate.free_places(), 2);
}

#[tokio::test]
async fn where_one_text_is_refused_none_is_queued() {
    let house = House::new();
    let long = "x".repeat(1001);
    let refusal = refused(&house, read(&["a", &long], mean())).await;
    assert!(matches!(refusal, AdmissionError::Input { index: 1, .. }), "{refusal}");
    let refusal = refused(&house, read(&["a", "b", "c"], mean())).await;
    assert!(matches!(refusal, AdmissionError::TooManyRequests { limit: 2 }), "{refusal}");
    let small = PoolRequest { max_answer_bytes: 63, ..read(&["a", "b"], mean()) };
    let refusal = refused(&house, small).await;
    assert!(matches!(refusal, AdmissionError::Invalid(InvalidRequest::AnswerNumbers { numbers: 16, .. })), "{refusal}");
    assert_eq!((house.engine.submitted(), house.gate.free_places()), (0, 2));
}

#[tokio::test]
async fn an_adapter_whose_task_shows_once_it_is_loaded_is_refused_then() {
    let house = House::new();
    let version = house.adapter("sql", 1);
    let delta = DeltaChoice::Adapter(AdapterChoice { name: "sql".parse().unwrap(), version: None });
    let scores = PoolRequest { delta: delta.clone(), ..read(&["a"], PoolWanted::Scores) };
    let refusal = refused(&house, scores).await;
    let (task, wanted) = (AdapterTask::Generation, Wanted::Scores);
    assert!(
        matches!(&refusal, AdmissionError::Task { task: t, wanted: w, .. } if (*t, *w) == (task, wanted)),
        "{refusal}"
    );
    assert_eq!((house.engine.submitted(), house.registry.leases()), (0, 0));
    drop(house.gate.pool(PoolRequest { delta, ..read(&["a"], mean()) }, Arrival::now()).await.unwrap());
    assert_eq!(house.engine.take().request.adapter.map(|binding| binding.version), Some(version));
}
