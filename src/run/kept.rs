//! [`KeptPositions`]: which positions a run keeps of each activation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::hook::{HookPoint, Place};
use crate::tensor::columns::Columns;
use crate::tensor::routed::row_numbers;
use crate::text::positions::{PositionAxis, Positions};
use crate::Result;

/// Which positions a run computes and keeps, as token columns: those before the last norm, and those of the logits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeptPositions {
    /// The columns that the run computes.
    all: Columns,
    /// What the cache keeps of the activations before the last norm.
    kept: Columns,
    /// Where logits are formed.
    logits: Columns,
    /// What the cache keeps of the last norm and the unembedding; absent where the two have no column in common.
    kept_logits: Option<Columns>,
}

impl KeptPositions {
    /// The positions `kept` of activations, and `logits_at` of logits.
    pub(crate) fn new(kept: &Positions, logits_at: &Positions, axis: &PositionAxis) -> Result<Self> {
        let logits = logits_at.columns(axis)?;
        let columns = kept.columns(axis)?;
        // All positions of the logits are those at which they are formed, in their order.
        let kept_logits = match kept.is_all() {
            true => Some(logits.clone()),
            false => columns.shared_with(&logits),
        };
        Ok(KeptPositions { all: axis.all(), kept: columns, logits, kept_logits })
    }

    /// All positions of rows of `len` tokens.
    #[cfg(test)]
    pub(crate) fn everything(len: i64) -> Self {
        let all = Columns::range(0, len);
        KeptPositions { all: all.clone(), kept: all.clone(), logits: all.clone(), kept_logits: Some(all) }
    }

    /// What a file says of a run of so many rows and columns, if that can be.
    pub(crate) fn checked(self, rows: usize, columns: usize) -> Option<Self> {
        let KeptPositions { all, kept, logits, kept_logits } = self;
        let all = all.checked(0..i64::MAX, rows).filter(|all| all.len() == columns)?;
        let first = all.of_row(0).first().copied()?;
        let span = first..first.checked_add(columns as i64)?;
        if all != Columns::range(span.start, span.end) {
            return None;
        }
        let kept_logits = match kept_logits {
            Some(columns) => Some(columns.checked(span.clone(), rows)?),
            None => None,
        };
        let (kept, logits) = (kept.checked(span.clone(), rows)?, logits.checked(span, rows)?);
        Some(KeptPositions { all, kept, logits, kept_logits })
    }

    /// The columns that the run computes.
    pub(crate) fn all(&self) -> &Columns {
        &self.all
    }

    /// The first column that the run computes.
    pub(crate) fn past(&self) -> i64 {
        self.all.of_row(0).first().copied().unwrap_or(0)
    }

    /// What the cache keeps of the activations before the last norm.
    pub(crate) fn kept(&self) -> &Columns {
        &self.kept
    }

    /// Where logits are formed.
    pub(crate) fn logits(&self) -> &Columns {
        &self.logits
    }

    /// The columns that the run computes of an activation.
    pub(crate) fn computed(&self, point: HookPoint) -> &Columns {
        match point.place() == Place::After {
            true => &self.logits,
            false => &self.all,
        }
    }

    /// What the cache keeps of an activation.
    pub(crate) fn at(&self, point: HookPoint) -> Option<&Columns> {
        match point.place() == Place::After {
            true => self.kept_logits.as_ref(),
            false => Some(&self.kept),
        }
    }

    /// The stream at the positions of the logits: `[batch, pos, d_model]`.
    pub(crate) fn at_logits(&self, stream: &Tensor) -> Result<Tensor> {
        match self.all.places(&self.logits) {
            Ok(places) => places.select(stream, 1),
            Err(_) => Ok(stream.shallow_clone()),
        }
    }

    /// The columns of some rows of the batch.
    pub(crate) fn of_rows(&self, rows: &[i64]) -> Self {
        KeptPositions {
            all: self.all.clone(),
            kept: self.kept.of_rows(rows),
            logits: self.logits.of_rows(rows),
            kept_logits: self.kept_logits.as_ref().map(|columns| columns.of_rows(rows)),
        }
    }

    /// What the cache keeps of an activation: itself, or a copy of the positions asked for, so that the rest can be freed. Of an
    /// expert's rows, `[hit, d]`, those of the tokens at these positions, as `indices`, `[batch, pos, chosen]`, routes them.
    ///
    /// Where a gradient is recorded, the activation that flows on is made of the copy, so that the copy has a gradient.
    pub(crate) fn keep(&self, point: HookPoint, tensor: &Tensor, indices: Option<&Tensor>) -> Result<Option<Kept>> {
        let Some(kept) = self.at(point) else { return Ok(None) };
        let held = if point.place() == Place::After { &self.logits } else { &self.all };
        if kept == held {
            return Ok(Some(Kept { kept: tensor.shallow_clone(), flowing: None }));
        }
        let Ok(places) = held.places(kept) else { return Ok(None) };
        let records = tensor.requires_grad();
        match (point.expert(), point.axes().position, indices) {
            (Some(expert), _, Some(indices)) => {
                let batch = Columns::range(0, indices.size()[0]);
                let numbers = row_numbers(tensor, indices, expert, &batch, &places)?;
                let kept = tensor.f_index_select(0, &numbers)?;
                let flowing = records.then(|| tensor.f_index_copy(0, &numbers, &kept)).transpose()?;
                Ok(Some(Kept { kept, flowing }))
            }
            (_, Some(axis), _) => {
                let kept = places.select(tensor, axis as i64)?.f_alias_copy()?;
                let flowing = records.then(|| places.replace(tensor, axis as i64, &kept)).transpose()?;
                Ok(Some(Kept { kept, flowing }))
            }
            (_, None, _) => Ok(Some(Kept { kept: tensor.shallow_clone(), flowing: None })),
        }
    }
}

/// What is kept of an activation, and the activation that flows on where it is another one.
pub(crate) struct Kept {
    pub(crate) kept: Tensor,
    pub(crate) flowing: Option<Tensor>,
}
