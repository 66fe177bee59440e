//! `polydelta demo`: the real server on the bundled model, asked by a real client for everything at once.

mod report;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use self::report::{Answer, Report};
use super::base::OpenedBase;
use super::bundled::{self, DemoPrompt};
use super::error::AppError;
use super::serve::end_on_signals;
use super::start::Server;
use crate::cli::CliError;
use crate::config::{DemoArgs, Environment, ServeConfig, Terminal};
use crate::grpc::pb;
use crate::telemetry::LogSink;
use pb::adapter_service_client::AdapterServiceClient;
use pb::generate_stream_response::Event;
use pb::generation_service_client::GenerationServiceClient;
use pb::server_service_client::ServerServiceClient;

/// The longest answer of a bundled adapter is shorter than this.
const MAX_TOKENS: u32 = 48;

pub(super) async fn run(
    args: &DemoArgs,
    environment: &Environment,
    (terminal, log): (Terminal, &LogSink),
    out: &mut impl Write,
) -> Result<(), AppError> {
    let began = Instant::now();
    let mut config = ServeConfig::for_demo(args, environment)?;
    let base = tokio::task::block_in_place(|| OpenedBase::open(&config.model, environment))?;
    config.adapters = bundled::adapters(base.path())?;
    let server = Server::start(&config, &base, environment, began).await?;
    server.metrics().follow_log(log.lost());
    let lifecycle = server.lifecycle().clone();
    end_on_signals(lifecycle.clone());

    let report = one_batch(&server).await?;
    let written = if args.json { report.write_json(out) } else { report.write_text(terminal.columns, out) };
    written.map_err(CliError::Output)?;
    if args.once {
        lifecycle.drain();
    } else if !args.json {
        report.write_invitation(out).map_err(CliError::Output)?;
    }
    server.ended().await
}

/// Every prompt in flight at once, through the front door.
async fn one_batch(server: &Server) -> Result<Report, AppError> {
    let url = format!("http://{}", server.address);
    let failed = |source| CliError::Connect { address: url.clone(), source: Box::new(source) };
    let channel = Endpoint::from_shared(url.clone()).map_err(failed)?.connect().await.map_err(failed)?;
    let prompts = bundled::prompts()?;
    // Otherwise the first steps would be over before the last adapter is on the device.
    let named = prompts.iter().filter(|prompt| !prompt.name.is_empty());
    for name in named.map(|prompt| prompt.name.clone()) {
        let load = pb::LoadAdapterRequest { name, pin: None };
        AdapterServiceClient::new(channel.clone()).load_adapter(load).await.map_err(CliError::from)?;
    }
    let before = steps(&channel).await?;
    let began = Instant::now();
    let mut calls = JoinSet::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let channel = channel.clone();
        calls.spawn(async move { (index, ask(channel, prompt).await) });
    }
    let mut answers = BTreeMap::new();
    while let Some(call) = calls.join_next().await {
        let (index, answer) = call.map_err(|panic| AppError::Bundled { reason: panic.to_string() })?;
        answers.insert(index, answer?);
    }
    let seconds = began.elapsed().as_secs_f64();
    let after = steps(&channel).await?;
    let steps = after.iter().enumerate().map(|(distinct, count)| count - before.get(distinct).unwrap_or(&0)).collect();
    Ok(Report { address: server.address, answers: answers.into_values().collect(), steps, seconds })
}

/// Steps run so far, by the number of distinct adapters they held.
async fn steps(channel: &Channel) -> Result<Vec<u64>, AppError> {
    let stats = ServerServiceClient::new(channel.clone()).get_stats(pb::GetStatsRequest {}).await;
    Ok(stats.map_err(CliError::from)?.into_inner().steps_by_distinct_adapters)
}

async fn ask(channel: Channel, prompt: DemoPrompt) -> Result<Answer, AppError> {
    let name = prompt.name.clone();
    let failed = |status: tonic::Status| AppError::DemoRequest {
        adapter: if name.is_empty() { "base".to_owned() } else { name.clone() },
        status: Box::new(status),
    };
    let request = pb::GenerateRequest {
        adapter: prompt.name.clone(),
        input: Some(pb::generate_request::Input::Prompt(prompt.prompt.clone())),
        stopping: Some(pb::StoppingParams {
            max_tokens: Some(MAX_TOKENS),
            // The base goes on and on; its first line says enough.
            stop: vec!["\n".to_owned()],
            ..pb::StoppingParams::default()
        }),
        ..pb::GenerateRequest::default()
    };
    let mut stream =
        GenerationServiceClient::new(channel).generate_stream(request).await.map_err(&failed)?.into_inner();
    let mut answer = Answer { prompt, text: String::new(), tokens: 0, tokens_per_second: 0.0 };
    while let Some(message) = stream.message().await.map_err(&failed)? {
        match message.event {
            Some(Event::Delta(delta)) => answer.text += &delta.text,
            Some(Event::Finished(finished)) => answer.finish(&finished),
            Some(Event::Started(_) | Event::PromptLogprobs(_)) | None => {}
        }
    }
    Ok(answer)
}
