//! The sum of the biases that are added to the residual stream.

use tch::Tensor;

use crate::component::{Sublayer, Target};
use crate::model::Transformer;
use crate::tensor::precision::at_least_float;
use crate::{Error, Result};

impl Transformer {
    /// The sum of all biases that are added to the residual stream before the target: `[d_model]`, in fp32 or fp64.
    ///
    /// `Σ b_O` and, with `include_mlp_biases`, `Σ b_out` of the sublayers before the target. Set `include_mlp_biases` to false if each
    /// MLP is one row, which contains its bias, and only attention is decomposed.
    ///
    /// TransformerLens' `accumulated_bias(layer, mlp_input)`, with two differences: it supports attention-only models, and in blocks with
    /// parallel attention and MLP, [`Target::Mlp`] does not include the attention of the same layer, which the MLP does not read.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, Target};
    /// let model = HookedTransformer::toy()?;
    /// let bias = model.accumulated_bias(Target::Mlp(1), true)?;
    /// let sum = model.b_o(0)? + model.b_out(0)? + model.b_o(1)?;
    /// assert!((bias - sum).abs().max().double_value(&[]) < 1e-6);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] if the model does not have the target's layer; [`Error::Unsupported`] if the contribution of a bias depends on
    /// the input, because it passes through a norm after its sublayer or belongs to an expert. The `bias` row of
    /// [`get_full_resid_decomposition`](crate::ActivationCache::get_full_resid_decomposition) then has the contribution per position.
    pub fn accumulated_bias(&self, target: Target, include_mlp_biases: bool) -> Result<Tensor> {
        let config = self.config();
        let reach = target.reach(config)?;
        let kind = at_least_float(self.kind());
        let mut total = Tensor::f_zeros([config.d_model as i64], (kind, self.device()))?;
        let mut add = |bias: Option<&Tensor>| -> Result<()> {
            if let Some(bias) = bias {
                total = total.f_add(&bias.f_to_kind(kind)?)?;
            }
            Ok(())
        };
        if !config.stream.keeps_what_is_written() {
            return Err(Error::unsupported(
                "biases are multiplied by the stream's factors on their way: use the `bias` row of get_full_resid_decomposition",
            ));
        }
        for (layer, sublayer) in reach.sublayers(config).filter(|(_, sublayer)| sublayer.is_attention()) {
            if self.norm_of_stream(layer, sublayer)?.is_some() {
                return Err(depends_on_input(layer, "the stream passes through norms"));
            }
            let after = self.norm_after(layer, sublayer)?;
            let writer = match sublayer {
                Sublayer::CrossAttention => self.cross_writer(layer)?,
                _ => self.head_writer(layer)?,
            };
            let bias = writer.bias.as_deref();
            if after.is_some() && !is_zero(bias)? {
                return Err(depends_on_input(layer, "the bias of attention passes through the norm after attention"));
            }
            add(bias)?;
            add(after.and_then(|after| after.norm.b.as_deref()))?;
        }
        for layer in 0..if include_mlp_biases { reach.mlp_layers } else { 0 } {
            let after = self.norm_after_mlp(layer)?;
            for writer in self.neuron_writers(layer)? {
                let bias = writer.out.bias.as_deref();
                match writer.expert {
                    _ if is_zero(bias)? => {}
                    Some(_) => return Err(depends_on_input(layer, "the router weights the biases of experts")),
                    None if after.is_some() => {
                        return Err(depends_on_input(
                            layer,
                            "the bias of the MLP passes through the norm after the MLP",
                        ))
                    }
                    None => add(bias)?,
                }
            }
            let bias = self.mixture_bias(layer)?;
            if after.is_some() && !is_zero(bias)? {
                return Err(depends_on_input(layer, "the bias of the mixture passes through the norm after it"));
            }
            add(bias)?;
            add(after.and_then(|after| after.norm.b.as_deref()))?;
        }
        Ok(total)
    }
}

fn is_zero(bias: Option<&Tensor>) -> Result<bool> {
    match bias {
        None => Ok(true),
        Some(bias) => Ok(bias.f_count_nonzero(None)?.f_int64_value(&[])? == 0),
    }
}

fn depends_on_input(layer: usize, reason: &str) -> Error {
    Error::unsupported(format!(
        "the contribution of biases in layer {layer} depends on the input, because {reason}: use the `bias` row of \
         get_full_resid_decomposition, which has one value per position"
    ))
}
