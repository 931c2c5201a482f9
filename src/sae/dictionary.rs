//! [`Dictionary`]: the weights of one sparse autoencoder or transcoder, checked, and where it reads and writes.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::config::DictionaryConfig;
use super::decoder::Decoder;
use crate::hook::HookPoint;
use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

/// A dictionary: a sparse autoencoder, a transcoder, or one layer of a cross-layer transcoder.
///
/// A cheap handle: clones share the weights.
///
/// ```
/// use tch_lens::sae::{Dictionary, DictionaryConfig, DictionaryWeights, FeatureActivation};
/// use tch_lens::{hook, tch::{Device, Kind, Tensor}};
/// let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
/// let weights = DictionaryWeights {
///     w_enc: random(&[512, 128]),
///     b_enc: random(&[512]),
///     w_dec: random(&[512, 128]),
///     b_dec: random(&[128]),
///     w_skip: None,
///     threshold: None,
///     b_gate: None,
///     r_mag: None,
/// };
/// let sae = Dictionary::new(DictionaryConfig::new(hook::resid_post(1), FeatureActivation::TopK(8)), weights)?;
/// let x = random(&[2, 7, 128]); // [batch, pos, d_in]
/// let acts = sae.encode(&x)?; // [batch, pos, feature]
/// assert_eq!(acts.size(), [2, 7, 512]);
/// assert_eq!(sae.encode_sparse(&x)?.len(), 2 * 7 * 8);
/// assert_eq!(sae.decode(&acts)?.size(), [2, 7, 128]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dictionary {
    pub(super) inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
pub(super) struct Inner {
    pub(super) config: DictionaryConfig,
    pub(super) w_enc: SharedTensor,
    pub(super) b_enc: SharedTensor,
    /// What is added to `x W_encᵀ`: `b_enc`, less what `b_dec` contributes; in a gated dictionary, only the latter.
    pub(super) bias: SharedTensor,
    pub(super) b_dec: SharedTensor,
    pub(super) w_skip: Option<SharedTensor>,
    pub(super) threshold: Option<SharedTensor>,
    /// Whether no threshold is negative.
    pub(super) has_positive_thresholds: bool,
    pub(super) gate: Option<Gate>,
    /// What is reconstructed, and by which directions: of all dictionaries but cross-layer ones, `hook_out` alone.
    pub(super) outputs: Vec<(HookPoint, Decoder)>,
    /// The norms of the decoder's rows, where activations are rescaled by them.
    pub(super) decoder_norms: Option<SharedTensor>,
}

#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) b_gate: SharedTensor,
    pub(super) r_mag: SharedTensor,
    /// `exp(r_mag)`
    pub(super) scale: SharedTensor,
}

impl Dictionary {
    /// Whether all rows of the decoder have norm 1, as far as fp32 tells.
    pub(crate) fn has_unit_decoder(&self) -> Result<bool> {
        let norms = self.decoder(0)?.norms(self.options())?;
        Ok(norms.f_allclose(&norms.f_ones_like()?, 1e-5, 1e-8, false)?)
    }

    /// Where it reads and writes, and what it computes.
    pub fn config(&self) -> &DictionaryConfig {
        &self.inner.config
    }

    /// The activation that it reads.
    pub fn hook_in(&self) -> HookPoint {
        self.inner.config.hook_in
    }

    /// The activation that it reconstructs; of a cross-layer transcoder, that of its own layer.
    pub fn hook_out(&self) -> HookPoint {
        self.inner.config.hook_out
    }

