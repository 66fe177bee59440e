//! One line of the demo, by the call that answers it: an adapter with a head scores its text, the others go on with it.

use tonic::transport::Channel;

use super::super::bundled::{DemoPrompt, MixedPart};
use super::super::error::AppError;
use super::report::Answer;
use crate::cli::CliError;
use crate::grpc::pb;
use pb::adapter_service_client::AdapterServiceClient;
use pb::generate_stream_response::Event;
use pb::generation_service_client::GenerationServiceClient;
use pb::pooling_service_client::PoolingServiceClient;

/// The longest answer of a bundled adapter is shorter than this.
const MAX_TOKENS: u32 = 48;

/// Have on the device what a line needs. A mix comes there with its first request and has no name to be loaded by.
pub(super) async fn prepare(channel: Channel, prompt: &DemoPrompt) -> Result<(), AppError> {
    if let Some(name) = prompt.adapter() {
        let load = pb::LoadAdapterRequest { name: name.to_owned(), pin: None };
        AdapterServiceClient::new(channel).load_adapter(load).await.map_err(CliError::from)?;
    } else if !prompt.mix.is_empty() {
        let request = generate_request(prompt, 1);
        GenerationServiceClient::new(channel).generate(request).await.map_err(|status| failed(prompt, status))?;
    }
    Ok(())
}

/// What the server says to it.
pub(super) async fn ask(channel: Channel, prompt: DemoPrompt) -> Result<Answer, AppError> {
    if prompt.labels.is_empty() { generated(channel, prompt).await } else { scored(channel, prompt).await }
}

fn failed(prompt: &DemoPrompt, status: tonic::Status) -> AppError {
    let adapter = if prompt.name.is_empty() { "base".to_owned() } else { prompt.name.clone() };
    AppError::DemoRequest { adapter, status: Box::new(status) }
}

fn generate_request(prompt: &DemoPrompt, max_tokens: u32) -> pb::GenerateRequest {
    let part =
        |part: &MixedPart| pb::MixPart { adapter: part.adapter.clone(), weight: part.weight, ..pb::MixPart::default() };
    pb::GenerateRequest {
        adapter: prompt.adapter().unwrap_or_default().to_owned(),
        mix: prompt.mix.iter().map(part).collect(),
        input: Some(pb::generate_request::Input::Prompt(prompt.prompt.clone())),
        stopping: Some(pb::StoppingParams {
            max_tokens: Some(max_tokens),
            // The base goes on and on; its first line says enough.
            stop: vec!["\n".to_owned()],
            ..pb::StoppingParams::default()
        }),
        ..pb::GenerateRequest::default()
    }
}

async fn generated(channel: Channel, prompt: DemoPrompt) -> Result<Answer, AppError> {
    let request = generate_request(&prompt, MAX_TOKENS);
    let opened = GenerationServiceClient::new(channel).generate_stream(request).await;
    let mut stream = opened.map_err(|status| failed(&prompt, status))?.into_inner();
    let mut answer = Answer { prompt, text: String::new(), probability: None, tokens: 0, tokens_per_second: 0.0 };
    while let Some(message) = stream.message().await.map_err(|status| failed(&answer.prompt, status))? {
        match message.event {
            Some(Event::Delta(delta)) => answer.text += &delta.text,
            Some(Event::Finished(finished)) => answer.finish(&finished),
            Some(Event::Started(_) | Event::PromptLogprobs(_)) | None => {}
        }
    }
    Ok(answer)
}

/// The likeliest label.
async fn scored(channel: Channel, prompt: DemoPrompt) -> Result<Answer, AppError> {
    let input = pb::PoolInput { input: Some(pb::pool_input::Input::Prompt(prompt.prompt.clone())) };
    let request = pb::ScoreRequest { adapter: prompt.name.clone(), inputs: vec![input], ..pb::ScoreRequest::default() };
    let response = PoolingServiceClient::new(channel).score(request).await;
    let texts = response.map_err(|status| failed(&prompt, status))?.into_inner().texts;
    let probabilities: Vec<f32> =
        texts.into_iter().flat_map(|text| text.scores).flat_map(|one| one.probabilities).collect();
    let best = probabilities.iter().copied().zip(&prompt.labels).max_by(|(one, _), (other, _)| one.total_cmp(other));
    match best {
        Some((probability, label)) if probabilities.len() == prompt.labels.len() => {
            let text = label.clone();
            Ok(Answer { prompt, text, probability: Some(probability), tokens: 0, tokens_per_second: 0.0 })
        }
        _ => {
            let (given, named) = (probabilities.len(), prompt.labels.len());
            let reason = format!("{} has {given} labels, and demo.json names {named}", prompt.name);
            Err(AppError::Bundled { reason })
        }
    }
}
