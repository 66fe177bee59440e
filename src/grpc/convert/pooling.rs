//! Requests to read texts, and what becomes of them.

use super::super::pb;
use super::generation::{delta_choice, prompt_input, serving, timings, usage};
use super::{BadMessage, request_id};
use crate::admission::{DeltaChoice, GenerationInfo, PoolAnswer, PoolRequest, PooledText, probabilities};
use crate::types::PromptInput;
use crate::types::pool::{EmbedOptions, PoolInput, PoolWanted, Pooling};

/// Without the transport's part: id, arrival, deadline and the limit of an answer are the handler's to add.
pub(in crate::grpc) fn embed_request(request: pb::EmbedRequest) -> Result<PoolRequest, BadMessage> {
    let pooling = match request.pooling() {
        pb::Pooling::Unspecified | pb::Pooling::Last => Pooling::Last,
        pb::Pooling::Mean => Pooling::Mean,
        pb::Pooling::First => Pooling::First,
    };
    if pb::Pooling::try_from(request.pooling).is_err() {
        return Err(BadMessage::UnknownValue { field: "pooling", value: request.pooling });
    }
    let pb::EmbedRequest { request_id: id, adapter, adapter_version: version, inputs, normalize, dimensions, .. } =
        request;
    let wanted = PoolWanted::Embeddings(EmbedOptions { pooling, normalize, dimensions });
    Ok(PoolRequest {
        request_id: request_id(id)?,
        delta: delta_choice(&adapter, &version, &[])?,
        input: PoolInput {
            inputs: pool_inputs(inputs)?,
            wanted,
            priority: request.priority,
            cache_salt: request.cache_salt,
        },
        max_answer_bytes: 0,
    })
}

/// As [`embed_request`].
pub(in crate::grpc) fn score_request(request: pb::ScoreRequest) -> Result<PoolRequest, BadMessage> {
    let pb::ScoreRequest { request_id: id, adapter, adapter_version: version, inputs, priority, cache_salt } = request;
    let request_id = request_id(id)?;
    // The base has no head.
    let delta = delta_choice(&adapter, &version, &[])?;
    if delta == DeltaChoice::Base {
        return Err(BadMessage::Missing { field: "adapter" });
    }
    let input = PoolInput { inputs: pool_inputs(inputs)?, wanted: PoolWanted::Scores, priority, cache_salt };
    Ok(PoolRequest { request_id, delta, input, max_answer_bytes: 0 })
}

fn pool_inputs(inputs: Vec<pb::PoolInput>) -> Result<Vec<PromptInput>, BadMessage> {
    use pb::generate_request::Input as Generated;
    use pb::pool_input::Input;
    let one = |(index, pb::PoolInput { input })| {
        let input = match input.ok_or(BadMessage::Missing { field: "input" }) {
            Ok(Input::Prompt(text)) => Ok(Generated::Prompt(text)),
            Ok(Input::TokenIds(ids)) => Ok(Generated::TokenIds(ids)),
            Ok(Input::Chat(chat)) => Ok(Generated::Chat(chat)),
            Err(missing) => Err(missing),
        };
        input.and_then(prompt_input).map_err(|bad| BadMessage::Input { index, bad: Box::new(bad) })
    };
    inputs.into_iter().enumerate().map(one).collect()
}

pub(in crate::grpc) fn embed_response(info: &GenerationInfo, answer: PoolAnswer) -> pb::EmbedResponse {
    let PoolAnswer { texts, usage: counts, timings: times } = answer;
    let (adapter, adapter_version, _) = serving(&info.delta);
    let embedding = |PooledText { vectors, tokens }: PooledText| pb::Embedding { values: vectors.concat(), tokens };
    pb::EmbedResponse {
        request_id: info.request_id.clone(),
        adapter,
        adapter_version,
        embeddings: texts.into_iter().map(embedding).collect(),
        usage: Some(usage(counts)),
        timings: Some(timings(times)),
    }
}

pub(in crate::grpc) fn score_response(info: &GenerationInfo, answer: PoolAnswer) -> pb::ScoreResponse {
    let PoolAnswer { texts, usage: counts, timings: times } = answer;
    let (adapter, adapter_version, _) = serving(&info.delta);
    let scores = |logits: Vec<f32>| pb::LabelScores { probabilities: probabilities(&logits), logits };
    let text = |PooledText { vectors, tokens }: PooledText| pb::ScoredText {
        scores: vectors.into_iter().map(scores).collect(),
        tokens,
    };
    pb::ScoreResponse {
        request_id: info.request_id.clone(),
        adapter,
        adapter_version,
        texts: texts.into_iter().map(text).collect(),
        usage: Some(usage(counts)),
        timings: Some(timings(times)),
    }
}
