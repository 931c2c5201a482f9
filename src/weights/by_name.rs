//! Weights under TransformerLens' names and with its shapes.

use tch::Tensor;

use crate::model::attention::Attention;
use crate::model::block::{Block, MlpOrExperts};
use crate::model::latent::Latent;
use crate::model::linear::Linear;
use crate::model::mlp::Mlp;
use crate::model::Transformer;
use crate::tensor::slice::Slice;
use crate::{Error, Result};

/// Weights outside the layers.
impl Transformer {
    /// `W_E`, the embedding: `[d_vocab, d_model]`. It shares the model's memory.
    ///
    /// # Errors
    ///
    /// [`Error::NoWeights`] in the cache of a file that was opened without its model.
    pub fn w_e(&self) -> Result<Tensor> {
        Ok(self.weights()?.embed.w_e.shallow_clone())
    }

    /// `W_pos`, the learned position embedding: `[n_ctx, d_model]`. It shares the model's memory.
    ///
    /// # Errors
    ///
    /// [`Error::ModelHasNo`] if the model has no learned positions: they are rotary, ALiBi's or absent.
    pub fn w_pos(&self) -> Result<Tensor> {
        let no_w_pos = || {
            let positions = self.config().positional_embedding_type();
            Error::model_has_no("W_pos", format!("its positions are {positions:?}"))
        };
        self.weights()?.embed.w_pos.as_deref().map(Tensor::shallow_clone).ok_or_else(no_w_pos)
    }

    /// The rows of `W_E` followed by those of `W_pos`: `[d_vocab + n_ctx, d_model]`, an overcomplete basis of the first block's input space.
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

    /// `W_U`, the unembedding: `[d_model, d_vocab_out]`, a view. `logits = norm(x) W_U + b_U`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn w_u(&self) -> Result<Tensor> {
        self.weights()?.unembed.matrix()?.w()
    }

    /// `b_U`: `[d_vocab_out]`; zeros if the model has no `b_U`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn b_u(&self) -> Result<Tensor> {
        bias(self.weights()?.unembed.matrix()?)
    }
}

/// Weights of attention. The documented shapes are those of one layer; several layers are stacked along a new first axis.
impl Transformer {
    /// `W_Q`: `[n_heads, d_model, d_head]`, a view. `q = x W_Q + b_Q`, with the normalised stream `x`.
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
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn w_q(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| heads(attn, Qkv::Q))
    }

    /// `W_K`: `[n_heads, d_model, d_head]`, a view. In grouped-query models, a copy in which each key-value head is repeated for its query
    /// heads.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn w_k(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| per_query_head(attn, heads(attn, Qkv::K)?))
    }

    /// `W_V`: `[n_heads, d_model, d_head]`, a view. In grouped-query models, a copy in which each key-value head is repeated for its query
    /// heads.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn w_v(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| per_query_head(attn, heads(attn, Qkv::V)?))
    }

    /// `W_K` per key-value head, TransformerLens' `_W_K`: `[n_key_value_heads, d_model, d_head]`, a view.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn w_k_grouped(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| heads(attn, Qkv::K))
    }

    /// `W_V` per key-value head, TransformerLens' `_W_V`: `[n_key_value_heads, d_model, d_head]`, a view.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn w_v_grouped(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| heads(attn, Qkv::V))
    }

    /// `W_O`: `[n_heads, d_head, d_model]`, a view. `attn_out = Σ_heads z W_O + b_O`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn w_o(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| {
            refuse_mixture(attn)?;
            attn.w_o()
        })
    }

    /// `b_Q`: `[n_heads, d_head]`; zeros if the model has no `b_Q`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn b_q(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| head_biases(attn, Qkv::Q))
    }

    /// `b_K`: `[n_heads, d_head]`; in grouped-query models repeated as in [`w_k`](Transformer::w_k); zeros if the model has no `b_K`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn b_k(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| per_query_head(attn, head_biases(attn, Qkv::K)?))
    }

    /// `b_V`: `[n_heads, d_head]`; in grouped-query models repeated as in [`w_v`](Transformer::w_v); zeros if the model has no `b_V`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn b_v(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| per_query_head(attn, head_biases(attn, Qkv::V)?))
    }

    /// `b_K` per key-value head, TransformerLens' `_b_K`: `[n_key_value_heads, d_head]`; zeros if the model has no `b_K`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn b_k_grouped(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| head_biases(attn, Qkv::K))
    }

    /// `b_V` per key-value head, TransformerLens' `_b_V`: `[n_key_value_heads, d_head]`; zeros if the model has no `b_V`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn b_v_grouped(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| head_biases(attn, Qkv::V))
    }

    /// `b_O`: `[d_model]`; zeros if the model has no `b_O`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn b_o(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.attention(layers, |attn| bias(&attn.o))
    }

    fn attention(&self, layers: impl Into<Slice>, weight: impl Fn(&Attention) -> Result<Tensor>) -> Result<Tensor> {
        self.per_layer(layers.into(), |block| weight(&block.attn))
    }
}

