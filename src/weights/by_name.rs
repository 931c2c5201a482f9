//! The weights by TransformerLens' names and shapes.

use tch::Tensor;

use crate::model::attention::Attention;
use crate::model::block::{Block, MlpOrExperts};
use crate::model::linear::Linear;
use crate::model::mlp::Mlp;
use crate::model::Transformer;
use crate::tensor::slice::Slice;
use crate::{Error, Result};

/// Of the whole model.
impl Transformer {
    /// `W_E`, the embedding: `[d_vocab, d_model]`, the model's own memory.
    ///
    /// # Errors
    ///
    /// None.
    pub fn w_e(&self) -> Result<Tensor> {
        Ok(self.weights().embed.w_e.shallow_clone())
    }

    /// `W_pos`, the learned positions: `[n_ctx, d_model]`, the model's own memory.
    ///
    /// # Errors
    ///
    /// [`Error::ModelHasNo`] where the model learns none: its positions are rotary, ALiBi's or absent.
    pub fn w_pos(&self) -> Result<Tensor> {
        let none = || {
            let positions = self.config().positional_embedding_type();
            Error::model_has_no("W_pos", format!("its positions are {positions:?}"))
        };
        self.weights().embed.w_pos.as_deref().map(Tensor::shallow_clone).ok_or_else(none)
    }

    /// `W_E` above `W_pos`: `[d_vocab + n_ctx, d_model]`, a basis of what the first block reads.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// assert_eq!(model.w_e_pos()?.size(), [1047 + 64, 128]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Transformer::w_pos`].
    pub fn w_e_pos(&self) -> Result<Tensor> {
        Ok(Tensor::f_cat(&[self.w_e()?, self.w_pos()?], 0)?)
    }

    /// `W_U`, the unembedding: `[d_model, d_vocab_out]`, a view; `logits = norm(x) W_U + b_U`.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn w_u(&self) -> Result<Tensor> {
        self.weights().unembed.u.w()
    }

    /// `b_U`: `[d_vocab_out]`; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn b_u(&self) -> Result<Tensor> {
        bias(&self.weights().unembed.u)
    }
}

/// Of attention. A layer's shape is given; several layers are stacked before it.
///
/// Each fails with [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
impl Transformer {
    /// `W_Q`: `[n_heads, d_model, d_head]`, a view; `q = x W_Q + b_Q`, of the stream `x` after its norm.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// use tch::Tensor;
    /// let model = HookedTransformer::toy()?;
    /// let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let x = cache[("normalized", 1, "ln1")].unsqueeze(2); // [batch, pos, 1, d_model]
    /// let q = x.unsqueeze(3).matmul(&model.w_q(1)?).squeeze_dim(3) + model.b_q(1)?;
    /// assert!((q - &cache[("q", 1)]).abs().max().double_value(&[]) < 1e-4);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn w_q(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| heads(attn, Qkv::Q))
    }

    /// `W_K`: `[n_heads, d_model, d_head]`, a view; where query heads share keys, a copy with each repeated for its heads.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn w_k(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| per_query_head(attn, heads(attn, Qkv::K)?))
    }

    /// `W_V`: `[n_heads, d_model, d_head]`, a view; where query heads share values, a copy with each repeated for its heads.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn w_v(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| per_query_head(attn, heads(attn, Qkv::V)?))
    }

    /// TransformerLens' `_W_K`, as stored: `[n_key_value_heads, d_model, d_head]`, a view.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn w_k_grouped(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| heads(attn, Qkv::K))
    }

    /// TransformerLens' `_W_V`, as stored: `[n_key_value_heads, d_model, d_head]`, a view.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn w_v_grouped(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| heads(attn, Qkv::V))
    }

    /// `W_O`: `[n_heads, d_head, d_model]`, a view; `attn_out = Σ_heads z W_O + b_O`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn w_o(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, Attention::w_o)
    }

    /// `b_Q`: `[n_heads, d_head]`; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn b_q(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| head_biases(attn, Qkv::Q))
    }

    /// `b_K`: `[n_heads, d_head]`, each repeated for the query heads that share it; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn b_k(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| per_query_head(attn, head_biases(attn, Qkv::K)?))
    }

    /// `b_V`: `[n_heads, d_head]`, each repeated for the query heads that share it; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn b_v(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| per_query_head(attn, head_biases(attn, Qkv::V)?))
    }

    /// TransformerLens' `_b_K`, as stored: `[n_key_value_heads, d_head]`; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn b_k_grouped(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| head_biases(attn, Qkv::K))
    }

    /// TransformerLens' `_b_V`, as stored: `[n_key_value_heads, d_head]`; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn b_v_grouped(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| head_biases(attn, Qkv::V))
    }

    /// `b_O`: `[d_model]`; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`].
    pub fn b_o(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| bias(&attn.o))
    }

    fn attention(&self, layers: impl Into<Slice>, weight: impl Fn(&Attention) -> Result<Tensor>) -> Result<Tensor> {
        self.per_layer(layers.into(), |block| weight(&block.attn))
    }
}

