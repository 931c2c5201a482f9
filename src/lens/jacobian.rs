//! [`JacobianLens`]: streams read through the mean derivative of the last stream.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::stream_mean::StreamMean;
use super::tensors::{check_cache, logits, shaped};
use crate::analysis::{LensOptions, LogitLens};
use crate::cache::ActivationCache;
use crate::component::Component;
use crate::hook;
use crate::layer::Layer;
use crate::run::Hooks;
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::text::positions::Positions;
use crate::unchecked::threads::SharedTensor;
use crate::{Error, HookedTransformer, OutputTokens, Result};

/// A Jacobian lens (Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models"): for each layer a matrix
/// `J_l`, the mean effect, to first order, of the stream after block `l` on the stream after the last block.
///
/// The stream `h` after block `l` is read as `J_l h` would be at the end, by the last norm and the unembedding. With `J_l = 1` it is the
/// logit lens. Made by [`fit`](JacobianLens::fit) or [`open`](JacobianLens::open).
///
/// `J_lᵀ W_U[:, t]` is the direction in the stream of layer `l` that stands for token `t`: [`directions`](JacobianLens::directions) are
/// for steering, and [`swap`](JacobianLens::swap) exchanges what the stream says of two tokens.
#[derive(Clone, Debug)]
pub struct JacobianLens {
    pub(super) model: HookedTransformer,
    /// Of each fitted layer: `[d_model, d_model]`, the last stream by the layer's.
    pub(super) jacobians: BTreeMap<usize, SharedTensor>,
    pub(super) n_prompts: usize,
    pub(super) stream_mean: StreamMean,
}

/// Whether directions are so close to parallel that the streams say nothing of the two tokens apart: the share of one's squared length that
/// is orthogonal to the other.
const PARALLEL: f64 = 1e-9;

impl JacobianLens {
    /// A lens of these matrices, `[d_model, d_model]`, for the streams after these layers, as a mean over `n_prompts` prompts, fitted on the
    /// streams of `model`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] without matrices; [`Error::LayerOutOfRange`] for a layer that does not exist, or the last one, whose stream is
    /// read as it is; [`Error::Shape`].
    pub fn new(
        model: &HookedTransformer,
        jacobians: impl IntoIterator<Item = (usize, Tensor)>,
        n_prompts: usize,
    ) -> Result<Self> {
        let (n_layers, d_model) = (model.config().n_layers, model.config().d_model as i64);
        let mut shared = BTreeMap::new();
        for (layer, jacobian) in jacobians {
            if layer + 1 >= n_layers {
                return Err(Error::wrong_input(format!(
                    "the lens has a matrix for layer {layer}, but only the layers before the last one have one: 0 to {}",
                    n_layers as i64 - 2
                )));
            }
            let what = || format!("the Jacobian of layer {layer}");
            shared.insert(layer, shaped(&jacobian, &[d_model, d_model], what, model)?);
        }
        if shared.is_empty() {
            return Err(Error::wrong_input("a Jacobian lens needs the matrix of at least one layer"));
        }
        let stream_mean = StreamMean::of(model);
        Ok(JacobianLens { model: model.clone(), jacobians: shared, n_prompts, stream_mean })
    }

    /// The same matrices for another model with as many layers and the same width.
    ///
    /// # Errors
    ///
    /// Those of [`JacobianLens::new`]; [`Error::WrongInput`] for a model whose streams differ in their mean.
    pub fn with_model(&self, model: &HookedTransformer) -> Result<Self> {
        self.stream_mean.check(model)?;
        let jacobians = self.jacobians.iter().map(|(layer, jacobian)| (*layer, jacobian.shallow_clone()));
        JacobianLens::new(model, jacobians, self.n_prompts)
    }

