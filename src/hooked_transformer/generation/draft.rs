//! [`Draft`]: what proposes tokens that a run of the model checks.

use std::ops::Range;

use super::steps::{going_rows, last_token, run_input};
use super::token_columns::TokenColumns;
use crate::generate::{Continuation, Sampler};
use crate::hooked_transformer::run_options::RunOptions;
use crate::hooked_transformer::HookedTransformer;
use crate::model::rotary::LengthClass;
use crate::model::KeyValueStore;
use crate::{Error, Result};

/// What proposes tokens, and how many at a time.
pub(super) struct Draft {
    tokens: usize,
    source: Source,
}

enum Source {
    Model(Box<DraftModel>),
    /// What followed the last so many tokens earlier in the row.
    PromptLookup(usize),
}

/// A smaller model that runs along.
struct DraftModel {
    model: HookedTransformer,
    store: Option<KeyValueStore>,
}

impl Draft {
    pub(super) fn model(model: &HookedTransformer, tokens: usize) -> Self {
        Draft { tokens, source: Source::Model(Box::new(DraftModel { model: model.clone(), store: None })) }
    }

    pub(super) fn prompt_lookup(ngram: usize, tokens: usize) -> Self {
        Draft { tokens, source: Source::PromptLookup(ngram) }
    }

    /// How many tokens are proposed at a time at most.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Prepares for a generation of a model with so many rows and columns.
    pub(super) fn start(&mut self, model: &HookedTransformer, rows: usize, columns: usize) -> Result<()> {
        if !(1..=64).contains(&self.tokens) {
            return Err(Error::option_value("draft tokens", self.tokens, "it must be from 1 to 64"));
        }
        let varies = |model: &HookedTransformer| model.config().rotations().any(LengthClass::varies);
        let refused = |why: &str| Err(Error::setting("draft", format!("`draft` cannot be used: {why}")));
        if varies(model) {
            return refused("this model's rotations depend on the length of a sequence");
        }
        match &mut self.source {
            Source::PromptLookup(0) => Err(Error::option_value("ngram", 0, "it must be at least 1")),
            Source::PromptLookup(_) => Ok(()),
            Source::Model(draft) => {
                let [ours, theirs] =
                    [model, &draft.model].map(|model| (model.config().d_vocab, model.config().d_vocab_out));
                if ours != theirs {
                    return refused(&format!(
                        "the draft has {} tokens and {} outputs, and the model {} and {}",
                        theirs.0, theirs.1, ours.0, ours.1
                    ));
                }
                if varies(&draft.model) {
                    return refused("the draft's rotations depend on the length of a sequence");
                }
                draft.store = Some(KeyValueStore::of_columns(&draft.model, rows, columns, true)?);
                Ok(())
            }
        }
    }

    /// Proposes up to `most` tokens for each row that goes on, one list a row and all of one length; empty where nothing is known.
    pub(super) fn propose(
        &mut self,
        sampler: &Sampler,
        columns: &TokenColumns,
        rows: &[Continuation],
        active: &[usize],
        most: usize,
    ) -> Result<Vec<Vec<i64>>> {
        let most = most.min(self.tokens);
        let mut proposals = match &mut self.source {
            Source::PromptLookup(ngram) => {
                active.iter().map(|row| looked_up(rows[*row].ids(), *ngram, most)).collect::<Vec<_>>()
            }
            Source::Model(draft) => draft.propose(sampler, columns, rows, active, most)?,
        };
        let shortest = proposals.iter().map(Vec::len).min().unwrap_or(0);
        proposals.iter_mut().for_each(|row| row.truncate(shortest));
        Ok(proposals)
    }

    /// Forgets what was proposed beyond the first `len` columns.
    pub(super) fn truncate(&mut self, len: usize) -> Result<()> {
        match &mut self.source {
            Source::Model(draft) => draft.store.as_mut().map_or(Ok(()), |store| store.truncate(len)),
            Source::PromptLookup(_) => Ok(()),
        }
    }
}

impl DraftModel {
    fn propose(
        &mut self,
        sampler: &Sampler,
        columns: &TokenColumns,
        rows: &[Continuation],
        active: &[usize],
        most: usize,
    ) -> Result<Vec<Vec<i64>>> {
        let Some(store) = &mut self.store else { return Ok(Vec::new()) };
        let mut columns = columns.clone();
        let n_rows = rows.len();
        let mut guesses: Vec<Continuation> = active.iter().map(|row| rows[*row].clone()).collect();
        let mut proposals = vec![Vec::new(); active.len()];
        let longest = guesses.iter().map(|row| row.ids().len()).max().unwrap_or(0);
        let room = (self.model.config().n_ctx + 1).saturating_sub(longest);
        for _ in 0..most.min(room) {
            let new: Range<usize> = store.len()..columns.len();
            let run = RunOptions::new().past(store).logits_at(last_token());
            let plan = self.model.plan(&run)?;
            let logits =
                self.model.run_planned(run_input(&columns, new)?, &plan, run)?.0.take_logits()?.f_squeeze_dim(1)?;
            let logits = going_rows(&logits, active, n_rows)?; // [active row, d_vocab]
                                                               // A draft that excludes all tokens proposes nothing more.
            let Ok(ids) = sampler.sample(&logits, &mut guesses) else { break };
            let mut column = vec![None; n_rows];
            for (nth, (id, row)) in ids.iter().zip(active).enumerate() {
                column[*row] = Some(*id);
                proposals[nth].push(*id);
                guesses[nth].push(*id)?;
            }
            columns.push(&column);
        }
        Ok(proposals)
    }
}

/// Up to `most` tokens that followed the last `ngram` tokens at the latest place where these occurred before, or the last tokens of a
/// shorter run.
fn looked_up(ids: &[i64], ngram: usize, most: usize) -> Vec<i64> {
    for n in (1..=ngram.min(ids.len().saturating_sub(1))).rev() {
        let last = &ids[ids.len() - n..];
        let earlier = ids[..ids.len() - 1].windows(n).rposition(|window| window == last);
        if let Some(place) = earlier {
            return ids[place + n..].iter().copied().take(most).collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_proposed() {
        assert_eq!(looked_up(&[1, 2, 3, 4, 1, 2], 2, 3), [3, 4, 1]);
        assert_eq!(looked_up(&[1, 2, 3, 9, 2], 2, 8), [3, 9, 2]); // one token, where two do not occur
        assert_eq!(looked_up(&[7, 7, 7], 2, 2), [7]); // of overlapping places the latest
        assert_eq!(looked_up(&[1, 2, 3], 2, 3), [0i64; 0]);
        assert_eq!(looked_up(&[1], 3, 3), [0i64; 0]);
    }
}
