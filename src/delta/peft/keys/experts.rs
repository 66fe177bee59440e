//! Which part of a sparse block a path means, by the names of transformers 5 and of transformers 4.

use std::collections::BTreeMap;

use crate::delta::layout::{BaseLayout, SparseBlock};

/// The sparse blocks of a base by their paths without the level in front.
pub(crate) struct SparsePaths<'a>(BTreeMap<&'a str, &'a SparseBlock>);

/// What a path means within a sparse block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SparsePart<'a> {
    /// The router.
    Router(&'a SparseBlock),
    /// All experts, whose matrices are two parameters.
    Experts(&'a SparseBlock),
    /// A matrix of an expert: gate, up, down.
    Matrix(&'a SparseBlock, u32, usize),
    /// An expert that the block does not have.
    NoExpert(&'a SparseBlock, u64),
    /// Something of router or experts that has no name here.
    Other(&'a SparseBlock),
}

impl<'a> SparsePaths<'a> {
    pub(crate) fn of(layout: &'a BaseLayout) -> Self {
        let core = |path: &'a str| path.strip_prefix("model.").unwrap_or(path);
        let both = |block: &'a SparseBlock| [(core(&block.path), block), (core(&block.path_apart), block)];
        Self(layout.sparse_blocks().flat_map(both).collect())
    }

    /// The part at a path; `None` where that is of no router and no expert.
    pub(crate) fn part(&self, path: &str) -> Option<SparsePart<'a>> {
        let mut ends = path.match_indices('.').map(|(at, _)| at);
        let (of_block, block) = ends.find_map(|at| Some((&path[..at], *self.0.get(&path[..at])?)))?;
        let is_at = |path: &str| path.strip_suffix(of_block).is_some_and(|lead| matches!(lead, "" | "model."));
        let within: Vec<&str> = path[of_block.len() + 1..].split('.').collect();
        match within[..] {
            ["gate"] => Some(SparsePart::Router(block)),
            ["experts"] if is_at(&block.path) => Some(SparsePart::Experts(block)),
            ["experts", expert, name] if is_at(&block.path_apart) => Some(matrix(block, expert, name)),
            ["gate" | "experts", ..] => Some(SparsePart::Other(block)),
            _ => None,
        }
    }
}

fn matrix<'a>(block: &'a SparseBlock, expert: &str, name: &str) -> SparsePart<'a> {
    let matrix = block.names_apart.iter().position(|own| *own == name);
    let number = expert.parse::<u64>().ok().filter(|number| number.to_string() == expert);
    match (number, matrix) {
        (Some(number), Some(_)) if number >= block.experts as u64 => SparsePart::NoExpert(block, number),
        (Some(number), Some(matrix)) => SparsePart::Matrix(block, number as u32, matrix),
        _ => SparsePart::Other(block),
    }
}

impl SparsePart<'_> {
    /// Whether LoRA of this name may stand here.
    pub(crate) fn takes(&self, parameter: &str) -> bool {
        const OF_ONE: [&str; 2] = ["lora_A.weight", "lora_B.weight"];
        match self {
            Self::Router(_) | Self::Matrix(..) => OF_ONE.contains(&parameter),
            // PEFT wraps the second parameter that it changes around the first.
            Self::Experts(_) => OF_ONE.contains(&parameter.strip_prefix("base_layer.").unwrap_or(parameter)),
            Self::NoExpert(..) | Self::Other(_) => false,
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> Option<String> {
        match self {
            Self::Router(block) => Some(block.router()),
            Self::Experts(block) => Some(block.all_experts()),
            Self::Matrix(block, expert, matrix) => Some(block.matrix(*expert, *matrix)),
            Self::NoExpert(..) | Self::Other(_) => None,
        }
    }
}
