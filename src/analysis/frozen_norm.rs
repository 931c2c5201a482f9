//! [`FrozenNorm`]: a norm at a fixed scale, where it is linear.

use tch::Tensor;

use super::window::View;
use crate::model::linear::Linear;
use crate::model::placed_norm::PlacedNorm;
use crate::tensor::precision::widened;
use crate::{Error, Result};

/// The linear part of a norm at a fixed scale: centre (a layer norm does), divide by the scale, multiply by the gain. The bias is
/// no function of the input, and kept apart. Behind the norm there may be a linear map.
#[derive(Debug)]
pub(crate) struct FrozenNorm {
    centers: bool,
    /// `[batch, pos, 1]`; absent where there is no norm.
    scale: Option<Tensor>,
    w: Option<Tensor>,
    /// What norm and map add, whatever they read.
    pub(crate) b: Option<Tensor>,
    /// The weight of the map behind the norm: `[out, in]`.
    map: Option<Tensor>,
}

impl FrozenNorm {
    /// A norm at the scale that it had in the run; without a norm, the identity.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] and [`Error::NoPosition`] where the run did not keep the scale; [`Error::HeadsReadApart`].
    pub(crate) fn of_run(norm: Option<PlacedNorm<'_>>, view: &View) -> Result<Self> {
        let Some(placed) = norm else { return Self::new(None, None) };
        let scale = view.get(placed.points.0)?;
        if scale.dim() != 3 {
            return Err(Error::HeadsReadApart { name: placed.points.0.to_string() });
        }
        Self::new(norm, Some(scale))
    }

    /// A norm at the scale that a stream, `[batch, pos, d_model]`, has itself.
    pub(crate) fn of_stream(norm: Option<PlacedNorm<'_>>, stream: &Tensor) -> Result<Self> {
        let scale = norm.map(|placed| placed.norm.scale(stream)).transpose()?;
        Self::new(norm, scale)
    }

    fn new(norm: Option<PlacedNorm<'_>>, scale: Option<Tensor>) -> Result<Self> {
        let norm = norm.map(|placed| placed.norm);
        Ok(FrozenNorm {
            centers: norm.is_some_and(|norm| norm.kind.centers()),
            scale,
            w: norm.and_then(|norm| norm.w.as_deref()).map(widened).transpose()?,
            b: norm.and_then(|norm| norm.b.as_deref()).map(widened).transpose()?,
            map: None,
        })
    }

    /// The norm, and then this map.
    pub(crate) fn then(self, map: &Linear) -> Result<Self> {
        let weight = widened(&map.weight)?;
        let of_map = map.bias.as_deref().map(widened).transpose()?;
        let b = match self.b {
            Some(b) => Some(b.f_unsqueeze(0)?.f_linear(&weight, of_map.as_ref())?.f_squeeze_dim(0)?),
            None => of_map,
        };
        Ok(FrozenNorm { b, map: Some(weight), ..self })
    }

    /// The same norm.
    pub(crate) fn handle(&self) -> Self {
        let handle = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        let (scale, w, b, map) = (handle(&self.scale), handle(&self.w), handle(&self.b), handle(&self.map));
        FrozenNorm { centers: self.centers, scale, w, b, map }
    }

    /// This norm and another one after it, neither of which centres or has a bias.
    pub(crate) fn followed_by(&self, after: &FrozenNorm) -> Result<Self> {
        let product = |a: &Option<Tensor>, b: &Option<Tensor>| -> Result<Option<Tensor>> {
            Ok(match (a, b) {
                (Some(a), Some(b)) => Some(a.f_mul(b)?),
                (one, other) => one.as_ref().or(other.as_ref()).map(Tensor::shallow_clone),
            })
        };
        let (scale, w) = (product(&self.scale, &after.scale)?, product(&self.w, &after.w)?);
        Ok(FrozenNorm { centers: false, scale, w, b: None, map: None })
    }

    /// What a norm adds, whatever it reads: `[d_model]`.
    pub(crate) fn bias_of(norm: Option<PlacedNorm<'_>>) -> Result<Option<Tensor>> {
        norm.and_then(|placed| placed.norm.b.as_deref()).map(widened).transpose()
    }

