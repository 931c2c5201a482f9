//! Dictionaries from weights, with every tensor checked; and from other dictionaries: in another kind, folded, named, or a part of the features.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::config::DictionaryConfig;
use super::decoder::Decoder;
use super::dictionary::{Dictionary, Gate, Inner};
use super::kind::FeatureActivation;
use super::normalization::InputNormalization;
use super::weights::{DictionaryWeights, Encoder};
use crate::hook::HookPoint;
use crate::tensor::scalar::Scalar;
use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

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

    /// The dictionary with the name of the model that it was trained on.
    pub fn named(&self, model: impl Into<String>) -> Self {
        let inner = &self.inner;
        let config = DictionaryConfig { model_name: Some(model.into()), ..inner.config.clone() };
        Dictionary { inner: Arc::new(Inner { config, ..Inner::clone(inner) }) }
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
