//! [`RunValues`]: what a patch takes from another run.

use std::sync::Arc;

use indexmap::IndexMap;
use tch::{Kind, Tensor};

use super::entry::Entry;
use super::kept::KeptPositions;
use super::selected::{failed, Selected};
use crate::hook::HookPoint;
use crate::tensor::columns::Columns;
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::tensor::split_mix::SplitMix64;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Result};

/// The activations of another run, as they are, averaged or drawn from: made from an [`ActivationCache`](crate::ActivationCache).
#[derive(Clone, Debug)]
pub struct RunValues {
    pub(crate) entries: Arc<IndexMap<HookPoint, Entry>>,
    pub(crate) kept: KeptPositions,
    /// Which of the run's tokens are real, `[batch, column]`, bool; absent where all are.
    pub(crate) mask: Option<SharedTensor>,
    /// The first column of the mask.
    pub(crate) past: i64,
    pub(crate) form: RunForm,
}

/// What is made of the other run's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunForm {
    /// Row by row and position by position.
    Same,
    /// The mean over rows and positions.
    Mean,
    /// The mean over rows, for each position.
    MeanByPosition,
    /// A random row for each row, by a seed.
    Resampled(u64),
}

impl RunValues {
    fn entry(&self, point: HookPoint) -> Result<(&Tensor, &Columns)> {
        match (self.entries.get(&point), self.kept.at(point)) {
            (Some(entry), Some(columns)) => Ok((entry.dense()?, columns)),
            _ => Err(failed(point, "the cache that its value comes from does not hold the point".into())),
        }
    }

    /// That the other run has a value for a point.
    pub(super) fn check(&self, point: HookPoint, integers: bool) -> Result<()> {
        self.entry(point)?;
        let of_tokens = point.expert().is_none() && point.axes().batch.is_some();
        match self.form {
            RunForm::Mean | RunForm::MeanByPosition if integers => {
                Err(failed(point, "its value is a mean, but the point holds whole numbers".into()))
            }
            RunForm::MeanByPosition | RunForm::Resampled(_) if !of_tokens => {
                Err(failed(point, "its value is drawn from rows of the batch, which the point does not have".into()))
            }
            RunForm::Resampled(_) if self.mask.is_some() => Err(failed(
                point,
                "its value is drawn from rows that have padding: use a cache of rows of one length".into(),
            )),
            _ => Ok(()),
        }
    }

    /// The value for the selected part of an activation of this size, which holds these columns: the part's shape, or one that is
    /// broadcast to it.
    pub(super) fn value(
        &self,
        point: HookPoint,
        selected: &Selected,
        config: &Config,
        columns: &Columns,
        size: &[i64],
    ) -> Result<Tensor> {
        let (tensor, held) = self.entry(point)?;
        let differs = |found: &[i64]| {
            let sentence = format!(
                "its value is the activation of another run, of shape {found:?} at positions {held}, but the activation here has shape {size:?} at positions {columns}"
            );
            Err(failed(point, sentence))
        };
        if point.expert().is_some() {
            // Which token a row is of differs from run to run.
            return match self.form {
                RunForm::Mean => Ok(tensor.f_mean_dim([0i64].as_slice(), true, None)?),
                _ if tensor.size() == size => selected.part_of(point, config, held, size)?.read(tensor),
                _ => differs(&tensor.size()),
            };
        }
        let rows = size[0];
        let (tensor, held) = match self.form {
            RunForm::Mean => (self.mean(point, tensor, held, true)?, columns.clone()),
            RunForm::MeanByPosition => (self.mean(point, tensor, held, false)?, held.clone()),
            RunForm::Resampled(seed) => {
                let drawn: Vec<i64> = (0..rows)
                    .map(|row| (SplitMix64::new([seed, row as u64]).next_bits() % tensor.size()[0] as u64) as i64)
                    .collect();
                let index = Tensor::f_from_slice(&drawn)?.f_to_device(tensor.device())?;
                (tensor.f_index_select(0, &index)?, held.of_rows(&drawn))
            }
            RunForm::Same => (tensor.shallow_clone(), held.clone()),
        };
        // What the axes of batch and positions need; the others are the model's, but for the keys, whose number is that of the run.
        let mut shape = tensor.size();
        let axis = point.axes().position;
        if shape.len() != size.len() || (shape[0] != rows && shape[0] != 1) {
            return differs(&tensor.size());
        }
        shape[0] = rows;
        if let (RunForm::Mean, Some(axis)) = (self.form, axis) {
            shape[axis] = size[axis];
        }
        let agree = |(place, (found, wanted)): (usize, (&i64, &i64))| Some(place) == axis || found == wanted;
        if !shape.iter().zip(size).enumerate().all(agree) {
            return differs(&tensor.size());
        }
        if axis.is_some() && selected.all_positions() && held != *columns {
            return differs(&tensor.size());
        }
        let held = if held.row_count() == Some(1) { Columns::list(held.of_row(0)) } else { held };
        let expanded = tensor.f_expand(shape.as_slice(), false)?;
        selected.part_of(point, config, &held.of_rows(selected.rows()), &shape)?.read(&expanded)
    }

    /// The mean over the rows, and over the positions too: of tokens that are real.
    fn mean(&self, point: HookPoint, tensor: &Tensor, held: &Columns, over_positions: bool) -> Result<Tensor> {
        let axis = point.axes().position.filter(|_| over_positions);
        let dims: Vec<i64> = std::iter::once(0).chain(axis.map(|axis| axis as i64)).collect();
        let wide = widened(tensor)?;
        let Some(mask) = &self.mask else { return Ok(wide.f_mean_dim(dims.as_slice(), true, None)?) };
        let places = Columns::range(self.past, self.past + mask.size()[1]).places(held);
        let Ok(places) = places else {
            return Err(failed(point, "the cache holds positions that its run did not have".into()));
        };
        let mut shape = vec![1; wide.dim()];
        let real = places.select(mask, 1)?; // [batch, pos]
        shape[0] = real.size()[0];
        let weights = match point.axes().position {
            Some(axis) => {
                shape[axis] = real.size()[1];
                real.f_view(shape.as_slice())?
            }
            None => real.f_any_dim(1, false)?.f_view(shape.as_slice())?,
        };
        let weights = weights.f_to_device(wide.device())?.f_to_kind(Kind::Float)?;
        // What is not real may hold anything.
        let counted = wide.fill_where(&weights.f_logical_not()?.f_to_kind(Kind::Bool)?, 0.0)?;
        let total = counted.f_sum_dim_intlist(dims.as_slice(), true, None)?;
        Ok(total.f_div(&weights.f_sum_dim_intlist(dims.as_slice(), true, None)?)?)
    }
}