    /// Rows `[…, batch, pos, d_model]` through the norm.
    pub(crate) fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let rows = match (&self.scale, self.centers) {
            (None, _) => rows.shallow_clone(),
            (Some(scale), true) => {
                self.gain(&rows.f_sub(&rows.f_mean_dim([-1i64].as_slice(), true, None)?)?.f_div(scale)?)?
            }
            (Some(scale), false) => self.gain(&rows.f_div(scale)?)?,
        };
        match &self.map {
            Some(weight) => Ok(rows.f_linear(&weight.f_to_kind(rows.f_kind()?)?, None::<&Tensor>)?),
            None => Ok(rows),
        }
    }

    /// The quotient of the norm times its gain: what the norm gives, less its bias.
    pub(crate) fn gain(&self, quotient: &Tensor) -> Result<Tensor> {
        Ok(match &self.w {
            Some(w) => quotient.f_mul(w)?,
            None => quotient.shallow_clone(),
        })
    }

    /// Directions `[batch or 1, pos or 1, d_model, k]` as the rows before the norm must be projected onto, so that
    /// `norm(x) · u = x · u' / scale`: gain and centring go into the direction, the scale stays with the value.
    pub(crate) fn pull_back(&self, directions: &Tensor) -> Result<Tensor> {
        let directions = match &self.map {
            Some(weight) => weight.f_tr()?.f_to_kind(directions.f_kind()?)?.f_matmul(directions)?,
            None => directions.shallow_clone(),
        };
        if self.scale.is_none() {
            return Ok(directions);
        }
        let directions = match &self.w {
            Some(w) => directions.f_mul(&w.f_unsqueeze(-1)?)?,
            None => directions,
        };
        Ok(match self.centers {
            true => directions.f_sub(&directions.f_mean_dim([-2i64].as_slice(), true, None)?)?,
            false => directions,
        })
    }

    /// Gradients at what the norm gives, `[row, pos, d_model]` from the first position on, as gradients at what it reads, of one batch
    /// row. `gained` says whether they are of what comes after the gain, or of the quotient.
    pub(crate) fn pull(&self, gradients: &Tensor, gained: bool) -> Result<Tensor> {
        let Some(scale) = &self.scale else { return Ok(gradients.shallow_clone()) };
        let scale = scale.f_narrow(1, 0, gradients.size()[1])?; // [1, pos, 1]
        self.pull_at(gradients, &scale, gained)
    }

    /// [`FrozenNorm::pull`] of gradients at one position each: `[row, d_model]`, and the positions, `[row]`.
    pub(crate) fn pull_rows(&self, gradients: &Tensor, positions: &Tensor, gained: bool) -> Result<Tensor> {
        let Some(scale) = &self.scale else { return Ok(gradients.shallow_clone()) };
        let scale = scale.f_select(0, 0)?.f_index_select(0, positions)?; // [row, 1]
        self.pull_at(gradients, &scale, gained)
    }

    fn pull_at(&self, gradients: &Tensor, scale: &Tensor, gained: bool) -> Result<Tensor> {
        let gradients = match gained {
            true => self.gain(gradients)?.f_div(scale)?,
            false => gradients.f_div(scale)?,
        };
        Ok(match self.centers {
            true => gradients.f_sub(&gradients.f_mean_dim([-1i64].as_slice(), true, None)?)?,
            false => gradients,
        })
    }

    /// What the norm adds to what passes through it: rows `[…, pos, d_model]`.
    pub(crate) fn with_bias(&self, rows: Tensor) -> Result<Tensor> {
        Ok(match &self.b {
            Some(bias) => rows.f_add(&bias.f_to_kind(rows.f_kind()?)?)?,
            None => rows,
        })
    }

    /// Values `[batch, pos, …]` divided by the scale.
    pub(crate) fn divide(&self, values: &Tensor) -> Result<Tensor> {
        let Some(scale) = &self.scale else { return Ok(values.shallow_clone()) };
        let mut shape = scale.size();
        shape.resize(values.dim(), 1);
        Ok(values.f_div(&scale.f_view(shape.as_slice())?)?)
    }

    /// Values `[row, batch, pos, k]` divided by the scale.
    pub(crate) fn divide_rows(&self, values: &Tensor) -> Result<Tensor> {
        match &self.scale {
            Some(scale) => Ok(values.f_div(scale)?),
            None => Ok(values.shallow_clone()),
        }
    }
}
