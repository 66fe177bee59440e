//! `polydelta demo`: the real server on the bundled model, asked by a real client for everything at once.

mod ask;
mod report;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use self::report::Report;
use super::base::OpenedBase;
use super::bundled;
use super::error::AppError;
use super::serve::end_on_signals;
use super::start::Server;
use crate::cli::CliError;
use crate::config::{DemoArgs, Environment, ServeConfig, Terminal};
use crate::grpc::pb;
use crate::telemetry::LogSink;
use pb::server_service_client::ServerServiceClient;

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
    for prompt in &prompts {
        ask::prepare(channel.clone(), prompt).await?;
    }
    let before = steps(&channel).await?;
    let began = Instant::now();
    let mut calls = JoinSet::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let channel = channel.clone();
        calls.spawn(async move { (index, ask::ask(channel, prompt).await) });
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
