//! Encoding and decoding.

use tch::Tensor;

use super::activation::PreActivations;
use super::dictionary::Dictionary;
use super::features::SparseFeatures;
use super::kind::FeatureActivation;
use super::normalization::Undo;
use crate::unchecked::few_rows;
use crate::unchecked::onednn::{self, Epilogue};
use crate::{Error, Result};

/// Features whose pre-activations are formed at once by a sparse encoding.
const CHUNK: i64 = 4096;

impl Dictionary {
    /// The activations of all features: `[…, d_in]`, or `[…, head, d_head]` where heads are flattened, to `[…, feature]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for an activation of another width.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let (x, _) = self.normalized(&self.flattened(x)?)?;
        self.encode_normalized(&x)
    }

    /// The pre-activations of all features, before any rescaling: `[…, d_in]` to `[…, feature]`. SAELens' `hook_sae_acts_pre`.
    ///
    /// # Errors
    ///
    /// Those of [`Dictionary::encode`].
    pub fn pre_activations(&self, x: &Tensor) -> Result<Tensor> {
        let (x, _) = self.normalized(&self.flattened(x)?)?;
        Ok(self.product(&x)?.pre)
    }

    /// The active features alone. Pre-activations are formed for 4,096 features at a time, so that the memory is
    /// `positions × 4,096` numbers and what is active; only for a BatchTopK dictionary, which compares all of them, it is
    /// `positions × features`. Of TopK and its like, all of the `k` chosen features are listed, those of activation 0 too.
    ///
    /// # Errors
    ///
    /// Those of [`Dictionary::encode`].
    pub fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures> {
        let (x, _) = self.normalized(&self.flattened(x)?)?;
        self.encode_sparse_normalized(&x)
    }

    /// The reconstruction from the activations of features: `[…, feature]` to `[…, d_out]`, with `b_dec`, without the skip connection. Of a
    /// cross-layer transcoder, what this layer contributes to its own output. The norm of the input is not undone, as it is not
    /// known here: [`forward`](Dictionary::forward) undoes it.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another number of features.
    pub fn decode(&self, acts: &Tensor) -> Result<Tensor> {
        self.decode_to(0, acts)
    }

    /// [`Dictionary::decode`] of sparse activations.
    ///
    /// # Errors
    ///
    /// Those of [`Dictionary::decode`].
    pub fn decode_sparse(&self, acts: &SparseFeatures) -> Result<Tensor> {
        self.decode_sparse_to(0, acts)
    }

    /// [`Dictionary::decode_to`] of sparse activations.
    ///
    /// # Errors
    ///
    /// Those of [`Dictionary::decode_to`].
    pub fn decode_sparse_to(&self, output: usize, acts: &SparseFeatures) -> Result<Tensor> {
        self.check_features(&acts.size())?;
        let values = self.unscaled_sparse(acts)?;
        let bias = (output == 0).then_some(&*self.inner.b_dec);
        let sum = self.decoder(output)?.sum_sparse(&values, bias)?;
        Ok(sum.f_reshape(shape(acts.leading(), self.d_out()))?)
    }

    /// What the features contribute to the `output`-th of [`outputs`](Dictionary::outputs): `[…, feature]` to `[…, d_out]`. `b_dec` is added
    /// to the first, which is its layer's.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another number of features; [`Error::Dictionary`] for an output that it does not have.
    pub fn decode_to(&self, output: usize, acts: &Tensor) -> Result<Tensor> {
        let size = acts.size();
        self.check_features(&size)?;
        let leading = size.get(..size.len() - 1).unwrap_or_default();
        let acts = self.unscaled(acts)?;
        let bias = (output == 0).then_some(&*self.inner.b_dec);
        let sum = self.decoder(output)?.sum(&acts.f_reshape([-1, self.d_sae() as i64])?, bias)?;
        Ok(sum.f_reshape(shape(leading, self.d_out()))?)
    }

    /// What the skip connection adds to the reconstruction: `[…, d_in]` to `[…, d_out]`; `None` without one.
    ///
    /// # Errors
    ///
    /// Those of [`Dictionary::encode`].
    pub fn skip(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(w_skip) = &self.inner.w_skip else { return Ok(None) };
        Ok(Some(self.flattened(x)?.f_linear(w_skip, None::<&Tensor>)?))
    }

    /// The reconstruction, in the shape of the activation at [`hook_out`](Dictionary::hook_out), with the norm undone and the skip connection.
    ///
    /// # Errors
    ///
    /// Those of [`Dictionary::encode`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let flat = self.flattened(x)?;
        let (normal, undo) = self.normalized(&flat)?;
        let recons = match self.is_sparse() && !normal.requires_grad() {
            true => self.decode_sparse(&self.encode_sparse_normalized(&normal)?)?,
            false => self.decode(&self.encode_normalized(&normal)?)?,
        };
        let recons = undo.apply(recons)?;
        let recons = match self.skip(&flat)? {
            Some(skip) => recons.f_add(&skip)?,
            None => recons,
        };
        self.like_activation(recons, x)
    }

    // --- the steps, for runs ----------------------------------------------------------------------------------------

    /// The activation with its heads side by side, in the dictionary's kind: `[…, d_in]`.
    pub(crate) fn flattened(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let d_in = self.d_in() as i64;
        let x = match size[..] {
            [.., last] if last == d_in => x.shallow_clone(),
            [.., head, d_head] if self.config().flatten_heads && head.checked_mul(d_head) == Some(d_in) => {
                x.f_reshape(shape(&size[..size.len() - 2], self.d_in()))?
            }
            _ => {
                return Err(Error::Shape {
                    what: format!("what the dictionary at `{}` encodes", self.hook_in()),
                    expected: format!("[…, {d_in}]"),
                    found: size,
                })
            }
        };
        Ok(x.f_to_kind(self.kind())?)
    }

    pub(crate) fn normalized(&self, x: &Tensor) -> Result<(Tensor, Undo)> {
        self.config().normalization.apply(x)
    }

    /// Whether so few features are active that only these are formed.
    pub(crate) fn is_sparse(&self) -> bool {
        self.config().activation.most_active().is_some()
    }

    /// [`Dictionary::encode`] of a normalised input.
    pub(crate) fn encode_normalized(&self, x: &Tensor) -> Result<Tensor> {
        match self.relu(x) {
            Some(acts) => acts,
            None => self.activate(self.product(x)?),
        }
    }

    /// Pre-activations of a normalised input.
    pub(crate) fn product(&self, x: &Tensor) -> Result<PreActivations> {
        let x = &self.centered(x)?;
        let (w, b) = (&*self.inner.w_enc, self.bias());
        let product = match few_rows::linear(x, w, b).or_else(|| onednn::linear(x, w, b, Epilogue::Identity)) {
            Some(product) => product,
            None => x.f_linear(w, b)?,
        };
        self.of_product(product)
    }

    /// The activations of a plain ReLU dictionary in one product, where the machine has that.
    fn relu(&self, x: &Tensor) -> Option<Result<Tensor>> {
        let plain = self.config().activation == FeatureActivation::Relu && self.inner.decoder_norms.is_none();
        let (w, b) = (&*self.inner.w_enc, self.bias());
        if !plain || few_rows::takes(x, w, b) {
            return None;
        }
        match self.centered(x) {
            Ok(x) => onednn::linear(&x, w, b, Epilogue::Relu).map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    /// The input less `b_dec`, where that is subtracted. It could be in the bias of the product, but that rounds otherwise, and features
    /// whose threshold is a pre-activation of training would be others.
    fn centered(&self, x: &Tensor) -> Result<Tensor> {
        match self.config().apply_b_dec_to_input {
            true => Ok(x.f_sub(&self.inner.b_dec)?),
            false => Ok(x.shallow_clone()),
        }
    }

    /// What the product adds: nothing in a gated dictionary, whose gates and magnitudes have biases of their own.
    fn bias(&self) -> Option<&Tensor> {
        match self.inner.gate {
            Some(_) => None,
            None => Some(&self.inner.b_enc),
        }
    }

    /// [`Dictionary::encode_sparse`] of a normalised input.
    pub(crate) fn encode_sparse_normalized(&self, x: &Tensor) -> Result<SparseFeatures> {
        let size = x.size();
        let leading = size.get(..size.len().saturating_sub(1)).unwrap_or_default();
        let rows = x.f_reshape([-1, self.d_in() as i64])?;
        let d_sae = self.d_sae() as i64;
        match self.config().activation {
            FeatureActivation::BatchTopK(_) => {
                let acts = self.activate(self.product(x)?)?;
                SparseFeatures::from_dense(&acts)
            }
            FeatureActivation::TopK(k) | FeatureActivation::AbsTopK(k) => {
                let (values, features) = self.top_k(&rows, k as i64)?;
                SparseFeatures::of_k(leading, d_sae, &features, &values)
            }
            FeatureActivation::GroupMax(k) => {
                let (values, features) = self.group_max(&self.product(&rows)?.pre, k as i64)?;
                SparseFeatures::of_k(leading, d_sae, &features, &values.f_relu()?)
            }
            _ => {
                let mut parts = Vec::new();
                for start in (0..d_sae).step_by(CHUNK as usize) {
                    let part = self.features(start, CHUNK.min(d_sae - start))?;
                    parts.push(SparseFeatures::from_dense(&part.activate(part.product(&rows)?)?)?);
                }
                SparseFeatures::side_by_side(&parts, leading)
            }
        }
    }

    /// The `k` largest of each row, a chunk of features at a time: values and features, `[row, k]` each.
    fn top_k(&self, rows: &Tensor, k: i64) -> Result<(Tensor, Tensor)> {
        let by_size = matches!(self.config().activation, FeatureActivation::AbsTopK(_));
        let d_sae = self.d_sae() as i64;
        let mut best: Option<(Tensor, Tensor)> = None;
        for start in (0..d_sae).step_by(CHUNK as usize) {
            let part = self.features(start, CHUNK.min(d_sae - start))?;
            let mut pre = part.product(rows)?.pre; // [row, chunk]
            if let Some(norms) = &part.inner.decoder_norms {
                pre = pre.f_mul(norms)?;
            }
            let chosen = |pre: &Tensor| -> Result<Tensor> {
                let n = k.min(pre.size().last().copied().unwrap_or(0));
                let by = if by_size { pre.f_detach()?.f_abs()? } else { pre.f_detach()? };
                Ok(by.f_topk(n, -1, true, false)?.1)
            };
            let within = chosen(&pre)?;
            let (values, features) = (pre.f_gather(-1, &within, false)?, within.f_add(&offset(start, &within)?)?);
            best = Some(match best {
                None => (values, features),
                Some((before, features_before)) => {
                    let values = Tensor::f_cat(&[before, values], -1)?;
                    let features = Tensor::f_cat(&[features_before, features], -1)?;
                    let kept = chosen(&values)?;
                    (values.f_gather(-1, &kept, false)?, features.f_gather(-1, &kept, false)?)
                }
            });
        }
        let (values, features) = best.ok_or(Error::Internal("a dictionary without features"))?;
        Ok((if by_size { values } else { values.f_relu()? }, features))
    }

    /// Activations, `[…, feature]`, divided by the decoder's norms where they were multiplied by them.
    pub(crate) fn unscaled(&self, acts: &Tensor) -> Result<Tensor> {
        match &self.inner.decoder_norms {
            Some(norms) => Ok(acts.f_div(norms)?),
            None => Ok(acts.shallow_clone()),
        }
    }

    /// Sparse activations, divided by the decoder's norms where they were multiplied by them.
    pub(crate) fn unscaled_sparse(&self, acts: &SparseFeatures) -> Result<SparseFeatures> {
        let values = match &self.inner.decoder_norms {
            Some(norms) => acts.values().f_div(&norms.f_index_select(0, acts.features())?)?,
            None => acts.values().shallow_clone(),
        };
        Ok(acts.with_values(values))
    }

    /// A reconstruction in the shape and kind of the activation that it stands for.
    pub(crate) fn like_activation(&self, recons: Tensor, activation: &Tensor) -> Result<Tensor> {
        let size = activation.size();
        let recons = match self.config().flatten_heads && recons.numel() == activation.numel() {
            true => recons.f_reshape(size)?,
            false => recons,
        };
        Ok(recons.f_to_kind(activation.f_kind()?)?)
    }

    pub(super) fn check_features(&self, size: &[i64]) -> Result<()> {
        let d_sae = self.d_sae() as i64;
        match size.last() == Some(&d_sae) {
            true => Ok(()),
            false => Err(Error::Shape {
                what: format!("the features of the dictionary at `{}`", self.hook_out()),
                expected: format!("[…, {d_sae}]"),
                found: size.to_vec(),
            }),
        }
    }
}

fn shape(leading: &[i64], last: usize) -> Vec<i64> {
    leading.iter().copied().chain([last as i64]).collect()
}

/// A number to be added to features.
fn offset(start: i64, features: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[start])?.f_to_device(features.device())?)
}
