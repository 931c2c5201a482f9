//! The steps of a [`Generation`]: proposals, a run of the model, and the choice of tokens.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::options::StepInfo;
use super::token_columns::TokenColumns;
use super::{Generation, GenerationStep, RowStep};
use crate::error::KeyValueStoreError;
use crate::generate::{Continuation, Progress};
use crate::hooked_transformer::run_input::RunInput;
use crate::hooked_transformer::run_options::RunOptions;
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::tensor::span::Span;
use crate::text::positions::Positions;
use crate::{Error, Result};

impl Generation<'_> {
    /// The rows that go on.
    fn active(&self) -> Vec<usize> {
        (0..self.rows.len()).filter(|row| self.rows[*row].stop_reason().is_none()).collect()
    }

    /// Runs the model, chooses the next tokens, and makes the steps ready.
    pub(super) fn advance(&mut self) -> Result<()> {
        let active = self.active();
        if active.is_empty() {
            return Ok(());
        }
        let before = self.columns.len();
        let proposals = self.proposals(&active)?;
        let n_proposed = proposals.first().map_or(0, Vec::len);
        for nth in 0..n_proposed {
            let mut column = vec![None; self.rows.len()];
            active.iter().zip(&proposals).for_each(|(row, proposal)| column[*row] = Some(proposal[nth]));
            self.columns.push(&column);
        }
        let expansion = self.to_expand.clone();
        let mut logits = self.run_model(self.columns.len(), n_proposed + 1)?; // [row, 1 + proposed, d_vocab]
        if let (Some(of_prompt), true) = (&expansion, logits.size()[0] as usize != self.rows.len()) {
            let index: Vec<i64> = of_prompt.iter().map(|row| *row as i64).collect();
            logits = logits.f_index_select(0, &Tensor::f_from_slice(&index)?.f_to_device(logits.device())?)?;
        }
        self.expand()?;
        self.columns.truncate(before);
        let mut accepted = 0;
        for nth in 0..=n_proposed {
            let logits = going_rows(&logits.f_select(1, nth as i64)?, &active, self.rows.len())?; // [active row, d_vocab]
            let (column, ended) = self.choose(&logits, &active)?;
            let confirmed = |(row, proposal): (&usize, &Vec<i64>)| column[*row] == proposal.get(nth).copied();
            let go_on = nth < n_proposed && !ended && active.iter().zip(&proposals).all(confirmed);
            self.columns.push(&column);
            if !go_on {
                break;
            }
            accepted += 1;
        }
        if n_proposed > 0 {
            self.run = before + accepted;
            if let Some(store) = &mut self.store {
                store.truncate(self.run)?;
            }
            if let Some(record) = &mut self.record {
                record.keep(1 + accepted);
            }
            if let Some(draft) = &mut self.draft {
                draft.truncate(self.run)?;
            }
        }
        Ok(())
    }

    /// Proposals for each row that goes on, none before the prompt has been run.
    fn proposals(&mut self, active: &[usize]) -> Result<Vec<Vec<i64>>> {
        let Some(draft) = &mut self.draft else { return Ok(Vec::new()) };
        if self.step == 0 {
            return Ok(Vec::new());
        }
        // The last token of a row is run already, or proposed.
        let most = active.iter().map(|row| self.rows[*row].room().saturating_sub(1)).min().unwrap_or(0);
        if most == 0 {
            return Ok(Vec::new());
        }
        draft.propose(&self.sampler, &self.columns, &self.rows, active, most)
    }

    /// Runs the columns up to `end` that were not run yet: the logits of the last `n_logits` columns, or of each row's last token,
    /// `[row, n_logits, d_vocab]`.
    pub(super) fn run_model(&mut self, end: usize, n_logits: usize) -> Result<Tensor> {
        match self.run_columns(self.run..end, n_logits) {
            Err(Error::KeyValueStore(KeyValueStoreError::Rotation { .. })) => {
                // All keys are rotated otherwise from here on.
                if self.hooks_at.is_some() {
                    return Err(Error::setting(
                        "hooks_at",
                        "`hooks_at` cannot be used: this model's rotation depends on the length, so all positions are computed again",
                    ));
                }
                if let Some(store) = &mut self.store {
                    store.truncate(0)?;
                }
                if let Some(record) = &mut self.record {
                    record.clear();
                }
                self.run_columns(0..end, n_logits)
            }
            logits => logits,
        }
    }

    fn run_columns(&mut self, columns: Range<usize>, n_logits: usize) -> Result<Tensor> {
        let columns = if self.store.is_some() { columns } else { 0..columns.end };
        let span = Span { past: columns.start, new: columns.len() };
        let info = StepInfo { step: self.step, columns: columns.clone() };
        let mut of_step = self.hooks_at.as_mut().map(|hooks| hooks(&info)).unwrap_or_default();
        let mut hooks = self.hooks.in_span(&self.prompt, span)?;
        hooks.entries.extend(of_step.in_span(&self.prompt, span)?.entries);
        let mut run = RunOptions::new().hooks(hooks);
        if let Some(record) = &self.record {
            run = run.cache(record.filter());
        }
        if let Some(store) = &mut self.store {
            run = run.past(store);
        }
        // Where something is done after the last layer, all positions get there.
        let all = n_logits > 1 || columns.len() == 1 || self.model.plan(&run)?.reaches_logits();
        if !all {
            run = run.logits_at(last_token());
        }
        let plan = self.model.plan(&run)?;
        let input = run_input(&self.columns, columns.clone())?;
        let mask = input.tokens.mask.as_ref().map(Tensor::shallow_clone);
        let (mut output, _) = self.model.run_planned(input, &plan, run)?;
        let logits = output.take_logits()?;
        self.run = columns.end;
        self.runs += 1;
        if let Some(record) = &mut self.record {
            if self.store.is_none() {
                record.clear();
            }
            record.push(output.cache, columns.len());
        }
        let n = logits.size()[1];
        match mask {
            Some(_) if all && n_logits == 1 && n > 1 => {
                let last: Vec<i64> = self.columns.last().iter().map(|column| column - columns.start as i64).collect();
                let rows: Vec<i64> = (0..last.len() as i64).collect();
                let [rows, last] = [rows, last].map(|index| Tensor::f_from_slice(&index));
                let (rows, last) = (rows?.f_to_device(logits.device())?, last?.f_to_device(logits.device())?);
                Ok(logits.f_index(&[Some(&rows), Some(&last.at_least_int(0)?)])?.f_unsqueeze(1)?)
            }
            _ => Ok(logits.f_narrow(1, n - n_logits as i64, n_logits as i64)?),
        }
    }

    /// Chooses the next token of each row that goes on, by its logits: `[active row, d_vocab]`. Gives the column of all rows, and whether
    /// one has ended.
    fn choose(&mut self, logits: &Tensor, active: &[usize]) -> Result<(Vec<Option<i64>>, bool)> {
        let mut going: Vec<&mut Continuation> =
            self.rows.iter_mut().enumerate().filter(|(row, _)| active.contains(row)).map(|(_, row)| row).collect();
        let ids = self.sampler.sample(logits, &mut going)?;
        let entropies = match self.keeps.1 {
            true => Some(entropies(logits)?),
            false => None,
        };
        let mut column = vec![None; self.rows.len()];
        let (mut rows, mut ended) = (Vec::with_capacity(ids.len()), false);
        for (nth, (id, row)) in ids.into_iter().zip(active).enumerate() {
            column[*row] = Some(id);
            let Progress { text, stop } = self.rows[*row].push(id)?;
            ended |= stop.is_some();
            let entropy = entropies.as_ref().map(|entropies| entropies[nth]);
            self.entropies[*row].extend(entropy);
            if self.keeps.0 {
                self.logits[*row].push(logits.f_get(nth as i64)?);
            }
            rows.push(RowStep { row: *row, id, text, stop, entropy });
        }
        let logits = self.keeps.0.then(|| logits.shallow_clone());
        self.ready.push_back(GenerationStep { step: self.step, rows, logits });
        self.step += 1;
        Ok((column, ended))
    }
}

