//! Tokens whose rows of the embedding, or of the head, a file has itself, in place of the base's: `TRAINABLE_TOKENS`, and
//! `trainable_token_indices` beside LoRA. On a tied base the head has the rows of the embedding, unless it has its own.

use super::compilation::{Compilation, key};
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::EmbeddingRows;
use crate::delta::layout::{BaseLayout, Module, Site};
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::Targets;
use crate::files::Json;
use crate::types::MAX_ADDED_TOKENS;

const KIND: &str = "trainable tokens";
const TOKEN_INDICES: &str = "token_indices";
const DELTA: &str = "trainable_tokens_delta";
const BESIDE: &str = "token_adapter.trainable_tokens_delta";

/// `TRAINABLE_TOKENS`: the same tokens of every target.
pub(super) struct TrainableTokensConfig {
    targets: Targets,
    ids: Vec<u32>,
}

impl TrainableTokensConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout) -> Result<Self, DeltaError> {
        const FIELD: &str = TOKEN_INDICES;
        let targets = Targets::read(fields, Some(&["embed_tokens"]))?;
        match fields.get(FIELD) {
            Some(list) => Ok(Self { targets, ids: fields.ids(FIELD, list, layout.vocab_size + MAX_ADDED_TOKENS)? }),
            None => Err(fields.bad(FIELD, "token ids, each once")),
        }
    }
}

impl Method for TrainableTokensConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(DELTA)
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        let (mut embed, mut head) = (None, None);
        for module in layout.modules() {
            if !compilation.is_target(&self.targets, module)? {
                continue;
            }
            match module.site {
                Site::Embed => embed = Some(self.ids.as_slice()),
                Site::LmHead => head = Some(self.ids.as_slice()),
                _ => return Err(DeltaError::WrongModule { module: module.path.clone(), kind: KIND }),
            }
        }
        if layout.tied && embed.is_some() && head.is_some() {
            // PEFT gives the head the embedding's rows, and cannot compute what is a target beside that.
            let kind = "trainable tokens beside those of the embedding that it is";
            return Err(DeltaError::WrongModule { module: "lm_head".to_owned(), kind });
        }
        Tokens::new(layout, [embed, head]).take(compilation, DELTA, TOKEN_INDICES)
    }
}

/// `trainable_token_indices`: tokens of the embedding, or by the names of modules.
pub(super) struct TokenIndices {
    lists: Vec<(Name, Vec<u32>)>,
    /// `ensure_weight_tying`: embedding and head of a tied base must not have tokens of their own.
    tie: bool,
}

enum Name {
    /// Whatever it is called.
    Embedding,
    /// The end of a path.
    End(String),
}

impl Name {
    fn is_of(&self, module: &Module, path: &str) -> bool {
        match self {
            Self::Embedding => module.site == Site::Embed,
            Self::End(name) => path.ends_with(name),
        }
    }
}

impl TokenIndices {
    const FIELD: &'static str = "trainable_token_indices";

    pub(super) fn read(fields: &Fields, layout: &BaseLayout, tie: bool) -> Result<Self, DeltaError> {
        let ids = |list: &Json| fields.ids(Self::FIELD, list, layout.vocab_size + MAX_ADDED_TOKENS);
        let lists = match fields.get(Self::FIELD) {
            None => Vec::new(),
            Some(Json::Array(list)) if list.is_empty() => Vec::new(),
            Some(Json::Object(lists)) => lists
                .iter()
                .map(|(name, list)| Ok((Name::End(name.clone()), ids(list)?)))
                .collect::<Result<_, DeltaError>>()?,
            Some(list) => vec![(Name::Embedding, ids(list)?)],
        };
        Ok(Self { lists, tie })
    }

    /// Tokens of embedding and head by their names.
    fn named(&self, compilation: &Compilation<'_>) -> Result<[Option<&[u32]>; 2], DeltaError> {
        let mut found = [None, None];
        for (name, ids) in &self.lists {
            let mut matched = false;
            for module in compilation.base.layout.modules() {
                let path = compilation.tensors.level().path(module);
                if !path.is_some_and(|path| name.is_of(module, &path)) {
                    continue;
                }
                let place = match module.site {
                    Site::Embed => &mut found[0],
                    Site::LmHead => &mut found[1],
                    _ => return Err(DeltaError::WrongModule { module: module.path.clone(), kind: KIND }),
                };
                if place.replace(ids.as_slice()).is_some() {
                    return Err(Self::bad(name, "names of different modules"));
                }
                matched = true;
            }
            if !matched {
                return Err(Self::bad(name, "the name of the embedding or of the head"));
            }
        }
        Ok(found)
    }