    /// All activations to whose reconstruction it contributes: several of a cross-layer transcoder, else `hook_out` alone.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = HookPoint> + '_ {
        self.inner.outputs.iter().map(|(hook, _)| *hook)
    }

    /// Whether it contributes to several layers.
    pub fn is_cross_layer(&self) -> bool {
        self.inner.outputs.len() > 1
    }

    /// The number of features.
    pub fn d_sae(&self) -> usize {
        size(&self.inner.w_enc, 0)
    }

    /// The width of what it reads.
    pub fn d_in(&self) -> usize {
        size(&self.inner.w_enc, 1)
    }

    /// The width of what it writes.
    pub fn d_out(&self) -> usize {
        size(&self.inner.b_dec, 0)
    }

    /// The kind of its weights, in which it computes.
    pub fn kind(&self) -> Kind {
        self.inner.w_enc.kind()
    }

    /// Where its weights are.
    pub fn device(&self) -> Device {
        self.inner.w_enc.device()
    }

    pub(super) fn options(&self) -> (Kind, Device) {
        (self.kind(), self.device())
    }

    /// What features read: `[feature, d_in]`.
    pub fn w_enc(&self) -> Tensor {
        self.inner.w_enc.shallow_clone()
    }

    /// The bias of the encoder: `[feature]`; of a gated dictionary, that of the magnitudes.
    pub fn b_enc(&self) -> Tensor {
        self.inner.b_enc.shallow_clone()
    }

    /// What is added to `x W_encᵀ`: `b_enc`, less `W_enc b_dec` where the dictionary subtracts `b_dec` from its input: `[feature]`. Of a
    /// gated dictionary, the latter alone.
    pub fn pre_activation_bias(&self) -> Tensor {
        self.inner.bias.shallow_clone()
    }

    /// The bias of the reconstruction: `[d_out]`.
    pub fn b_dec(&self) -> Tensor {
        self.inner.b_dec.shallow_clone()
    }

    /// The matrix of the skip connection: `[d_out, d_in]`.
    pub fn w_skip(&self) -> Option<Tensor> {
        self.inner.w_skip.as_ref().map(|w_skip| w_skip.shallow_clone())
    }

    /// The thresholds of a JumpReLU dictionary: `[feature]`.
    pub fn threshold(&self) -> Option<Tensor> {
        self.inner.threshold.as_ref().map(|threshold| threshold.shallow_clone())
    }

    /// The gates' bias and the logarithm of the magnitudes' factors of a gated dictionary: `[feature]` each.
    pub fn gate(&self) -> Option<[Tensor; 2]> {
        self.inner.gate.as_ref().map(|gate| [gate.b_gate.shallow_clone(), gate.r_mag.shallow_clone()])
    }

    /// What all features write to `hook_out`: `[feature, d_out]`. Where decoders lie in a file, this reads them all.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if memory runs out.
    pub fn w_dec(&self) -> Result<Tensor> {
        self.decoder(0)?.whole(self.options())
    }

    /// What these features read: `features` is `[n]`, the result `[n, d_in]`.
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`] for a feature that does not exist.
    pub fn encoder_rows(&self, features: &Tensor) -> Result<Tensor> {
        self.check_choice(features)?;
        Ok(self.inner.w_enc.f_index_select(0, features)?)
    }

    /// What these features write to the `output`-th of [`outputs`](Dictionary::outputs): `features` is `[n]`, the result `[n, d_out]`. Only
    /// these rows are read.
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`] for an output or a feature that it does not have.
    pub fn decoder_rows(&self, output: usize, features: &Tensor) -> Result<Tensor> {
        self.check_choice(features)?;
        self.decoder(output)?.rows(features, self.options())
    }

    /// That these features exist.
    fn check_choice(&self, features: &Tensor) -> Result<()> {
        if features.f_kind()? != Kind::Int64 || features.dim() != 1 {
            return Err(self.refused(format!(
                "features are a list of whole numbers, not {:?} of {:?}",
                features.size(),
                features.f_kind()?
            )));
        }
        if features.numel() == 0 {
            return Ok(());
        }
        let (low, high, n) =
            (i64::try_from(features.f_min()?)?, i64::try_from(features.f_max()?)?, self.d_sae() as i64);
        match low >= 0 && high < n {
            true => Ok(()),
            false => Err(self.refused(format!("features {low} to {high} are asked for, but there are {n}, from 0"))),
        }
    }

    pub(crate) fn decoder(&self, output: usize) -> Result<&Decoder> {
        let n = self.inner.outputs.len();
        let found = self.inner.outputs.get(output).map(|(_, decoder)| decoder);
        found.ok_or_else(|| self.refused(format!("it has no output {output}, only {n}")))
    }

    /// An error about this dictionary.
    pub(crate) fn refused(&self, what: impl Into<String>) -> Error {
        Error::Dictionary { name: self.hook_out().to_string(), what: what.into() }
    }
}

fn size(tensor: &Tensor, dim: usize) -> usize {
    tensor.size().get(dim).map_or(0, |n| *n as usize)
}