/// Weights of MLPs. The documented shapes are those of one layer; several layers are stacked along a new first axis.
///
/// These methods return [`Error::ModelHasNo`] for layers with a mixture of experts. [`Transformer::parameters`] returns the weights of
/// experts.
impl Transformer {
    /// `W_in`: `[d_model, d_mlp]`, a view. `pre = x W_in + b_in`, with the normalised stream `x`; in gated MLPs, `pre_linear = x W_in`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have; [`Error::ModelHasNo`] if the layers have
    /// no MLPs.
    pub fn w_in(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| mlp.w_in.w())
    }

    /// `W_gate`: `[d_model, d_mlp]`, a view. `pre = x W_gate`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have; [`Error::ModelHasNo`] if the layers have
    /// no MLPs, or MLPs without a gate.
    pub fn w_gate(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| gate(mlp)?.w())
    }

    /// `W_out`: `[d_mlp, d_model]`, a view. `mlp_out = post W_out + b_out`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have; [`Error::ModelHasNo`] if the layers have
    /// no MLPs.
    pub fn w_out(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| mlp.w_out.w())
    }

    /// TransformerLens' `b_in`: `[d_mlp]`; zeros if the model has no `b_in`.
    ///
    /// In MLPs without a gate, `pre = x W_in + b_in`. In gated MLPs, the bias is added to the product: `post = act(pre) · pre_linear +
    /// b_in`. The biases of the two factors, which TransformerLens does not have, are [`b_gate`](Transformer::b_gate) and
    /// [`b_pre_linear`](Transformer::b_pre_linear).
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have; [`Error::ModelHasNo`] if the layers have
    /// no MLPs.
    pub fn b_in(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| match (&mlp.gate, &mlp.b_product) {
            (None, _) => bias(&mlp.w_in),
            (Some(_), Some(b_product)) => Ok(b_product.shallow_clone()),
            (Some(_), None) => zeros(&mlp.w_in),
        })
    }

    /// The bias of the gate, `pre = x W_gate + b_gate`: `[d_mlp]`; zeros if the model has no such bias.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have; [`Error::ModelHasNo`] if the layers have
    /// no MLPs, or MLPs without a gate.
    pub fn b_gate(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| bias(gate(mlp)?))
    }

    /// The bias of a gated MLP's linear factor, `pre_linear = x W_in + b_pre_linear`: `[d_mlp]`; zeros if the model has no such bias.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have; [`Error::ModelHasNo`] if the layers have
    /// no MLPs, or MLPs without a gate.
    pub fn b_pre_linear(&self, layers: impl Into<Slice>) -> Result<Tensor> {
        self.mlp(layers, |mlp| gate(mlp).and_then(|_| bias(&mlp.w_in)))
    }

    /// `b_out`: `[d_model]`; zeros if the model has no `b_out`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have; [`Error::ModelHasNo`] if the layers have
    /// no MLPs.
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

    /// A weight of one layer, or the stacked weights of several layers.
    fn per_layer(&self, layers: Slice, weight: impl Fn(&Block) -> Result<Tensor>) -> Result<Tensor> {
        let blocks = &self.weights()?.blocks;
        if let Slice::Index(layer) = layers {
            return weight(&blocks[self.config().layer(layer)?]);
        }
        let len = blocks.len() as i64;
        let each = layers.indices(len, "layer")?.into_iter().map(|layer| weight(&blocks[layer as usize]));
        let mut each: Vec<Tensor> = each.collect::<Result<_>>()?;
        match each.len() {
            0 => Err(Error::SliceOutOfRange { slice: layers.to_string(), axis: "layer", len }),
            1 if layers.drops_axis() => Ok(each.remove(0)),
            _ if each.iter().any(|weight| weight.size() != each[0].size()) => Err(Error::unsupported(
                "layers have weights of different shapes, which are no one tensor: ask for one layer at a time",
            )),
            _ => Ok(Tensor::f_stack(&each, 0)?),
        }
    }
}

