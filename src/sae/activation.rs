//! From pre-activations to activations: each kind of [`FeatureActivation`].

use tch::{Kind, Tensor};

use super::dictionary::Dictionary;
use super::kind::FeatureActivation;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// Pre-activations of features: `[…, feature]`.
#[derive(Debug)]
pub(crate) struct PreActivations {
    /// What is shown at `hook_sae_acts_pre`; of a gated dictionary, the magnitudes'.
    pub(crate) pre: Tensor,
    /// The gates' of a gated dictionary.
    pub(crate) gate: Option<Tensor>,
}

impl Dictionary {
    /// The activations of features: `[…, feature]`. Where nothing else holds `pre`, its memory may be used.
    pub(crate) fn activate(&self, pre: PreActivations) -> Result<Tensor> {
        let PreActivations { pre, gate } = pre;
        let pre = match &self.inner.decoder_norms {
            Some(norms) => pre.f_mul(norms)?,
            None => pre,
        };
        match self.config().activation {
            FeatureActivation::Relu => Ok(pre.f_relu()?),
            FeatureActivation::TanhRelu => Ok(pre.f_relu()?.f_tanh()?),
            FeatureActivation::JumpRelu => {
                let Some(threshold) = &self.inner.threshold else { return Ok(pre.f_relu()?) };
                let open = pre.f_gt_tensor(threshold)?;
                let acts = if self.inner.has_positive_thresholds { pre } else { pre.f_relu()? };
                Ok(acts.f_mul(&open)?)
            }
            FeatureActivation::TopK(k) => {
                let (values, features) = pre.f_topk(k as i64, -1, true, false)?;
                scattered(&pre, &features, &values.f_relu()?)
            }
            FeatureActivation::AbsTopK(k) => {
                let (_, features) = pre.f_detach()?.f_abs()?.f_topk(k as i64, -1, true, false)?;
                scattered(&pre, &features, &pre.f_gather(-1, &features, false)?)
            }
            FeatureActivation::BatchTopK(k) => {
                let flat = pre.f_relu()?.f_reshape([-1i64])?;
                let rows = flat.numel() as f64 / self.d_sae() as f64;
                let (values, places) = flat.f_topk((k * rows) as i64, 0, true, false)?;
                Ok(flat.f_zeros_like()?.f_scatter(0, &places, &values)?.f_reshape(pre.size())?)
            }
            FeatureActivation::GroupMax(k) => {
                let (values, features) = self.group_max(&pre, k as i64)?;
                scattered(&pre, &features, &values.f_relu()?)
            }
            FeatureActivation::Gated => {
                let Some(gate) = gate else { return Ok(pre.f_relu()?) };
                Ok(pre.f_relu()?.f_mul(&gate.gt_number(0.0)?)?)
            }
        }
    }

    /// The largest entry of each group, and which feature it is: `[…, k]` each.
    pub(super) fn group_max(&self, pre: &Tensor, k: i64) -> Result<(Tensor, Tensor)> {
        let width = self.d_sae() as i64 / k;
        let grouped: Vec<i64> = pre.size().iter().rev().skip(1).rev().copied().chain([k, width]).collect();
        let (values, within) = pre.f_reshape(&grouped)?.f_max_dim(-1, false)?;
        let starts = crate::tensor::scalar::arange(0..k, pre.device())?.mul_int(width)?;
        Ok((values, within.f_add(&starts)?))
    }

    /// The part of the pre-activations that comes before their activation function but after the product: in a gated dictionary, the
    /// product is shared by gates and magnitudes.
    pub(super) fn of_product(&self, product: Tensor) -> Result<PreActivations> {
        match &self.inner.gate {
            None => Ok(PreActivations { pre: product, gate: None }),
            Some(gate) => Ok(PreActivations {
                pre: self.inner.b_enc.f_addcmul(&product, &gate.scale)?,
                gate: Some(product.f_add(&gate.b_gate)?),
            }),
        }
    }
}

/// Zeros, but for these values of these features.
fn scattered(pre: &Tensor, features: &Tensor, values: &Tensor) -> Result<Tensor> {
    let zeros = Tensor::f_zeros(pre.size(), (pre.f_kind()?, pre.device()))?;
    Ok(zeros.f_scatter(-1, &features.f_to_kind(Kind::Int64)?, values)?)
}
