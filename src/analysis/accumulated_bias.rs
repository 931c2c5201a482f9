//! What biases alone add to the residual stream.

use tch::{Kind, Tensor};

use crate::component::Target;
use crate::config::{NormPosition, Normalization};
use crate::model::block::{Block, MlpOrExperts};
use crate::model::norm::Norm;
use crate::model::Transformer;
use crate::{Error, Result};

impl Transformer {
    /// What biases have added to the residual stream before the target, whatever the input: `[d_model]`, in fp32 or better.
    ///
    /// `Σ b_O` and, with `include_mlp_biases`, `Σ b_out` of the sublayers that have written. Leave the latter out where MLPs are
    /// kept as one row each and only attention is taken apart. TransformerLens' `accumulated_bias(layer, mlp_input)`, but that it
    /// serves attention-only models and, of parallel blocks, leaves a layer's own attention out of [`Target::Mlp`], as the
    /// MLP does not read it.
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
    /// [`Error::LayerOutOfRange`]; [`Error::Invalid`] where what a bias adds depends on the input: it passes through a norm
    /// after its sublayer, or belongs to an expert. The `bias` row of
    /// [`get_full_resid_decomposition`](crate::ActivationCache::get_full_resid_decomposition) has it by position.
    pub fn accumulated_bias(&self, target: Target, include_mlp_biases: bool) -> Result<Tensor> {
        let config = self.config();
        let reach = target.reach(config)?;
        let kind = if self.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let mut total = Tensor::f_zeros([config.d_model as i64], (kind, self.device()))?;
        let mut add = |bias: Option<&Tensor>| -> Result<()> {
            if let Some(bias) = bias {
                let _ = total.f_add_(&bias.f_to_kind(kind)?)?;
            }
            Ok(())
        };
        for (layer, block) in self.weights().blocks.iter().enumerate() {
            if layer < reach.attn_layers {
                let after = after_attn(block);
                add(constant(block.attn.o.bias.as_deref(), after, layer, "attention")?)?;
                add(after.and_then(|norm| norm.b.as_deref()))?;
            }
            if include_mlp_biases && layer < reach.mlp_layers {
                let after = after_mlp(block);
                match &block.mlp {
                    None => {}
                    Some(MlpOrExperts::Mlp(mlp)) => add(constant(mlp.w_out.bias.as_deref(), after, layer, "MLP")?)?,
                    Some(MlpOrExperts::Experts(mixture)) => {
                        for expert in &mixture.experts {
                            if !is_zero(expert.w_out.bias.as_deref())? {
                                return Err(depends(layer, "an expert's bias is weighted by the router".into()));
                            }
                        }
                    }
                }
                add(after.and_then(|norm| norm.b.as_deref()))?;
            }
        }
        Ok(total)
    }
}

/// The norm between a block's attention and the stream.
fn after_attn(block: &Block) -> Option<&Norm> {
    match block.norm_position {
        NormPosition::Before => None,
        NormPosition::After => Some(&block.ln1),
        NormPosition::BeforeAndAfter => Some(&block.ln1_post),
    }
}

/// The norm between a block's MLP and the stream.
fn after_mlp(block: &Block) -> Option<&Norm> {
    match block.norm_position {
        NormPosition::Before => None,
        NormPosition::After => Some(&block.ln2),
        NormPosition::BeforeAndAfter => Some(&block.ln2_post),
    }
}

/// A bias that reaches the stream as it is.
fn constant<'a>(
    bias: Option<&'a Tensor>,
    after: Option<&Norm>,
    layer: usize,
    sublayer: &str,
) -> Result<Option<&'a Tensor>> {
    match after {
        Some(norm) if norm.kind != Normalization::None && !is_zero(bias)? => {
            Err(depends(layer, format!("the bias of its {sublayer} passes through the norm after it")))
        }
        _ => Ok(bias),
    }
}

fn is_zero(bias: Option<&Tensor>) -> Result<bool> {
    match bias {
        None => Ok(true),
        Some(bias) => Ok(bias.f_count_nonzero(None)?.f_int64_value(&[])? == 0),
    }
}

fn depends(layer: usize, why: String) -> Error {
    Error::invalid(format!(
        "what biases add in layer {layer} depends on the input, as {why}: the `bias` row of get_full_resid_decomposition has it, \
         by position"
    ))
}