/// A part of a layer's joint weights for queries, keys and values.
#[derive(Clone, Copy)]
enum Qkv {
    Q,
    K,
    V,
}

/// The linear map from `d_model` to `head · d_head`, and the number of heads.
fn linear(attn: &Attention, part: Qkv) -> Result<(Linear, i64)> {
    refuse_mixture(attn)?;
    match (&attn.latent, part) {
        (Some(Latent { q: None, .. }), Qkv::Q) | (None, _) => {}
        (Some(_), _) => {
            let name = match part {
                Qkv::Q => "W_Q",
                Qkv::K => "W_K",
                Qkv::V => "W_V",
            };
            let why = "it has latent attention, with a norm between the stream and the heads: `parameters()` has the \
                       weights on either side of it, such as blocks.0.attn.kv_up.weight";
            return Err(Error::model_has_no(name, why));
        }
    }
    if let (Some(source), Qkv::K | Qkv::V) = (attn.shares, part) {
        let why =
            format!("layer {} looks at the keys and values of layer {source}: ask for those of that layer", attn.layer);
        return Err(Error::model_has_no("W_K and W_V", why));
    }
    let (start, heads, width) = match part {
        Qkv::Q => (0, attn.n_heads, attn.d_head),
        Qkv::K => (attn.n_heads * attn.d_head, attn.n_kv_heads, attn.d_head),
        Qkv::V => ((attn.n_heads + attn.n_kv_heads) * attn.d_head, attn.n_kv_heads, attn.d_value),
    };
    Ok((attn.qkv.narrow(start, heads * width)?, heads))
}

/// The weights by head: `[head, d_model, d_head]`, a view.
/// An error where a router chooses a token's heads, which then have no weights of their own.
fn refuse_mixture(attn: &Attention) -> Result<()> {
    match attn.router {
        None => Ok(()),
        Some(_) => Err(Error::model_has_no(
            "weights of heads",
            "a router chooses each token's heads: `parameters()` has those of all experts, such as blocks.0.attn.o.weight",
        )),
    }
}

fn heads(attn: &Attention, part: Qkv) -> Result<Tensor> {
    let (linear, heads) = linear(attn, part)?;
    Ok(linear.weight.f_view([heads, -1, linear.weight.size()[1]])?.f_transpose(1, 2)?)
}

/// The biases by head: `[head, d_head]`.
fn head_biases(attn: &Attention, part: Qkv) -> Result<Tensor> {
    let (linear, heads) = linear(attn, part)?;
    Ok(bias(&linear)?.f_view([heads, -1])?)
}

/// Repeats each key-value head for its query heads: `[kv_head, …]` to `[head, …]`.
fn per_query_head(attn: &Attention, x: Tensor) -> Result<Tensor> {
    match attn.n_heads / attn.n_kv_heads {
        1 => Ok(x),
        group => Ok(x.f_repeat_interleave_self_int(group, 0, None)?),
    }
}

fn gate(mlp: &Mlp) -> Result<&Linear> {
    mlp.gate.as_ref().ok_or_else(|| Error::model_has_no("gate", "its MLPs are not gated"))
}

/// The bias, or zeros: `[out]`.
fn bias(linear: &Linear) -> Result<Tensor> {
    match &linear.bias {
        Some(bias) => Ok(bias.shallow_clone()),
        None => zeros(linear),
    }
}

/// Zeros in place of a bias: `[out]`.
fn zeros(linear: &Linear) -> Result<Tensor> {
    let weight = &linear.weight; // [out, in]
    Ok(Tensor::f_zeros([weight.size()[0]], (weight.f_kind()?, weight.device()))?)
}
