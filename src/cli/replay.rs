//! `polydelta replay`: asks for the answer of a receipt again, and compares.

use std::io::Write;
use std::path::Path;

use serde_json::json;
use tonic::Code;
use tonic::transport::Channel;

use super::client::{connect, request};
use super::exit::CliError;
use super::interrupt::unless_interrupted;
use super::receipt;
use crate::adapters::{CONFIG_FILE, WEIGHTS_FILE};
use crate::config::{ClientArgs, ReplayArgs};
use crate::files;
use crate::grpc::pb;
use crate::receipt::{DeltaRecord, Finding, NumericsClass, Origin, PartRecord, Receipt, Verdict, compare_origins};
use crate::types::{AdapterName, AdapterVersion};
use pb::adapter_service_client::AdapterServiceClient;
use pb::generation_service_client::GenerationServiceClient;
use pb::server_service_client::ServerServiceClient;

/// Most bytes of a file of an adapter that goes with a request: a server takes less in one message.
const MAX_ADAPTER_BYTES: u64 = 1 << 30;

/// Run the verb, writing to `out`: a line for each thing that was compared, or one JSON document.
///
/// # Errors
/// A receipt that is none, [`CliError::Differs`], [`CliError::NotHere`]; the connection, the server's refusal, the output,
/// Ctrl-C.
pub async fn run(args: &ReplayArgs, out: &mut impl Write) -> Result<(), CliError> {
    let kept = receipt::read(args.receipt.clone()).await?;
    let findings = unless_interrupted(replay(args, &kept)).await?;
    let written = if args.client.json { write_json(&kept, &findings, out) } else { write_lines(&findings, out) };
    written.map_err(CliError::Output)?;
    let of = |verdict| -> Vec<String> {
        findings.iter().filter(|finding| finding.verdict == verdict).map(|finding| finding.what.clone()).collect()
    };
    let (elsewhere, differing) = (of(Verdict::NotHere), of(Verdict::Differs));
    match (elsewhere.is_empty(), differing.is_empty()) {
        (false, _) => Err(CliError::NotHere { what: elsewhere.join(", ") }),
        (true, false) => Err(CliError::Differs { what: differing.join(", ") }),
        (true, true) => Ok(()),
    }
}

async fn replay(args: &ReplayArgs, kept: &Receipt) -> Result<Vec<Finding>, CliError> {
    let channel = connect(&args.client).await?;
    let mut findings = compare_origins(&kept.origin, &origin(&args.client, channel.clone()).await?);
    findings.extend(adapters(&args.client, channel.clone(), kept).await?);
    let mut message = replay_request(kept);
    if let DeltaRecord::Inline { version } = &kept.delta {
        match &args.inline_adapter {
            Some(folder) => message.inline_adapter = Some(inline(folder).await?),
            None => findings.push(Finding::new(
                "adapter",
                &format!("brought {version}"),
                &"--inline-adapter names no folder with its files",
                Verdict::NotHere,
            )),
        }
    }
    if findings.iter().any(|finding| finding.verdict == Verdict::NotHere) {
        return Ok(findings);
    }
    let response = GenerationServiceClient::new(channel).generate(request(&args.client, message)).await?.into_inner();
    if response.receipt.is_empty() {
        return Err(CliError::Incomplete { missing: "receipt" });
    }
    let answer = Receipt::read(response.receipt.as_bytes());
    let answer = answer.map_err(|source| CliError::Receipt { path: "the server's answer".to_owned(), source })?;
    // Behind one address there may be several servers.
    let origins = compare_origins(&kept.origin, &answer.origin);
    findings.splice(..origins.len(), origins);
    findings.extend(kept.compare_answer(&answer));
    Ok(findings)
}

async fn origin(client: &ClientArgs, channel: Channel) -> Result<Origin, CliError> {
    let call = request(client, pb::GetServerInfoRequest {});
    let info = ServerServiceClient::new(channel).get_server_info(call).await?.into_inner();
    let missing = |missing| CliError::Incomplete { missing };
    let model = info.model.ok_or(missing("model"))?;
    let numerics = info.numerics.ok_or(missing("numerics"))?;
    let pb::NumericsClass { device, isa, target, weights, compute, kv, kv_tile } = numerics;
    Ok(Origin {
        program: info.version,
        base_sha256: model.digest.parse().map_err(|_| missing("model.digest"))?,
        config_sha256: model.config_digest.parse().map_err(|_| missing("model.config_digest"))?,
        numerics: NumericsClass { device, isa, target, weights, compute, kv, kv_tile },
    })
}

/// Whether the names of a receipt stand for the versions that they stood for.
async fn adapters(client: &ClientArgs, channel: Channel, kept: &Receipt) -> Result<Vec<Finding>, CliError> {
    let named: Vec<(&AdapterName, AdapterVersion)> = match &kept.delta {
        DeltaRecord::Base | DeltaRecord::Inline { .. } => Vec::new(),
        DeltaRecord::Adapter { name, version } => vec![(name, *version)],
        DeltaRecord::Mix { parts, .. } => parts.iter().map(|part| (&part.name, part.version)).collect(),
    };
    let mut service = AdapterServiceClient::new(channel);
    let mut findings = Vec::new();
    for (name, version) in named {
        let call = request(client, pb::GetAdapterRequest { name: name.to_string() });
        let found = match service.get_adapter(call).await {
            Ok(response) => response.into_inner().adapter.unwrap_or_default().version,
            Err(status) if status.code() == Code::NotFound => "there is none of this name".to_owned(),
            Err(status) => return Err(status.into()),
        };
        findings.push(Finding::new(format_args!("version of {name}"), &version, &found, Verdict::NotHere));
    }
    Ok(findings)
}