/// Each row's last token, whatever stands in rows that have ended.
pub(super) fn last_token() -> Positions {
    Positions::LastToken.with_padding()
}

/// Some columns, as the input of a run.
pub(super) fn run_input(columns: &TokenColumns, range: Range<usize>) -> Result<RunInput> {
    Ok(RunInput { tokens: columns.tokens(range)?, stream: None })
}

/// The rows of `[row, d_vocab]` that go on.
pub(super) fn going_rows(logits: &Tensor, active: &[usize], n_rows: usize) -> Result<Tensor> {
    if active.len() == n_rows {
        return Ok(logits.shallow_clone());
    }
    let index: Vec<i64> = active.iter().map(|row| *row as i64).collect();
    Ok(logits.f_index_select(0, &Tensor::f_from_slice(&index)?.f_to_device(logits.device())?)?)
}

/// The entropy of each row's distribution, in nats.
fn entropies(logits: &Tensor) -> Result<Vec<f64>> {
    let log_probs = widened(logits)?.f_log_softmax(-1, None::<Kind>)?; // [row, d_vocab]
    let terms = log_probs.f_mul(&log_probs.f_exp()?)?;
    let sums = terms.f_nansum(-1i64, false, None::<Kind>)?.f_neg()?;
    Ok(Vec::<f64>::try_from(sums.f_to_kind(Kind::Double)?)?)
}
