//! [`Dictionary`]: the weights of one sparse autoencoder or transcoder, checked, and where it reads and writes.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::config::DictionaryConfig;
use super::decoder::Decoder;
use super::kind::FeatureActivation;
use super::normalization::InputNormalization;
use super::weights::{DictionaryWeights, Encoder};
use crate::hook::HookPoint;
use crate::tensor::scalar::Scalar;
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
    /// A dictionary of these weights, which are kept as they are, without a copy.
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`] for tensors whose shapes or kinds do not go together, that the kind of activation needs or cannot use,
    /// or whose biases or thresholds are no numbers; a `k` of 0 or of more than there are features.
    pub fn new(config: DictionaryConfig, weights: DictionaryWeights) -> Result<Self> {
        let DictionaryWeights { w_enc, b_enc, w_dec, b_dec, w_skip, threshold, b_gate, r_mag } = weights;
        let outputs = vec![(config.hook_out, Decoder::Memory(w_dec.into()))];
        Dictionary::with_decoders(config, Encoder { w_enc, b_enc, b_dec, w_skip, threshold, b_gate, r_mag }, outputs)
    }

    /// A dictionary whose decoders may lie in a file, and which may write to several layers.
    pub(crate) fn with_decoders(
        config: DictionaryConfig,
        encoder: Encoder,
        outputs: Vec<(HookPoint, Decoder)>,
    ) -> Result<Self> {
        let Encoder { w_enc, b_enc, b_dec, w_skip, threshold, b_gate, r_mag } = encoder;
        let refused = |what: String| Error::Dictionary { name: config.hook_out.to_string(), what };
        let [d_sae, d_in] = w_enc.size()[..] else {
            return Err(refused(format!("`W_enc` has shape {:?}, expected [feature, d_in]", w_enc.size())));
        };
        let d_out = outputs.first().map_or(0, |(_, decoder)| decoder.size()[1]);
        if d_sae < 1 || d_in < 1 || d_out < 1 {
            return Err(refused("it has no features, or reads or writes nothing".into()));
        }
        let (kind, device) = (w_enc.f_kind()?, w_enc.device());
        if !matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
            return Err(refused(format!("`W_enc` is of kind {kind:?}, but weights must be floating-point numbers")));
        }
        let check = |name: &str, tensor: &Tensor, expected: &[i64]| -> Result<()> {
            if tensor.size() != expected {
                return Err(refused(format!("`{name}` has shape {:?}, expected {expected:?}", tensor.size())));
            }
            if tensor.f_kind()? != kind || tensor.device() != device {
                let (found, at) = (tensor.f_kind()?, tensor.device());
                return Err(refused(format!("`{name}` is {found:?} on {at:?}, but `W_enc` is {kind:?} on {device:?}")));
            }
            Ok(())
        };
        let finite = |name: &str, tensor: &Tensor| match bool::try_from(tensor.f_isfinite()?.f_all()?)? {
            true => Ok(()),
            false => Err(refused(format!("`{name}` has entries that are NaN or infinite"))),
        };
        for (hook, decoder) in &outputs {
            if decoder.size() != [d_sae, d_out] {
                return Err(refused(format!(
                    "`W_dec` to `{hook}` has shape {:?}, expected {:?}",
                    decoder.size(),
                    [d_sae, d_out]
                )));
            }
            if let Decoder::Memory(w_dec) = decoder {
                check("W_dec", w_dec, &[d_sae, d_out])?;
            }
        }
        for (name, tensor, size) in [("b_enc", &b_enc, d_sae), ("b_dec", &b_dec, d_out)] {
            check(name, tensor, &[size])?;
            finite(name, tensor)?;
        }
        if let Some(w_skip) = &w_skip {
            check("W_skip", w_skip, &[d_out, d_in])?;
        }
        let activation = config.activation;
        let vectors = [
            ("threshold", &threshold, activation == FeatureActivation::JumpRelu),
            ("b_gate", &b_gate, activation == FeatureActivation::Gated),
            ("r_mag", &r_mag, activation == FeatureActivation::Gated),
        ];
        for (name, tensor, needed) in vectors {
            match (tensor, needed) {
                (Some(tensor), true) => {
                    check(name, tensor, &[d_sae])?;
                    finite(name, tensor)?;
                }
                (None, false) => {}
                (None, true) => return Err(refused(format!("a dictionary of kind {activation} needs `{name}`"))),
                (Some(_), false) => return Err(refused(format!("a dictionary of kind {activation} has no `{name}`"))),
            }
        }
        check_k(activation, d_sae).map_err(&refused)?;
        if config.apply_b_dec_to_input && d_in != d_out {
            return Err(refused(format!(
                "`b_dec` of {d_out} entries cannot be subtracted from an input of {d_in}: set `apply_b_dec_to_input` to false"
            )));
        }
        if config.normalization != InputNormalization::None && d_in != d_out {
            return Err(refused("a normalised input needs an output of the same width, to undo the norm there".into()));
        }

        let mut bias = match activation {
            FeatureActivation::Gated => b_enc.f_zeros_like()?,
            _ => b_enc.shallow_clone(),
        };
        if config.apply_b_dec_to_input {
            bias = bias.f_sub(&w_enc.f_matmul(&b_dec)?)?;
        }
        let has_positive_thresholds = match &threshold {
            Some(threshold) => {
                bool::try_from(threshold.f_lt_tensor(&threshold.f_zeros_like()?)?.f_any()?.f_logical_not()?)?
            }
            None => false,
        };
        let gate = match (b_gate, r_mag) {
            (Some(b_gate), Some(r_mag)) => {
                Some(Gate { b_gate: b_gate.into(), scale: r_mag.f_exp()?.into(), r_mag: r_mag.into() })
            }
            _ => None,
        };
        let norms = config.rescale_by_decoder_norm.then(|| outputs.first()).flatten();
        let decoder_norms = norms.map(|(_, decoder)| decoder.norms((kind, device))).transpose()?;
        if let Some(norms) = &decoder_norms {
            finite("the norms of W_dec", &norms.f_reciprocal()?)?;
        }
        Ok(Dictionary {
            inner: Arc::new(Inner {
                config,
                w_enc: w_enc.into(),
                b_enc: b_enc.into(),
                bias: bias.into(),
                b_dec: b_dec.into(),
                w_skip: w_skip.map(SharedTensor::from),
                threshold: threshold.map(SharedTensor::from),
                has_positive_thresholds,
                gate,
                outputs,
                decoder_norms: decoder_norms.map(SharedTensor::from),
            }),
        })
    }

    /// The dictionary with its weights in another kind and on another device. Decoders that lie in a file stay there.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if memory runs out.
    pub fn to(&self, kind: Kind, device: Device) -> Result<Self> {
        if (kind, device) == self.options() {
            return Ok(self.clone());
        }
        let moved = |tensor: &SharedTensor| -> Result<Tensor> { Ok(tensor.f_to_device(device)?.f_to_kind(kind)?) };
        let inner = &self.inner;
        let encoder = Encoder {
            w_enc: moved(&inner.w_enc)?,
            b_enc: moved(&inner.b_enc)?,
            b_dec: moved(&inner.b_dec)?,
            w_skip: inner.w_skip.as_ref().map(moved).transpose()?,
            threshold: inner.threshold.as_ref().map(moved).transpose()?,
            b_gate: inner.gate.as_ref().map(|gate| moved(&gate.b_gate)).transpose()?,
            r_mag: inner.gate.as_ref().map(|gate| moved(&gate.r_mag)).transpose()?,
        };
        let outputs = inner.outputs.iter().map(|(hook, decoder)| Ok((*hook, decoder.to(kind, device)?)));
        Dictionary::with_decoders(inner.config.clone(), encoder, outputs.collect::<Result<_>>()?)
    }

    /// The same dictionary with decoder rows of norm 1: encoder rows, biases and thresholds are multiplied by the norms, so activations are
    /// in the unit of what they write: SAELens' `fold_W_dec_norm`. The decoder is read into memory.
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`] where that would change which features are active: of kinds that compare features with each other, unless
    /// they rescale by the decoder's norms already, and of the tanh; of a cross-layer transcoder; [`Error::Torch`] if memory runs out.
    pub fn fold_decoder_norm(&self) -> Result<Self> {
        let inner = &self.inner;
        let config = &inner.config;
        let scales = match config.activation {
            FeatureActivation::Relu | FeatureActivation::JumpRelu | FeatureActivation::Gated => true,
            FeatureActivation::TanhRelu => false,
            _ => config.rescale_by_decoder_norm,
        };
        if !scales || self.is_cross_layer() {
            return Err(self.refused("the norms of its decoder cannot be folded: other features would be active"));
        }
        let w_dec = self.w_dec()?;
        let norms = w_dec.norm_over(&[-1], true)?.at_least(1e-8)?; // [feature, 1]
        let column = norms.f_squeeze_dim(-1)?;
        let times = |vector: &SharedTensor| -> Result<Tensor> { Ok(vector.f_mul(&column)?) };
        // A threshold is compared with the rescaled pre-activation where these are rescaled.
        let folds_threshold = !config.rescale_by_decoder_norm;
        let threshold = |threshold: &SharedTensor| match folds_threshold {
            true => times(threshold),
            false => Ok(threshold.shallow_clone()),
        };
        let encoder = Encoder {
            w_enc: inner.w_enc.f_mul(&norms)?,
            b_enc: times(&inner.b_enc)?,
            b_dec: self.b_dec(),
            w_skip: self.w_skip(),
            threshold: inner.threshold.as_ref().map(threshold).transpose()?,
            b_gate: inner.gate.as_ref().map(|gate| times(&gate.b_gate)).transpose()?,
            r_mag: inner.gate.as_ref().map(|gate| gate.r_mag.shallow_clone()),
        };
        let outputs = vec![(config.hook_out, Decoder::Memory(w_dec.f_div(&norms)?.into()))];
        Dictionary::with_decoders(config.clone(), encoder, outputs)
    }

    /// Whether all rows of the decoder have norm 1, as far as fp32 tells.
    pub(crate) fn has_unit_decoder(&self) -> Result<bool> {
        let norms = self.decoder(0)?.norms(self.options())?;
        Ok(norms.f_allclose(&norms.f_ones_like()?, 1e-5, 1e-8, false)?)
    }

    /// The dictionary with the name of the model that it was trained on.
    pub fn named(&self, model: impl Into<String>) -> Self {
        let inner = &self.inner;
        let config = DictionaryConfig { model_name: Some(model.into()), ..inner.config.clone() };
        Dictionary { inner: Arc::new(Inner { config, ..Inner::clone(inner) }) }
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

    /// The dictionary of a range of the features, for encoding alone: a view, whose decoders are none.
    pub(super) fn features(&self, start: i64, len: i64) -> Result<Dictionary> {
        let inner = &self.inner;
        let narrow = |tensor: &SharedTensor| -> Result<SharedTensor> { Ok(tensor.f_narrow(0, start, len)?.into()) };
        Ok(Dictionary {
            inner: Arc::new(Inner {
                config: inner.config.clone(),
                w_enc: narrow(&inner.w_enc)?,
                b_enc: narrow(&inner.b_enc)?,
                bias: narrow(&inner.bias)?,
                b_dec: inner.b_dec.clone(),
                w_skip: None,
                threshold: inner.threshold.as_ref().map(narrow).transpose()?,
                has_positive_thresholds: inner.has_positive_thresholds,
                gate: match &inner.gate {
                    Some(Gate { b_gate, r_mag, scale }) => {
                        Some(Gate { b_gate: narrow(b_gate)?, r_mag: narrow(r_mag)?, scale: narrow(scale)? })
                    }
                    None => None,
                },
                outputs: Vec::new(),
                decoder_norms: inner.decoder_norms.as_ref().map(narrow).transpose()?,
            }),
        })
    }

    /// An error about this dictionary.
    pub(crate) fn refused(&self, what: impl Into<String>) -> Error {
        Error::Dictionary { name: self.hook_out().to_string(), what: what.into() }
    }
}

fn check_k(activation: FeatureActivation, d_sae: i64) -> Result<(), String> {
    let fits = match activation {
        FeatureActivation::TopK(k) | FeatureActivation::AbsTopK(k) => {
            k >= 1 && i64::try_from(k).is_ok_and(|k| k <= d_sae)
        }
        FeatureActivation::GroupMax(k) => k >= 1 && i64::try_from(k).is_ok_and(|k| d_sae % k == 0),
        FeatureActivation::BatchTopK(k) => k > 0.0 && k <= d_sae as f64,
        _ => true,
    };
    match fits {
        true => Ok(()),
        false => Err(format!("{activation} cannot choose among {d_sae} features")),
    }
}

fn size(tensor: &Tensor, dim: usize) -> usize {
    tensor.size().get(dim).map_or(0, |n| *n as usize)
}
