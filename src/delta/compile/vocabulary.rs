//! Vocabularies that were resized before the training. PEFT saves embedding and head whole then, so the file says what every token's
//! rows are. Their tensors are cut, or filled up, to the base's size before a method sees them, and whatever it is compiles them as on
//! any base; what was cut off comes back behind that as rows of tokens that the base does not have.

use super::compilation::{Base, Compilation, key};
use super::tensors::TensorSet;
use crate::delta::DeltaError;
use crate::delta::class::{AddedTokens, DeltaOp, EmbeddingLowRank, EmbeddingRows, LowRank};
use crate::delta::layout::{BaseReadError, Module, Site};
use crate::ops::HostTensor;
use crate::types::MAX_ADDED_TOKENS;

const WEIGHT: &str = "weight";
const COPY: &str = "base_layer.weight";
/// As PEFT calls a copy of the base's inside of its wrapper for trainable tokens.
const COPY_OF_TOKENS: &str = "token_adapter.base_layer.weight";
/// What its wrapper for saved modules holds besides: the base's, and the saved one once more.
const UNUSED: &str = "original_module.weight";
const AGAIN: &str = "modules_to_save.weight";

/// An embedding or a head of another size than the base's.
pub(super) struct Resized {
    tokens: usize,
    vocab_size: usize,
    /// Key of a tensor that says so.
    of: String,
    embed: Part,
    head: Part,
}

/// What the file has of a module beyond the base's tokens.
#[derive(Default)]
struct Part {
    /// `[added, hidden]`; absent where the file does not have the module.
    rows: Option<HostTensor>,
    /// Of LoRA: A of the embedding, `[rank, added]`, or B of the head, `[added, rank]`.
    lora: Option<HostTensor>,
}

impl Resized {
    /// Take what is beyond the base's tokens out of the file; `None` where its vocabulary is the base's.
    pub(super) fn take(
        tensors: &mut TensorSet<'_>,
        base: Base<'_>,
        invocation: &[u32],
    ) -> Result<Option<Self>, DeltaError> {
        let layout = base.layout;
        let of_tokens = |module: &&Module| matches!(module.site, Site::Embed | Site::LmHead);
        let modules: Vec<&Module> = layout.modules().filter(of_tokens).collect();
        let sized = |tensors: &TensorSet<'_>, module: &Module| {
            [COPY, COPY_OF_TOKENS, WEIGHT].into_iter().find_map(|parameter| {
                let name = key(module, parameter);
                match tensors.shape(&name)? {
                    [tokens, width] if *width == layout.hidden_size => {
                        Some((tensors.own_key(&name).unwrap_or(&name).to_owned(), *tokens))
                    }
                    _ => None,
                }
            })
        };
        let found: Vec<(String, usize)> = modules.iter().filter_map(|module| sized(tensors, module)).collect();
        let Some((of, tokens)) = found.iter().find(|(_, tokens)| *tokens != layout.vocab_size).cloned() else {
            return Ok(None);
        };
        let (embed, head) = (Part::default(), Part::default());
        let mut resized = Self { tokens, vocab_size: layout.vocab_size, of, embed, head };
        if tokens > layout.vocab_size + MAX_ADDED_TOKENS || tokens == 0 {
            return Err(resized.refused("at most 1024 tokens may be added, and none of the first taken away"));
        }
        if let Some((of, tokens)) = found.into_iter().find(|(_, other)| *other != tokens) {
            resized.tokens = tokens;
            return Err(Self { of, ..resized }.refused("embedding and head of one adapter are of different sizes"));
        }
        if !invocation.is_empty() {
            return Err(resized.refused("an adapter that tokens of the prompt activate has the base's vocabulary"));
        }
        for module in modules {
            let part = resized.part(tensors, base, module)?;
            match module.site {
                Site::Embed => resized.embed = part,
                _ => resized.head = part,
            }
        }
        Ok(Some(resized))
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    fn refused(&self, reason: &'static str) -> DeltaError {
        let Self { tokens, vocab_size, of, .. } = self;
        DeltaError::ResizedVocabulary { of: of.clone(), tokens: *tokens, vocab_size: *vocab_size, reason }
    }

