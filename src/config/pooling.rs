//! The verbs that have texts read: `embed` and `score`.

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

use super::client::ClientArgs;
use crate::types::AdapterName;

/// Which tokens an embedding is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PoolingChoice {
    /// The last one.
    #[default]
    Last,
    /// The mean of all.
    Mean,
    /// The first one.
    First,
}

/// `polydelta embed`.
#[derive(Clone, Debug, Args)]
pub struct EmbedArgs {
    /// Texts to embed, each by itself
    #[arg(value_name = "TEXT", required = true)]
    pub texts: Vec<String>,
    /// Adapter to use; the base model where it is not given
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<AdapterName>,
    /// Which tokens an embedding is made of
    #[arg(long, value_enum, default_value_t, value_name = "TOKENS")]
    pub pooling: PoolingChoice,
    /// Divide each embedding by its length
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub normalize: bool,
    /// Keep so many numbers of each, the first ones
    #[arg(long, value_name = "COUNT")]
    pub dimensions: Option<u32>,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `polydelta score`.
#[derive(Clone, Debug, Args)]
pub struct ScoreArgs {
    /// Texts to score, each by itself
    #[arg(value_name = "TEXT", required = true)]
    pub texts: Vec<String>,
    /// Adapter with a classification head
    #[arg(long, value_name = "NAME")]
    pub adapter: AdapterName,
    /// Server.
    #[command(flatten)]
    pub client: ClientArgs,
}
