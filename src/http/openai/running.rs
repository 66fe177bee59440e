//! The prompts of a request in the engine, read side by side: one that is not read is laid aside before long.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::super::call::CallContext;
use super::super::refused::Refused;
use super::super::site::Site;
use super::asked::Asked;
use super::pieces::{Piece, Pieces};
use crate::admission::{Arrival, Generation, GenerationError, GenerationEvent, GenerationInfo};
use crate::types::Usage;

/// What was admitted. Dropping it ends what still runs.
pub(super) struct Running {
    prompts: Vec<(Generation, Pieces)>,
    /// Where the next look begins, so that no prompt can starve another.
    turn: usize,
}

impl Running {
    /// Admit every prompt, or none.
    pub(super) async fn admit(site: &Site, context: &CallContext, asked: &mut Asked) -> Result<Self, Refused> {
        let arrival = Arrival {
            client: context.client,
            connection: context.connection,
            arrived: context.arrived,
            deadline: None,
        };
        let id = asked.request_id.clone().unwrap_or_else(|| context.request_id.clone());
        let inputs = std::mem::take(&mut asked.prompts);
        let (several, mut prompts) = (inputs.len() > 1, Vec::with_capacity(inputs.len()));
        for (index, input) in (0u32..).zip(inputs) {
            let id = if several { format!("{id}-{index}") } else { id.clone() };
            let request = asked.of_prompt(input, id, site.max_message_bytes);
            let echoes = request.input.options.echo;
            let generation = site.gate.admit(request, arrival).await?;
            let (first, stop_ids) = (index.saturating_mul(asked.choices), asked.stopping.stop_token_ids.clone());
            prompts.push((generation, Pieces::new(asked.shape.clone(), first, asked.choices, echoes, stop_ids)));
        }
        Ok(Self { prompts, turn: 0 })
    }

    /// What serves them; `None` where there is no prompt.
    pub(super) fn info(&self) -> Option<&GenerationInfo> {
        self.prompts.first().map(|(generation, _)| generation.info())
    }

    /// Choices of all prompts.
    pub(super) fn choices(&self) -> usize {
        self.prompts.iter().map(|(generation, _)| generation.info().choices as usize).sum()
    }

    /// More of some choice; `None` once all have ended. May be dropped half-way: nothing is lost.
    pub(super) async fn next(&mut self) -> Option<Result<Piece, GenerationError>> {
        loop {
            let (index, event) = self.next_event().await?;
            let (generation, pieces) = self.prompts.get_mut(index)?;
            match event.and_then(|event| pieces.take(event, generation)) {
                Ok(Some(piece)) => return Some(Ok(piece)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    async fn next_event(&mut self) -> Option<(usize, Result<GenerationEvent, GenerationError>)> {
        let Self { prompts, turn } = self;
        poll_fn(|cx| {
            let (count, mut open) = (prompts.len(), false);
            for index in (*turn..count).chain(0..*turn) {
                let Some((generation, _)) = prompts.get_mut(index) else { continue };
                match pin!(generation.next()).poll(cx) {
                    Poll::Ready(Some(event)) => {
                        *turn = (index + 1) % count;
                        return Poll::Ready(Some((index, event)));
                    }
                    Poll::Ready(None) => {}
                    Poll::Pending => open = true,
                }
            }
            if open { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }

    /// Token counts of all, once they have ended.
    pub(super) fn usage(&self) -> Usage {
        let mut all = Usage::default();
        for (usage, _) in self.prompts.iter().filter_map(|(_, pieces)| pieces.ended.as_ref()) {
            all.prompt_tokens = all.prompt_tokens.saturating_add(usage.prompt_tokens);
            all.completion_tokens = all.completion_tokens.saturating_add(usage.completion_tokens);
            all.cached_tokens = all.cached_tokens.saturating_add(usage.cached_tokens);
        }
        all
    }

    /// The receipt of the one prompt, where it was asked for.
    pub(super) fn receipt(&self) -> Option<&str> {
        self.prompts.first().and_then(|(_, pieces)| pieces.ended.as_ref()?.1.as_deref())
    }
}