/// Of the MLPs. A layer's shape is given; several layers are stacked before it.
///
/// Each fails with [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have, and with
/// [`Error::ModelHasNo`] where there are no MLPs, or mixtures of experts in their place, whose weights
/// [`Transformer::parameters`] has by expert.
impl Transformer {
    /// `W_in`: `[d_model, d_mlp]`, a view; `pre = x W_in + b_in`, or, gated, `pre_linear = x W_in`, of the stream `x` after its norm.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`]; [`Error::ModelHasNo`] without MLPs.
    pub fn w_in(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| mlp.w_in.w())
    }

    /// `W_gate`: `[d_model, d_mlp]`, a view; `pre = x W_gate`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`]; [`Error::ModelHasNo`] without MLPs, or where they have no gate.
    pub fn w_gate(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| gate(mlp)?.w())
    }

    /// `W_out`: `[d_mlp, d_model]`, a view; `mlp_out = post W_out + b_out`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`]; [`Error::ModelHasNo`] without MLPs.
    pub fn w_out(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| mlp.w_out.w())
    }

    /// TransformerLens' `b_in`: `[d_mlp]`; zeros where the model has none.
    ///
    /// Of a plain MLP, `pre = x W_in + b_in`. Of a gated one it is added to the product, `post = act(pre) · pre_linear + b_in`;
    /// what is added within the product, which TransformerLens does not have, is [`b_gate`](Transformer::b_gate) and
    /// [`b_pre_linear`](Transformer::b_pre_linear).
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`]; [`Error::ModelHasNo`] without MLPs.
    pub fn b_in(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| match (&mlp.gate, &mlp.b_product) {
            (None, _) => bias(&mlp.w_in),
            (Some(_), Some(b_product)) => Ok(b_product.shallow_clone()),
            (Some(_), None) => zeros(&mlp.w_in),
        })
    }

    /// What is added to a gate, `pre = x W_gate + b_gate`: `[d_mlp]`; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`]; [`Error::ModelHasNo`] without MLPs, or where they have no gate.
    pub fn b_gate(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| bias(gate(mlp)?))
    }

    /// What is added to a gated MLP's linear part, `pre_linear = x W_in + b_pre_linear`: `[d_mlp]`; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`]; [`Error::ModelHasNo`] without MLPs, or where they have no gate.
    pub fn b_pre_linear(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| gate(mlp).and_then(|_| bias(&mlp.w_in)))
    }

    /// `b_out`: `[d_model]`; zeros where the model has none.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`], [`Error::SliceOutOfRange`]; [`Error::ModelHasNo`] without MLPs.
    pub fn b_out(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| bias(&mlp.w_out))
    }

    fn mlp(&self, layers: impl Into<Slice>, weight: impl Fn(&Mlp) -> Result<Tensor>) -> Result<Tensor> {
        self.per_layer(layers.into(), |block| match &block.mlp {
            Some(MlpOrExperts::Mlp(mlp)) => weight(mlp),
            None => Err(Error::model_has_no("MLPs", "it is attention-only")),
            Some(MlpOrExperts::Experts(mixture)) => Err(Error::model_has_no(
                format!("MLP in layer {}", block.layer),
                format!(
                    "it has {n} experts there: `parameters()` has their weights, such as blocks.{l}.mlp.experts.0.in.weight",
                    l = block.layer,
                    n = mixture.experts.len()
                ),
            )),
        })
    }

    /// A weight of one layer, or those of several as a stack.
    fn per_layer(&self, layers: Slice, weight: impl Fn(&Block) -> Result<Tensor>) -> Result<Tensor> {
        let blocks = &self.weights().blocks;
        if let Slice::Index(layer) = layers {
            return weight(&blocks[self.config().layer(layer)?]);
        }
        let len = blocks.len() as i64;
        let each = layers.indices(len, "layer")?.into_iter().map(|layer| weight(&blocks[layer as usize]));
        let mut each: Vec<Tensor> = each.collect::<Result<_>>()?;
        match each.len() {
            0 => Err(Error::SliceOutOfRange { slice: layers.to_string(), axis: "layer", len }),
            1 if layers.drops_axis() => Ok(each.remove(0)),
            _ => Ok(Tensor::f_stack(&each, 0)?),
        }
    }
}

/// Which third of a layer's product of queries, keys and values.
#[derive(Clone, Copy)]
enum Qkv {
    Q,
    K,
    V,
}

/// `d_model` to `head · d_head`, and how many heads.
fn linear(attn: &Attention, which: Qkv) -> Result<(Linear, i64)> {
    let (start, heads) = match which {
        Qkv::Q => (0, attn.n_heads),
        Qkv::K => (attn.n_heads, attn.n_kv_heads),
        Qkv::V => (attn.n_heads + attn.n_kv_heads, attn.n_kv_heads),
    };
    Ok((attn.qkv.narrow(start * attn.d_head, heads * attn.d_head)?, heads))
}

/// `[head, d_model, d_head]`, a view.
fn heads(attn: &Attention, which: Qkv) -> Result<Tensor> {
    let (linear, heads) = linear(attn, which)?;
    Ok(linear.weight.f_view([heads, attn.d_head, -1])?.f_transpose(1, 2)?)
}

/// `[head, d_head]`
fn head_biases(attn: &Attention, which: Qkv) -> Result<Tensor> {
    let (linear, heads) = linear(attn, which)?;
    Ok(bias(&linear)?.f_view([heads, attn.d_head])?)
}

/// `[kv_head, …]` to `[head, …]`.
fn per_query_head(attn: &Attention, x: Tensor) -> Result<Tensor> {
    match attn.n_heads / attn.n_kv_heads {
        1 => Ok(x),
        group => Ok(x.f_repeat_interleave_self_int(group, 0, None)?),
    }
}

fn gate(mlp: &Mlp) -> Result<&Linear> {
    mlp.gate.as_ref().ok_or_else(|| Error::model_has_no("gate", "its MLPs are not gated"))
}

/// `[out]`
fn bias(linear: &Linear) -> Result<Tensor> {
    match &linear.bias {
        Some(bias) => Ok(bias.shallow_clone()),
        None => zeros(linear),
    }
}

/// `[out]`
fn zeros(linear: &Linear) -> Result<Tensor> {
    let weight = &linear.weight; // [out, in]
    Ok(Tensor::f_zeros([weight.size()[0]], (weight.f_kind()?, weight.device()))?)
}
