//! The verbs that talk to a running server, and `inspect`, which needs none.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand, ValueEnum};

use super::problem::{ConfigProblem, ConfigProblems};
use super::source::AdapterSource;
use super::units::parse_duration;
use crate::types::{AdapterName, InvalidAdapterName};

/// How to reach the server and how to print.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct ClientArgs {
    /// Address of the server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:50051")]
    pub server: String,
    /// Give up after this time, as in `90s` or `5m`; without it there is no limit
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Give up connecting after this time
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub connect_timeout: Duration,
    /// Print one JSON document instead of text
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// `polydelta adapter …`.
#[derive(Clone, Debug, Subcommand)]
pub enum AdapterCommand {
    /// Upload an adapter folder as peft saved it
    Upload(UploadArgs),
    /// List the adapters of a server
    List {
        /// Server.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one adapter
    Show(NamedArgs),
    /// Delete an adapter; requests that use it run to their end
    Delete(NamedArgs),
    /// Say what an adapter folder compiles to and what would be refused, without a server
    Inspect(DriftArgs),
    /// Write an adapter folder as a plain LoRA that peft loads, without a server
    Export(ExportArgs),
    /// Load an adapter onto the device before it is asked for
    Load {
        /// Which.
        #[command(flatten)]
        named: NamedArgs,
        /// Keep it on the device until it is unloaded
        #[arg(long, value_parser = BoolishValueParser::new())]
        pin: bool,
    },
    /// Take an adapter off the device; it stays in the store
    Unload(NamedArgs),
}

/// One adapter of a server.
#[derive(Clone, Debug, Args)]
pub struct NamedArgs {
    /// Name of the adapter
    pub name: AdapterName,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `polydelta adapter upload`.
#[derive(Clone, Debug, Args)]
pub struct UploadArgs {
    /// Name to serve it under
    pub name: AdapterName,
    /// Folder as peft saved it, or hf:ORG/REPO to fetch one, at a branch, tag or commit as in hf:ORG/REPO@v1.0; weights
    /// that are pickled (adapter_model.bin) are converted without running them
    #[arg(value_name = "DIR|hf:ORG/REPO[@REV]")]
    pub source: AdapterSource,
    /// Replace only this version; "" means that the name must not exist yet
    #[arg(long, value_name = "VERSION")]
    pub expected_version: Option<String>,
    /// Check everything but keep nothing
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub validate_only: bool,
    /// Keep it on the device
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub pin: bool,
    /// Leave aside the chat template that was saved with it; chats for it are rendered with the model's then
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub no_chat_template: bool,
    /// Leave aside the tokenizer that was saved with it; tokens that were added to it have no text then, and come and go as ids
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub no_tokenizer: bool,
    /// Resume the upload with this id
    #[arg(long, value_name = "ID")]
    pub upload_id: Option<String>,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `polydelta adapter inspect`.
#[derive(Clone, Debug, Args)]
pub struct DriftArgs {
    /// The adapter and its base.
    #[command(flatten)]
    pub inspect: InspectArgs,
    /// Say how large its changes are beside the base's weights, which are out of line, and which are none. Reads those weights
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub against_base: bool,
    /// Say how far it moves the logits of these prompts, one a line, which the base and the adapter read on the CPU
    #[arg(long, value_name = "FILE", requires = "against_base")]
    pub prompts: Option<PathBuf>,
}

/// An adapter and the base that it is held against.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// Folder as peft saved it, or hf:ORG/REPO to fetch one, at a branch, tag or commit as in hf:ORG/REPO@v1.0
    #[arg(value_name = "DIR|hf:ORG/REPO[@REV]")]
    pub source: AdapterSource,
    /// Base model it was trained on: a folder, or one of the hub as in hf:ORG/NAME@v1.0. Where it is not given, the
    /// base that the config names, if that is a folder or in the hub's cache; else the bundled model
    #[arg(long, value_name = "DIR|GGUF|hf:ORG/NAME[@REV]")]
    pub model: Option<String>,
    /// Accept fields of adapter_config.json that are not known here, as `serve` does with this flag
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub allow_unknown_adapter_fields: bool,
    /// Print one JSON document instead of text
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// `polydelta adapter export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// The adapter and its base.
    #[command(flatten)]
    pub inspect: InspectArgs,
    /// What to write it as
    #[arg(long = "as", value_name = "METHOD", value_enum, default_value_t)]
    pub method: ExportMethod,
    /// Folder to write it to; made if it is not there, else it must be empty
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
}

/// Methods that adapters are written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExportMethod {
    /// PEFT's LoRA: products of two matrices, and biases
    #[default]
    Lora,
}

/// `polydelta generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// The prompt; `-` or nothing reads it from standard input
    pub prompt: Option<String>,
    /// Adapter to use; the base model where it is not given
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<AdapterName>,
    /// Instead of an adapter: the sum of several, each times its weight, as in `a=0.7,b=-0.3`
    #[arg(long, value_name = "NAME=WEIGHT,…", value_delimiter = ',', value_parser = MixedAdapter::parse)]
    pub mix: Vec<MixedAdapter>,
    /// Send the prompt as the user's message of a chat
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub chat: bool,
    /// Send the conversation in this file instead of a prompt: a JSON array of {"role": "…", "content": "…"}, or an
    /// object with it as its "messages"; `-` reads it from standard input
    #[arg(long, value_name = "FILE")]
    pub messages: Option<PathBuf>,
    /// System message in front of it
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Wait for the whole text instead of printing it as it comes
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub no_stream: bool,
    /// Sampling.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Stopping.
    #[command(flatten)]
    pub stopping: StoppingArgs,
    /// Number of choices
    #[arg(short, long, value_name = "COUNT", help_heading = "Output")]
    pub n: Option<u32>,
    /// Report log-probabilities with this many alternatives
    #[arg(long, value_name = "COUNT", help_heading = "Output")]
    pub logprobs: Option<u32>,
    /// Report log-probabilities of the prompt's tokens, with this many of the most likely ones at each place; with
    /// `--max-tokens 0` nothing else
    #[arg(long, value_name = "COUNT", help_heading = "Output")]
    pub prompt_logprobs: Option<u32>,
    /// Print the prompt too
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = "Output")]
    pub echo: bool,
    /// Write a receipt of the answer to this file, for `polydelta replay`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub receipt: Option<PathBuf>,
    /// Larger goes first
    #[arg(long, value_name = "N", help_heading = "Output")]
    pub priority: Option<i32>,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `polydelta replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// File with a receipt, as `generate --receipt` writes it
    #[arg(value_name = "FILE")]
    pub receipt: PathBuf,
    /// Folder with the two files of the adapter that the request brought with it
    #[arg(long, value_name = "DIR")]
    pub inline_adapter: Option<PathBuf>,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A part of `--mix`. The server checks how many there are and which can be mixed.
#[derive(Clone, Debug, PartialEq)]
pub struct MixedAdapter {
    /// Which adapter.
    pub name: AdapterName,
    /// How much of it.
    pub weight: f32,
}

impl MixedAdapter {
    fn parse(text: &str) -> Result<Self, String> {
        let Some((name, weight)) = text.rsplit_once('=') else {
            return Err("expected a name and a weight, as in sql=0.7".to_owned());
        };
        let name = name.parse().map_err(|error: InvalidAdapterName| error.to_string())?;
        let weight: f32 = weight.parse().map_err(|_| format!("{weight:?} is not a number"))?;
        match weight.is_finite() {
            true => Ok(Self { name, weight }),
            false => Err(format!("a weight of {weight} means nothing")),
        }
    }
}

impl GenerateArgs {
    /// Check what the flags say together.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn check(&self) -> Result<(), ConfigProblems> {
        let mut problems = Vec::new();
        if self.system.is_some() && !self.chat && self.messages.is_none() {
            problems.push(ConfigProblem::Needs { flag: "--system", other: "--chat" });
        }
        if self.messages.is_some() && self.prompt.is_some() {
            problems.push(ConfigProblem::Conflict { flag: "--messages", other: "a prompt" });
        }
        if self.adapter.is_some() && !self.mix.is_empty() {
            problems.push(ConfigProblem::Conflict { flag: "--mix", other: "--adapter" });
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigProblems(problems)) }
    }
}

/// What is not given comes from the model's generation config. The server checks the ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 is greedy
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens with this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this fraction of the most likely one
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Same seed, same text
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Divides the logits of tokens seen before; 1 is neutral
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from the logits of tokens generated before
    #[arg(long, value_name = "X")]
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time a token was generated before
    #[arg(long, value_name = "X")]
    pub frequency_penalty: Option<f32>,
}

/// When to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Stopping")]
pub struct StoppingArgs {
    /// Most tokens to generate
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Least tokens to generate
    #[arg(long, value_name = "N")]
    pub min_tokens: Option<u32>,
    /// Text that ends the output, in which \n, \t, \r and \\ stand for a line break, a tab, a carriage return and a
    /// backslash; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Do not stop at the model's end-of-sequence token
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub ignore_eos: bool,
}