    /// The layers that have a matrix, in order.
    pub fn layers(&self) -> impl Iterator<Item = usize> + '_ {
        self.jacobians.keys().copied()
    }

    /// How many prompts the lens is a mean of.
    pub fn n_prompts(&self) -> usize {
        self.n_prompts
    }

    /// The matrix of a layer: `[d_model, d_model]`, the last stream by the layer's, in fp32 or better.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`]; [`Error::WrongInput`] for a layer without matrix.
    pub fn jacobian(&self, layer: impl Into<Layer>) -> Result<Tensor> {
        let layer = self.model.config().layer(layer)?;
        match self.jacobians.get(&layer) {
            Some(jacobian) => Ok(jacobian.shallow_clone()),
            None => {
                let fitted: Vec<String> = self.layers().map(|layer| layer.to_string()).collect();
                Err(Error::wrong_input(format!(
                    "the lens has no matrix for layer {layer}, only for {}",
                    fitted.join(", ")
                )))
            }
        }
    }

    /// The last stream that streams after a layer lead to, on average and to first order: `J h`, `[…, d_model]`, in fp32 or better.
    ///
    /// # Errors
    ///
    /// Those of [`JacobianLens::jacobian`]; [`Error::Shape`] for another last axis.
    pub fn transport(&self, stream: &Tensor, layer: impl Into<Layer>) -> Result<Tensor> {
        let jacobian = self.jacobian(layer)?;
        let d_model = self.model.config().d_model as i64;
        if stream.size().last() != Some(&d_model) {
            let expected = format!("[…, {d_model}]");
            return Err(Error::Shape { what: "the stream".into(), found: stream.size(), expected });
        }
        Ok(widened(stream)?.f_to_kind(jacobian.f_kind()?)?.f_matmul(&jacobian.f_tr()?)?)
    }

    /// Reads the stream after each layer that has a matrix, and the last stream as it is. The stream after block `l` is the row before block
    /// `l + 1`: `1_pre`, `2_pre`, …, `final_post`.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::logit_lens`]; [`Error::WrongInput`] for a cache of another model; [`Error::Setting`] with `incl_mid`.
    pub fn read(&self, cache: &ActivationCache, options: LensOptions) -> Result<LogitLens> {
        check_cache(cache, &self.model)?;
        cache.read_streams(options, "Jacobian lens", |row, stream| {
            let layer = match row {
                Component::FinalPost => return logits(&self.model, stream).map(Some),
                Component::ResidPre(next) => next.checked_sub(1),
                _ => None,
            };
            match layer.filter(|layer| self.jacobians.contains_key(layer)) {
                Some(layer) => logits(&self.model, &self.transport(stream, layer)?).map(Some),
                None => Ok(None),
            }
        })
    }

    /// The directions in the stream after a layer that stand for tokens: `J_lᵀ W_U[:, t]`, `[d_model]` for a text or an id, `[…, d_model]` for a
    /// tensor of ids, in fp32 or better.
    ///
    /// # Errors
    ///
    /// Those of [`JacobianLens::jacobian`] and [`HookedTransformer::tokens_to_residual_directions`].
    pub fn directions(&self, tokens: impl Into<OutputTokens>, layer: impl Into<Layer>) -> Result<Tensor> {
        let jacobian = self.jacobian(layer)?;
        let columns = widened(&self.model.tokens_to_residual_directions(tokens)?)?; // […, d_model]
        Ok(columns.f_to_kind(jacobian.f_kind()?)?.f_matmul(&jacobian)?)
    }

    /// Hooks that exchange what the streams after some layers say of two tokens.
    ///
    /// With `V` of the two tokens' [`directions`](JacobianLens::directions) as columns, the coordinates of a stream `h` are `c = V⁺ h`, and `h`
    /// becomes `h + strength · V (swapped(c) − c)`. What is orthogonal to both directions stays. Strength 1 is the exchange; the paper also
    /// uses 2.
    ///
    /// ```
    /// use tch_lens::lens::{JacobianLens, JacobianLensOptions};
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let prompt = "When Mary and John went to the shop, John gave a bag to";
    /// let options = JacobianLensOptions::new().skip_first(1).layers([2]).rows_at_once(64);
    /// let lens = JacobianLens::fit(&model, [prompt], options)?;
    /// let logits = model.run_with_hooks(prompt, lens.swap(" Mary", " John", [2], .., 1.0)?)?;
    /// let next = logits.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]);
    /// assert_eq!(model.to_string(&[next])?, " John");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`JacobianLens::directions`]; [`Error::WrongInput`] for two tokens with the same direction, and without layers;
    /// [`Error::Setting`] for a strength that is not finite.
    pub fn swap<L: Into<Layer>>(
        &self,
        one: impl Into<OutputTokens>,
        other: impl Into<OutputTokens>,
        layers: impl IntoIterator<Item = L>,
        positions: impl Into<Positions>,
        strength: f64,
    ) -> Result<Hooks<'static>> {
        if !strength.is_finite() {
            return Err(Error::option_value("strength", strength, "it must be a finite number"));
        }
        let (positions, mut hooks) = (positions.into(), Hooks::new());
        let columns = |tokens: OutputTokens| -> Result<Tensor> {
            let columns = self.model.tokens_to_residual_directions(tokens)?.f_to_kind(Kind::Double)?;
            match columns.dim() {
                1 => Ok(columns),
                _ => Err(Error::wrong_input("a swap is of two tokens: give a text of one token, or an id, for each")),
            }
        };
        let columns = Tensor::f_stack(&[columns(one.into())?, columns(other.into())?], 0)?; // [2, d_model]
        for layer in layers {
            let layer = self.model.config().layer(layer)?;
            let jacobian = self.jacobian(layer)?;
            let directions = columns.f_matmul(&jacobian.f_to_kind(Kind::Double)?)?; // [2, d_model]
            let inverse = pseudoinverse(&directions)?.f_to_kind(jacobian.f_kind()?)?; // [2, d_model]
            let directions = directions.f_to_kind(jacobian.f_kind()?)?;
            let exchange = move |stream: &Tensor, _| -> Result<Tensor> {
                let wide = widened(stream)?.f_to_kind(inverse.f_kind()?)?; // […, d_model]
                let coordinates = wide.f_matmul(&inverse.f_tr()?)?; // […, 2]
                let change = coordinates.f_flip([-1i64])?.f_sub(&coordinates)?.mul_number(strength)?;
                Ok(wide.f_add(&change.f_matmul(&directions)?)?.f_to_kind(stream.f_kind()?)?)
            };
            hooks = hooks.replace(hook::stream_after(self.model.config(), layer).pos(positions.clone()), exchange);
        }
        match hooks.is_empty() {
            true => Err(Error::wrong_input("a swap needs at least one layer")),
            false => Ok(hooks),
        }
    }
}

/// `V⁺` of the directions that are `Vᵀ`, in fp64: `(Vᵀ V)⁻¹ Vᵀ`, `[2, d_model]`.
fn pseudoinverse(directions: &Tensor) -> Result<Tensor> {
    let products = directions.f_matmul(&directions.f_tr()?)?; // [2, 2]
    let at = |i, j| products.f_double_value(&[i, j]);
    let (one, both, other) = (at(0, 0)?, at(0, 1)?, at(1, 1)?);
    let apart = one * other - both * both;
    if apart.is_nan() || apart <= PARALLEL * one * other {
        return Err(Error::wrong_input(
            "the two tokens have the same direction in this lens, so nothing can be exchanged",
        ));
    }
    Ok(Tensor::f_linalg_solve(&products, directions, true)?)
}