    fn bad(name: &Name, expected: &'static str) -> DeltaError {
        let found = match name {
            Name::Embedding => "a list",
            Name::End(name) => name,
        };
        DeltaError::BadField { field: Self::FIELD.to_owned(), found: found.chars().take(80).collect(), expected }
    }

    /// Take the rows, of modules that are no targets themselves: PEFT has no sum of the two.
    pub(super) fn compile(
        &self,
        compilation: &mut Compilation<'_>,
        is_target: impl Fn(&Compilation<'_>, &Module) -> Result<bool, DeltaError>,
    ) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        let [embed, head] = self.named(compilation)?;
        if layout.tied && self.tie && embed.zip(head).is_some_and(|(embed, head)| embed != head) {
            let expected = "the same tokens of tied modules, as ensure_weight_tying asks";
            return Err(Self::bad(&Name::Embedding, expected));
        }
        let tokens = Tokens::new(layout, [embed, head]);
        for module in layout.modules() {
            if tokens.change(module) && is_target(compilation, module)? {
                let kind = "trainable tokens and LoRA at once";
                return Err(DeltaError::WrongModule { module: module.path.clone(), kind });
            }
        }
        tokens.take(compilation, BESIDE, Self::FIELD)
    }
}

/// Which tokens have rows of their own.
struct Tokens<'a> {
    embed: Option<&'a [u32]>,
    head: Option<&'a [u32]>,
    /// The head is the embedding and has its rows.
    tied: bool,
}

impl<'a> Tokens<'a> {
    /// The head of a tied base has the rows of the embedding unless it has other tokens.
    fn new(layout: &BaseLayout, [embed, head]: [Option<&'a [u32]>; 2]) -> Self {
        let tied = layout.tied && embed.is_some() && head.is_none_or(|head| Some(head) == embed);
        Self { embed, head: head.filter(|_| !tied), tied }
    }

    /// Those whose rows the file has for a module.
    fn saved_of(&self, module: &Module) -> Option<&'a [u32]> {
        match module.site {
            Site::Embed => self.embed,
            Site::LmHead => self.head,
            _ => None,
        }
    }

    /// Whether a module gets any.
    fn change(&self, module: &Module) -> bool {
        self.saved_of(module).is_some() || (self.tied && module.site == Site::LmHead)
    }

    /// Take their rows. The head's of a tied base are in the file once, or twice the same. `field` lists them.
    fn take(
        &self,
        compilation: &mut Compilation<'_>,
        parameter: &'static str,
        field: &'static str,
    ) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        let last = [self.embed, self.head].into_iter().flatten().flatten().max();
        if let Some(id) = last.filter(|id| **id as usize >= compilation.vocab_size) {
            return Err(DeltaError::ResizedVocabulary {
                of: field.to_owned(),
                tokens: *id as usize + 1,
                vocab_size: compilation.vocab_size,
                reason: "the file has no rows of embedding and head for the others",
            });
        }
        for module in layout.modules() {
            if self.change(module) && compilation.saved.contains(module) {
                let kind = "trainable tokens where it is saved whole";
                return Err(DeltaError::WrongModule { module: module.path.clone(), kind });
            }
            let Some(ids) = self.saved_of(module) else { continue };
            let rows = compilation.required(module, parameter, &[ids.len(), layout.hidden_size])?;
            let tied = self.tied && module.site == Site::Embed;
            if tied {
                compilation.same_in_head(parameter, &key(module, parameter), &rows)?;
            }
            let mut order: Vec<usize> = (0..ids.len()).collect();
            order.sort_unstable_by_key(|index| ids[*index]);
            let sorted = order.is_sorted() || compilation.tensors.has_no_numbers();
            let rows = if sorted { rows } else { rows.selected(&order)? };
            let ids = order.iter().map(|index| ids[*index]).collect();
            compilation.push(module.site, EmbeddingRows { ids, rows, tied });
        }
        Ok(())
    }
}
