//! How tokens are chosen, and when they end: the fields that both routes have.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::fields::Fields;
use super::super::refused::Refused;
use crate::types::generate::{SamplingInput, StoppingInput};

/// A text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// How tokens are chosen.
pub(super) fn sampling(fields: &mut Fields) -> Result<SamplingInput, Refused> {
    let top_k = match fields.take::<i64>("top_k")? {
        // vLLM's word for all of them.
        Some(-1) => Some(0),
        Some(top_k) => Some(u32::try_from(top_k).map_err(|_| Refused::field("top_k", "expected -1, 0 or more"))?),
        None => None,
    };
    Ok(SamplingInput {
        temperature: fields.take("temperature")?,
        top_k,
        top_p: fields.take("top_p")?,
        min_p: fields.take("min_p")?,
        seed: fields.take::<i64>("seed")?.map(i64::cast_unsigned),
        repetition_penalty: fields.take("repetition_penalty")?,
        presence_penalty: fields.take("presence_penalty")?,
        frequency_penalty: fields.take("frequency_penalty")?,
        logit_bias: logit_bias(fields)?,
    })
}

/// By id, so that refusals do not depend on the order in which a client writes them.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Refused> {
    let bias: BTreeMap<String, f32> = fields.or_default("logit_bias")?;
    let one = |(id, bias): (String, f32)| match id.parse::<u32>() {
        Ok(id) => Ok((id, bias)),
        Err(_) => Err(Refused::field("logit_bias", "its keys are ids of tokens")),
    };
    let mut bias = bias.into_iter().map(one).collect::<Result<Vec<_>, _>>()?;
    bias.sort_by_key(|(id, _)| *id);
    Ok(bias)
}

/// When they end, but for how many there may be.
pub(super) fn stopping(fields: &mut Fields) -> Result<StoppingInput, Refused> {
    let stop = match fields.take_text("stop") {
        None => Vec::new(),
        Some(text) => match serde_json::from_slice(&text) {
            Ok(Stop::One(stop)) => vec![stop],
            Ok(Stop::Several(stops)) => stops,
            Err(_) => return Err(Refused::field("stop", "expected a text, or a list of texts")),
        },
    };
    Ok(StoppingInput {
        max_tokens: None,
        min_tokens: fields.take("min_tokens")?,
        stop,
        stop_token_ids: fields.or_default("stop_token_ids")?,
        ignore_eos: fields.take("ignore_eos")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.to_owned().into()).unwrap()
    }

    #[test]
    fn what_is_left_out_is_left_to_the_model() {
        assert_eq!(sampling(&mut fields("{}")).unwrap(), SamplingInput::default());
        assert_eq!(stopping(&mut fields("{}")).unwrap(), StoppingInput::default());
    }

    #[test]
    fn fields_are_read_as_openai_and_vllm_spell_them() {
        let mut given = fields(
            r#"{"temperature": 0, "top_k": -1, "top_p": 0.5, "min_p": 0.25, "seed": -1, "repetition_penalty": 1.5,
            "presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {"10": 1, "9": -100}, "stop": "x",
            "min_tokens": 2, "stop_token_ids": [7], "ignore_eos": true}"#,
        );
        let expected = SamplingInput {
            temperature: Some(0.0),
            top_k: Some(0),
            top_p: Some(0.5),
            min_p: Some(0.25),
            seed: Some(u64::MAX),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(-2.0),
            frequency_penalty: Some(2.0),
            logit_bias: vec![(9, -100.0), (10, 1.0)],
        };
        assert_eq!(sampling(&mut given).unwrap(), expected);
        let StoppingInput { max_tokens, min_tokens, stop, stop_token_ids, ignore_eos } = stopping(&mut given).unwrap();
        assert_eq!((max_tokens, min_tokens, ignore_eos), (None, Some(2), Some(true)));
        assert_eq!((stop, stop_token_ids), (vec!["x".to_owned()], vec![7]));
        given.finish().unwrap();
        assert_eq!(stopping(&mut fields(r#"{"stop": ["a", "b"]}"#)).unwrap().stop, ["a", "b"]);
    }

    #[test]
    fn what_they_cannot_be_names_them() {
        for (text, message) in [
            (r#"{"top_k": -2}"#, "top_k: expected -1, 0 or more"),
            (r#"{"logit_bias": {"a": 1}}"#, "logit_bias: its keys are ids of tokens"),
            (r#"{"temperature": "hot"}"#, r#"temperature: invalid type: string "hot", expected f32"#),
        ] {
            assert_eq!(sampling(&mut fields(text)).unwrap_err().to_string(), message);
        }
        let refused = stopping(&mut fields(r#"{"stop": [1]}"#)).unwrap_err();
        assert_eq!(refused.to_string(), "stop: expected a text, or a list of texts");
    }
}
