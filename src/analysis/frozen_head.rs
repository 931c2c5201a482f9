//! [`FrozenHead`]: a prediction head at its gates and scale in the run, where it is linear.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::window::View;
use crate::component::Target;
use crate::model::temporary::Temporary;
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// The neurons between the last norm and the unembedding, each at the quotient of its output and its input in the run, and their norm at
/// its scale. So fixed, they are linear in what the last norm gives, but for the biases.
pub(crate) struct FrozenHead {
    /// `act(x) / x`: `[batch, pos, d_unembed]`.
    gates: Tensor,
    norm: FrozenNorm,
    /// `[d_unembed, d_model]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FrozenHead {
    /// The head as it was in the run, where the model has one.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`](crate::Error::NoEntry) and [`Error::NoPosition`](crate::Error::NoPosition) where the run did not keep what the
    /// last norm gave.
    pub(crate) fn of_run(view: &View) -> Result<Option<Self>> {
        let Some(head) = view.model().head() else { return Ok(None) };
        let norm = view.model().norm_before(Target::Unembed)?;
        let read = match norm {
            Some(placed) => {
                let frozen = FrozenNorm::of_run(norm, view)?;
                let gained = frozen.gain(&view.get(placed.points.1)?)?;
                match &frozen.b {
                    Some(bias) => gained.f_add(bias)?,
                    None => gained,
                }
            }
            None => view.stream(&Target::Unembed.reach(view.model().config())?)?.f_squeeze_dim(0)?,
        }; // [batch, pos, d_model]
        let weight = head.dense.weight.f_to_kind(read.f_kind()?)?;
        let bias = head.dense.bias.as_deref().map(widened).transpose()?;
        let pre = read.f_linear(&weight, bias.as_ref())?;
        let post = head.act.apply(Temporary::shared(pre.shallow_clone()))?;
        let is_zero = pre.f_abs()?.gt_number(0.0)?.f_logical_not()?;
        let gates = post.f_div(&pre)?.fill_where(&is_zero, 0.0)?;
        let norm = FrozenNorm::of_stream(head.norm_before_unembed(), &post)?;
        Ok(Some(FrozenHead { gates, norm, weight, bias }))
    }

    /// Directions of what the unembedding reads, `[batch or 1, pos or 1, d_model, 1]`, as those of what the last norm gives:
    /// `[batch, pos, d_model, 1]`.
    pub(crate) fn pull_back(&self, directions: &Tensor) -> Result<Tensor> {
        Ok(self.weight.f_tr()?.f_matmul(&self.onto_neurons(directions)?)?)
    }

    /// What the head's biases add to the product with a direction: `[batch, pos]`.
    pub(crate) fn constant(&self, directions: &Tensor) -> Result<Tensor> {
        let neurons = self.onto_neurons(directions)?.f_squeeze_dim(-1)?; // [batch, pos, d_model]
        let last = [-1i64];
        let mut constant = match &self.bias {
            Some(bias) => neurons.f_mul(bias)?.f_sum_dim_intlist(last.as_slice(), false, None)?,
            None => neurons.f_sum_dim_intlist(last.as_slice(), false, None)?.f_zeros_like()?,
        };
        if let Some(bias) = &self.norm.b {
            let of_norm = directions.f_squeeze_dim(-1)?.f_mul(bias)?.f_sum_dim_intlist(last.as_slice(), false, None)?;
            constant = constant.f_add(&of_norm)?;
        }
        Ok(constant)
    }

    /// Directions of what the unembedding reads as those of the neurons' inputs: `[batch, pos, d_model, 1]`.
    fn onto_neurons(&self, directions: &Tensor) -> Result<Tensor> {
        let u = self.norm.pull_back(directions)?;
        let size = self.gates.size();
        let u = u.f_expand([size[0], size[1], size[2], 1], false)?;
        self.norm.divide(&u.f_mul(&self.gates.f_unsqueeze(-1)?)?)
    }
}