    fn part(&self, tensors: &mut TensorSet<'_>, base: Base<'_>, module: &Module) -> Result<Part, DeltaError> {
        let (name, mut part) = (|parameter| key(module, parameter), Part::default());
        tensors.rename(&name(COPY_OF_TOKENS), name(COPY));
        tensors.remove(&name(UNUSED));
        let whole = [self.tokens, base.layout.hidden_size];
        if let Some(again) = tensors.take_shaped(&name(AGAIN), &whole)?
            && let Some(saved) = tensors.peek_shaped(&name(WEIGHT), &whole)?
            && !saved.data.equals(&again.data)
        {
            return Err(DeltaError::Untied { first: name(WEIGHT), second: name(AGAIN) });
        }
        for parameter in [COPY, WEIGHT].map(name) {
            if tensors.shape(&parameter) == Some(&whole[..]) {
                let fill = (self.tokens < self.vocab_size && !tensors.has_no_numbers()).then(|| of_base(base, module));
                part.rows = Some(tensors.resize(&parameter, false, self.vocab_size, fill.transpose()?.as_ref())?);
            }
        }
        let (parameter, across) = match module.site {
            Site::Embed => (name("lora_embedding_A"), true),
            _ => (name("lora_B.weight"), false),
        };
        if tensors.shape(&parameter).and_then(|shape| shape.get(usize::from(across))) == Some(&self.tokens) {
            part.lora = Some(tensors.resize(&parameter, across, self.vocab_size, None)?);
        }
        Ok(part)
    }

    /// Put the rows back behind what was compiled of the base's tokens.
    pub(super) fn join(self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let (layout, ops) = (compilation.base.layout, &mut compilation.ops);
        self.check(ops)?;
        if self.tokens < self.vocab_size {
            return Ok(());
        }
        let tied = |other: &Part| other.rows.clone().filter(|_| layout.tied);
        let embed = self.embed.rows.clone().or_else(|| tied(&self.head));
        let head = self.head.rows.clone().or_else(|| tied(&self.embed));
        let lacking = "the file must have both embedding and head whole; save it with save_embedding_layers=True";
        let (Some(embed), Some(head)) = (embed, head) else { return Err(self.refused(lacking)) };
        if compilation.tensors.has_no_numbers() {
            ops.push((Site::LmHead, AddedTokens { rows: head }.into()));
            return Ok(());
        }
        let mut rows =
            Rows { first: self.vocab_size, width: layout.hidden_size, embed: embed.to_f32(), head: head.to_f32() };
        for (site, op) in ops.iter() {
            match op {
                DeltaOp::EmbeddingLowRank(op) => rows.add_to_embedding(op, self.embed.lora.as_ref()),
                DeltaOp::LowRank(op) if *site == Site::LmHead => rows.add_to_head(op, self.head.lora.as_ref()),
                _ => {}
            }
        }
        rows.join(ops, self.tokens)
    }

    /// Refuse what would change rows of the added tokens and says nothing of how.
    fn check(&self, ops: &[(Site, DeltaOp)]) -> Result<(), DeltaError> {
        let beyond = |ids: &[u32]| ids.last().is_some_and(|id| *id as usize >= self.tokens);
        let is_served = |site: Site, op: &DeltaOp| match (site, op) {
            (Site::Embed | Site::LmHead, DeltaOp::EmbeddingRows(op)) => !beyond(&op.ids),
            (Site::Embed, DeltaOp::EmbeddingLowRank(_)) => self.embed.lora.is_some(),
            (Site::LmHead, DeltaOp::LowRank(_)) => self.head.lora.is_some(),
            (Site::LmHead, DeltaOp::Dense(op)) => op.replaces,
            (Site::Embed | Site::LmHead, _) => false,
            _ => true,
        };
        match ops.iter().find(|(site, op)| !is_served(*site, op)) {
            Some(_) => Err(self.refused(
                "only LoRA without DoRA, modules_to_save and trainable tokens may be on an embedding or a head of another size",
            )),
            None => Ok(()),
        }
    }
}

fn of_base(base: Base<'_>, module: &Module) -> Result<HostTensor, DeltaError> {
    let missing = || BaseReadError { name: module.weight.clone(), reason: "it is not there".to_owned() };
    Ok(base.weights.tensor(&module.weight)?.ok_or_else(missing)?)
}

