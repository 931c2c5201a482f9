//! [`FrozenNorm`]: a norm at the scale that it had in the run, where it is linear.

use tch::Tensor;

use super::window::Window;
use crate::cache::ActivationCache;
use crate::component::{Reach, Target};
use crate::config::{NormPosition, Normalization};
use crate::hook::{self, HookPoint};
use crate::model::norm::Norm;
use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

/// The linear part of a norm at the scale that it had in the run: centre (of a layer norm), divide by the scale, multiply by
/// the gain. Its bias is no function of the input, and kept apart.
#[derive(Debug)]
pub(crate) struct FrozenNorm {
    centers: bool,
    /// `[batch, pos, 1]`; absent where there is no norm.
    scale: Option<SharedTensor>,
    w: Option<SharedTensor>,
    pub(crate) b: Option<SharedTensor>,
}

impl FrozenNorm {
    /// Does nothing.
    pub(crate) fn identity() -> Self {
        FrozenNorm { centers: false, scale: None, w: None, b: None }
    }

    /// The norm through which the target reads the stream.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] where the run did not keep the scale.
    pub(crate) fn at(reach: &Reach, cache: &ActivationCache, window: &Window) -> Result<Self> {
        let weights = cache.model().weights();
        match (reach.target, cache.model().config().norm_position()) {
            (Target::Unembed, _) => Self::of(&weights.unembed.ln_final, hook::ln_final_scale(), cache, window),
            (_, NormPosition::After) => Ok(Self::identity()),
            (Target::Attn(layer), _) => {
                Self::of(&weights.blocks[layer as usize].ln1, hook::ln1_scale(layer as usize), cache, window)
            }
            (Target::Mlp(layer), _) => {
                Self::of(&weights.blocks[layer as usize].ln2, hook::ln2_scale(layer as usize), cache, window)
            }
        }
    }

    /// The norm between a layer's attention and the stream.
    pub(crate) fn after_attn(layer: usize, cache: &ActivationCache, window: &Window) -> Result<Self> {
        let block = &cache.model().weights().blocks[layer];
        match block.norm_position {
            NormPosition::Before => Ok(Self::identity()),
            NormPosition::After => Self::of(&block.ln1, hook::ln1_scale(layer), cache, window),
            NormPosition::BeforeAndAfter => Self::of(&block.ln1_post, hook::ln1_post_scale(layer), cache, window),
        }
    }

    /// The norm between a layer's MLP and the stream.
    pub(crate) fn after_mlp(layer: usize, cache: &ActivationCache, window: &Window) -> Result<Self> {
        let block = &cache.model().weights().blocks[layer];
        match block.norm_position {
            NormPosition::Before => Ok(Self::identity()),
            NormPosition::After => Self::of(&block.ln2, hook::ln2_scale(layer), cache, window),
            NormPosition::BeforeAndAfter => Self::of(&block.ln2_post, hook::ln2_post_scale(layer), cache, window),
        }
    }

    fn of(norm: &Norm, scale: HookPoint, cache: &ActivationCache, window: &Window) -> Result<Self> {
        if norm.kind == Normalization::None {
            return Ok(Self::identity());
        }
        let scale = window.of(cache, scale)?;
        if scale.dim() != 3 {
            return Err(Error::invalid(
                "the cached scale has one entry a head, as a hook gave heads different inputs: a norm with one scale is needed",
            ));
        }
        let wide = |t: &Option<SharedTensor>| -> Result<Option<SharedTensor>> {
            Ok(match t {
                Some(t) => Some(t.f_to_kind(scale.f_kind()?)?.into()),
                None => None,
            })
        };
        let (w, b) = (wide(&norm.w)?, wide(&norm.b)?);
        Ok(FrozenNorm { centers: norm.kind.centers(), scale: Some(scale.into()), w, b })
    }

    /// Rows `[…, batch, pos, d_model]` through the norm.
    pub(crate) fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let Some(scale) = &self.scale else { return Ok(rows.shallow_clone()) };
        let rows = match self.centers {
            true => rows.f_sub(&rows.f_mean_dim([-1i64].as_slice(), true, None)?)?,
            false => rows.shallow_clone(),
        };
        let rows = rows.f_div(scale)?;
        Ok(match &self.w {
            Some(w) => rows.f_mul(w)?,
            None => rows,
        })
    }

    /// Directions `[batch or 1, pos or 1, d_model, k]` as the rows before the norm must be projected onto, so that
    /// `norm(x) · u = x · u' / scale`: gain and centring go into the direction, the scale stays with the value.
    pub(crate) fn pull_back(&self, directions: &Tensor) -> Result<Tensor> {
        if self.scale.is_none() {
            return Ok(directions.shallow_clone());
        }
        let directions = match &self.w {
            Some(w) => directions.f_mul(&w.f_unsqueeze(-1)?)?,
            None => directions.shallow_clone(),
        };
        Ok(match self.centers {
            true => directions.f_sub(&directions.f_mean_dim([-2i64].as_slice(), true, None)?)?,
            false => directions,
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