async fn inline(folder: &Path) -> Result<pb::InlineAdapter, CliError> {
    let read = async |name: &str| {
        let path = folder.join(name);
        let shown = path.display().to_string();
        let bytes = tokio::task::spawn_blocking(move || files::read(&path, MAX_ADAPTER_BYTES)).await;
        let bytes = bytes.unwrap_or_else(|panic| Err(panic.into()));
        bytes.map_err(|source| CliError::File { action: "reading", path: shown, source })
    };
    Ok(pb::InlineAdapter { config: read(CONFIG_FILE).await?, weights: read(WEIGHTS_FILE).await? })
}

/// The request whose answer has the receipt again: everything as it was resolved, adapters by name and version, the prompt as
/// ids. An adapter that was brought is to be brought again.
#[must_use]
pub fn replay_request(receipt: &Receipt) -> pb::GenerateRequest {
    let (sampling, stopping) = (&receipt.sampling, &receipt.stopping);
    let part = |part: &PartRecord| pb::MixPart {
        adapter: part.name.to_string(),
        weight: part.weight,
        adapter_version: part.version.to_string(),
    };
    let (adapter, adapter_version, mix) = match &receipt.delta {
        DeltaRecord::Base | DeltaRecord::Inline { .. } => (String::new(), String::new(), Vec::new()),
        DeltaRecord::Adapter { name, version } => (name.to_string(), version.to_string(), Vec::new()),
        DeltaRecord::Mix { parts, .. } => (String::new(), String::new(), parts.iter().map(part).collect()),
    };
    let ids = receipt.prompt_token_ids.clone();
    pb::GenerateRequest {
        adapter,
        adapter_version,
        mix,
        input: Some(pb::generate_request::Input::TokenIds(pb::TokenIds { ids })),
        sampling: Some(pb::SamplingParams {
            temperature: Some(sampling.temperature),
            top_k: Some(sampling.top_k),
            top_p: Some(sampling.top_p),
            min_p: Some(sampling.min_p),
            seed: Some(sampling.seed),
            repetition_penalty: Some(sampling.repetition_penalty),
            presence_penalty: Some(sampling.presence_penalty),
            frequency_penalty: Some(sampling.frequency_penalty),
            logit_bias: sampling.logit_bias.clone().into_iter().collect(),
        }),
        stopping: Some(pb::StoppingParams {
            max_tokens: Some(stopping.max_tokens),
            min_tokens: Some(stopping.min_tokens),
            stop: stopping.stop.clone(),
            stop_token_ids: stopping.stop_token_ids.clone(),
            // The model's own are among them where they counted.
            ignore_eos: Some(true),
        }),
        options: Some(pb::OutputOptions {
            prompt_logprobs: receipt.prompt_logprobs_sha256.map(|_| 0),
            receipt: true,
            ..pb::OutputOptions::default()
        }),
        n: u32::try_from(receipt.choices.len()).unwrap_or(u32::MAX),
        ..pb::GenerateRequest::default()
    }
}

fn write_lines(findings: &[Finding], out: &mut impl Write) -> std::io::Result<()> {
    let widest = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    for Finding { what, verdict, recorded, found } in findings {
        let said = match verdict {
            Verdict::Agrees => "agrees",
            Verdict::Warning => "warning",
            Verdict::Differs => "differs",
            Verdict::NotHere => "not here",
        };
        match verdict {
            Verdict::Agrees => writeln!(out, "{what:<widest$}  {said:<8}  {recorded}")?,
            _ => writeln!(out, "{what:<widest$}  {said:<8}  {recorded} in the receipt, here: {found}")?,
        }
    }
    Ok(())
}

fn write_json(kept: &Receipt, findings: &[Finding], out: &mut impl Write) -> std::io::Result<()> {
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Agrees);
    let document = json!({
        "receipt": kept.digest().to_string(),
        "replayed": worst != Verdict::NotHere,
        "agrees": worst <= Verdict::Warning,
        "findings": findings,
    });
    writeln!(out, "{document:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thing_has_its_line() {
        let findings = [
            Finding::new("program", &"1", &"2", Verdict::Warning),
            Finding::new("choice 0 tokens", &3, &3, Verdict::Differs),
            Finding::new("version of sql", &"ab", &"cd", Verdict::NotHere),
        ];
        let mut out = Vec::new();
        write_lines(&findings, &mut out).unwrap();
        let lines = "program          warning   1 in the receipt, here: 2\n\
                     choice 0 tokens  agrees    3\n\
                     version of sql   not here  ab in the receipt, here: cd\n";
        assert_eq!(String::from_utf8(out).unwrap(), lines);
    }
}
