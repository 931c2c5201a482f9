//! [`Normalization`]: the scale from the corrupted run to the clean run.

use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// The value of a metric in a run: one number for all rows, or one for each row of the batch, `[batch]`.
#[derive(Debug)]
pub struct Baseline(Tensor);

impl From<f64> for Baseline {
    fn from(number: f64) -> Self {
        Baseline(Tensor::from(number))
    }
}

impl From<Tensor> for Baseline {
    fn from(values: Tensor) -> Self {
        Baseline(values)
    }
}

impl From<&Tensor> for Baseline {
    /// Another handle on the same tensor.
    fn from(values: &Tensor) -> Self {
        Baseline(values.shallow_clone())
    }
}

impl Baseline {
    /// The values: `[batch]`, or `[1]`.
    fn values(&self, batch: i64, of: &str) -> Result<Tensor> {
        let wrong = |found: String| {
            Error::metric(format!(
                "its value in the {of} run is {found}, but must be a number, or one for each row, [{batch}]"
            ))
        };
        if !self.0.defined() {
            return Err(wrong("an undefined tensor".into()));
        }
        match self.0.size()[..] {
            [] => Ok(self.0.f_detach()?.f_view([1])?.f_to_kind(Kind::Double)?),
            [len] if len == batch => Ok(self.0.f_detach()?.f_to_kind(Kind::Double)?),
            _ => Err(wrong(format!("of shape {:?}", self.0.size()))),
        }
    }
}

/// What a metric is in the clean and in the corrupted run.
#[derive(Debug)]
pub(super) struct Normalization {
    pub(super) clean: Baseline,
    pub(super) corrupted: Baseline,
}

impl Normalization {
    /// The values in the corrupted run, and those of the clean run minus them: each `[batch]`, or `[1]`.
    pub(super) fn resolve(&self, batch: i64, device: Device) -> Result<Scaling> {
        let (clean, corrupted) = (self.clean.values(batch, "clean")?, self.corrupted.values(batch, "corrupted")?);
        let (clean, corrupted) = (clean.f_to_device(Device::Cpu)?, corrupted.f_to_device(Device::Cpu)?);
        let span = clean.f_sub(&corrupted)?;
        for (row, span) in Vec::<f64>::try_from(&span)?.into_iter().enumerate() {
            if span == 0.0 || !span.is_finite() {
                let value = corrupted.f_select(0, if corrupted.size()[0] == 1 { 0 } else { row as i64 })?;
                let value = value.f_double_value(&[])?;
                return Err(Error::metric(match span.is_finite() {
                    true => format!("row {row} has the value {value} in the clean and in the corrupted run, so it cannot be normalized between them"),
                    false => format!("the values of row {row} in the clean and in the corrupted run are not finite, so it cannot be normalized between them"),
                }));
            }
        }
        Ok(Scaling { corrupted: corrupted.f_to_device(device)?, span: span.f_to_device(device)? })
    }
}

/// The scale for one batch.
#[derive(Debug)]
pub(super) struct Scaling {
    corrupted: Tensor,
    span: Tensor,
}

impl Scaling {
    /// Values `[patch, batch or 1]` on the scale.
    pub(super) fn apply(&self, values: &Tensor) -> Result<Tensor> {
        let kind = values.f_kind()?;
        let (corrupted, span) = (self.corrupted.f_to_kind(kind)?, self.span.f_to_kind(kind)?);
        Ok(values.f_sub(&corrupted)?.f_div(&span)?)
    }
}
