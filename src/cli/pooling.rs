//! `polydelta embed` and `polydelta score`.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::client::{connect, request};
use super::exit::CliError;
use super::interrupt::unless_interrupted;
use super::table::Table;
use crate::config::{EmbedArgs, PoolingChoice, ScoreArgs};
use crate::grpc::pb;
use pb::pool_input::Input;
use pb::pooling_service_client::PoolingServiceClient;

/// Run `embed`, writing to `out`: a line of numbers for each text, or one JSON document.
///
/// # Errors
/// The connection, the server's refusal, the output, Ctrl-C.
pub async fn embed(args: &EmbedArgs, out: &mut impl Write) -> Result<(), CliError> {
    let message = pb::EmbedRequest {
        adapter: args.adapter.as_ref().map(ToString::to_string).unwrap_or_default(),
        inputs: inputs(&args.texts),
        pooling: match args.pooling {
            PoolingChoice::Last => pb::Pooling::Last,
            PoolingChoice::Mean => pb::Pooling::Mean,
            PoolingChoice::First => pb::Pooling::First,
        }
        .into(),
        normalize: args.normalize,
        dimensions: args.dimensions,
        ..pb::EmbedRequest::default()
    };
    let response = unless_interrupted(async {
        let mut service = PoolingServiceClient::new(connect(&args.client).await?);
        Ok(service.embed(request(&args.client, message)).await?.into_inner())
    })
    .await?;
    let written = if args.client.json {
        writeln!(out, "{:#}", embeddings_json(&response))
    } else {
        response.embeddings.iter().try_for_each(|embedding| {
            let numbers: Vec<String> = embedding.values.iter().map(ToString::to_string).collect();
            writeln!(out, "{}", numbers.join(" "))
        })
    };
    written.map_err(CliError::Output)
}

/// Run `score`, writing to `out`: a table of labels, or one JSON document.
///
/// # Errors
/// As [`embed`].
pub async fn score(args: &ScoreArgs, out: &mut impl Write) -> Result<(), CliError> {
    let (adapter, inputs) = (args.adapter.to_string(), inputs(&args.texts));
    let message = pb::ScoreRequest { adapter, inputs, ..pb::ScoreRequest::default() };
    let response = unless_interrupted(async {
        let mut service = PoolingServiceClient::new(connect(&args.client).await?);
        Ok(service.score(request(&args.client, message)).await?.into_inner())
    })
    .await?;
    let written = if args.client.json {
        writeln!(out, "{:#}", scores_json(&response))
    } else {
        write_table(&response.texts, out)
    };
    written.map_err(CliError::Output)
}

fn inputs(texts: &[String]) -> Vec<pb::PoolInput> {
    texts.iter().map(|text| pb::PoolInput { input: Some(Input::Prompt(text.clone())) }).collect()
}

/// A row for each text, or for each of its tokens: labels with their probabilities, the most likely first.
fn write_table(texts: &[pb::ScoredText], out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["TEXT", "TOKEN", "LABEL", "LOGIT", "PROBABILITIES"]);
    for (text, scored) in texts.iter().enumerate() {
        let of_tokens = scored.scores.len() > 1;
        for (token, scores) in scored.scores.iter().enumerate() {
            let mut labels: Vec<(usize, f32)> = scores.probabilities.iter().copied().enumerate().collect();
            labels.sort_by(|(_, one), (_, other)| other.total_cmp(one));
            let Some((best, _)) = labels.first() else { continue };
            table.row([
                text.to_string(),
                if of_tokens { token.to_string() } else { "all".to_owned() },
                best.to_string(),
                scores.logits.get(*best).map(|logit| format!("{logit:.4}")).unwrap_or_default(),
                labels.iter().map(|(label, p)| format!("{label} {p:.3}")).collect::<Vec<_>>().join("  "),
            ]);
        }
    }
    table.write(out)
}

fn embeddings_json(response: &pb::EmbedResponse) -> Value {
    let embedding = |one: &pb::Embedding| json!({ "values": one.values, "tokens": one.tokens });
    json!({
        "request_id": response.request_id,
        "adapter": response.adapter,
        "adapter_version": response.adapter_version,
        "embeddings": response.embeddings.iter().map(embedding).collect::<Vec<_>>(),
    })
}

fn scores_json(response: &pb::ScoreResponse) -> Value {
    let scores = |one: &pb::LabelScores| json!({ "logits": one.logits, "probabilities": one.probabilities });
    let text = |text: &pb::ScoredText| json!({ "scores": text.scores.iter().map(scores).collect::<Vec<_>>(), "tokens": text.tokens });
    json!({
        "request_id": response.request_id,
        "adapter": response.adapter,
        "adapter_version": response.adapter_version,
        "texts": response.texts.iter().map(text).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_or_each_of_its_tokens_has_a_row_with_the_likeliest_label_first() {
        let scores = |probabilities: &[f32]| pb::LabelScores {
            logits: probabilities.iter().map(|p| p.ln()).collect(),
            probabilities: probabilities.to_vec(),
        };
        let texts = [
            pb::ScoredText { scores: vec![scores(&[0.25, 0.75])], tokens: 3 },
            pb::ScoredText { scores: vec![scores(&[0.5, 0.5]), scores(&[1.0, 0.0])], tokens: 2 },
        ];
        let mut out = Vec::new();
        write_table(&texts, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["0", "all", "1", "-0.2877", "1", "0.750", "0", "0.250"]);
        assert_eq!(rows[1][..3], ["1", "0", "0"]);
        assert_eq!(rows[2], ["1", "1", "0", "0.0000", "0", "1.000", "1", "0.000"]);
    }
}