/// Rows of the added tokens, `[added, width]`.
struct Rows {
    /// Id of the first.
    first: usize,
    width: usize,
    embed: Vec<f32>,
    head: Vec<f32>,
}

impl Rows {
    /// e += s·B·A[:, id], A `[rank, added]`, B `[hidden, rank]`.
    fn add_to_embedding(&mut self, op: &EmbeddingLowRank, a: Option<&HostTensor>) {
        let Some(a) = a else { return };
        let (a, b, added) = (a.matrix(), op.b.matrix(), a.cols());
        for (at, number) in self.embed.iter_mut().enumerate() {
            let (token, column) = (at / self.width, at % self.width);
            debug_assert!(token < added);
            let product = (0..a.rows).map(|rank| f64::from(b.get(column, rank)) * f64::from(a.get(rank, token))).sum();
            *number = sum(*number, op.scaling, product);
        }
    }

    /// w += s·B[id, :]·A, A `[rank, hidden]`, B `[added, rank]`.
    fn add_to_head(&mut self, op: &LowRank, b: Option<&HostTensor>) {
        let Some(b) = b else { return };
        let (a, b) = (op.a.matrix(), b.matrix());
        for (at, number) in self.head.iter_mut().enumerate() {
            let (token, column) = (at / self.width, at % self.width);
            let product = (0..a.rows).map(|rank| f64::from(b.get(token, rank)) * f64::from(a.get(rank, column))).sum();
            *number = sum(*number, op.scaling, product);
        }
    }

    /// Give the embedding the rows beside those that it has, and the head what it needs to have them too.
    fn join(mut self, ops: &mut Vec<(Site, DeltaOp)>, tokens: usize) -> Result<(), DeltaError> {
        let mut of_base = None;
        let mut kept = Vec::with_capacity(ops.len() + 2);
        for (site, op) in ops.drain(..) {
            match op {
                DeltaOp::EmbeddingRows(op) => {
                    let op = self.replace(site, op)?;
                    match site {
                        Site::Embed => of_base = Some(op),
                        _ if op.ids.is_empty() => {}
                        _ => kept.push((site, op.into())),
                    }
                }
                op => kept.push((site, op)),
            }
        }
        let mut embed = Vec::new();
        let mut ids = Vec::new();
        if let Some(op) = of_base {
            embed = op.rows.to_f32();
            ids.clone_from(&op.ids);
            if op.tied && !op.ids.is_empty() {
                kept.push((Site::LmHead, EmbeddingRows { tied: false, ..op }.into()));
            }
        }
        embed.extend(self.embed);
        ids.extend(self.first as u32..tokens as u32);
        let rows = HostTensor::f32(&[ids.len(), self.width], embed);
        kept.push((Site::Embed, EmbeddingRows { ids, rows, tied: false }.into()));
        let rows = HostTensor::f32(&[tokens - self.first, self.width], self.head);
        kept.push((Site::LmHead, AddedTokens { rows }.into()));
        *ops = kept;
        Ok(())
    }

    /// Take over the rows that an op has of added tokens: what is left of it are the base's.
    fn replace(&mut self, site: Site, op: EmbeddingRows) -> Result<EmbeddingRows, DeltaError> {
        let EmbeddingRows { ids, rows, tied } = op;
        let of_base = ids.partition_point(|id| (*id as usize) < self.first);
        if of_base == ids.len() {
            return Ok(EmbeddingRows { ids, rows, tied });
        }
        let added = rows.selected(&(of_base..ids.len()).collect::<Vec<_>>())?.to_f32();
        for (id, row) in ids[of_base..].iter().zip(added.chunks_exact(self.width)) {
            let at = (*id as usize - self.first) * self.width..(*id as usize - self.first + 1) * self.width;
            if site == Site::Embed {
                self.embed[at.clone()].copy_from_slice(row);
            }
            if site == Site::LmHead || tied {
                self.head[at].copy_from_slice(row);
            }
        }
        let rows = rows.selected(&(0..of_base).collect::<Vec<_>>())?;
        Ok(EmbeddingRows { ids: ids[..of_base].to_vec(), rows, tied })
    }
}

fn sum(number: f32, scaling: f32, product: f64) -> f32 {
    (f64::from(number) + f64::from(scaling) * product) as f32
}
