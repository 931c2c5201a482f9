//! The interface of analyses to a model: the norms and weights through which components read and write the residual stream.

use tch::Tensor;

use crate::component::{Sublayer, Target};
use crate::model::attention::Attention;
use crate::model::block::{Block, MlpOrExperts};
use crate::model::cross::Cross;
use crate::model::head::Head;
use crate::model::head_router::{ChosenHeads, HeadRouter};
use crate::model::linear::Linear;
use crate::model::placed_norm::PlacedNorm;
use crate::model::Transformer;
use crate::tensor::precision::{at_least_float, widened};
use crate::tensor::scalar::full;
use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

/// The output of a group of neurons to the stream: of an MLP, a shared expert or an expert.
pub(crate) struct NeuronWriter<'m> {
    /// The expert; `None` for an MLP and for a shared expert.
    pub(crate) expert: Option<usize>,
    /// The output weights, `[d_model, d_mlp]`, and the bias.
    pub(crate) out: &'m Linear,
}

impl Transformer {
    fn block(&self, layer: usize) -> Result<&Block> {
        let n_layers = self.config().n_layers;
        self.weights()?.blocks.get(layer).ok_or(Error::LayerOutOfRange { layer: layer as i64, n_layers })
    }

    /// The norm through which a target reads the stream. The target's layer counts from the start.
    pub(crate) fn norm_before(&self, target: Target) -> Result<Option<PlacedNorm<'_>>> {
        Ok(match target {
            Target::Attn(layer) => self.block(layer as usize)?.norm_before_attn(),
            Target::CrossAttn(layer) => {
                let block = self.block(layer as usize)?;
                block.norm_before_cross().or_else(|| block.norm_of_stream_after_attn())
            }
            Target::Mlp(layer) => {
                let block = self.block(layer as usize)?;
                let of_stream = match block.cross {
                    Some(_) => block.norm_of_stream_after_cross(),
                    None => block.norm_of_stream_after_attn(),
                };
                block.norm_before_mlp().or(of_stream)
            }
            Target::Unembed => self.weights()?.unembed.norm_before(),
        })
    }

    /// The norm between a layer's attention and the stream.
    pub(crate) fn norm_after_attn(&self, layer: usize) -> Result<Option<PlacedNorm<'_>>> {
        Ok(self.block(layer)?.norm_after_attn())
    }

    /// The norm between a layer's MLP and the stream.
    pub(crate) fn norm_after_mlp(&self, layer: usize) -> Result<Option<PlacedNorm<'_>>> {
        Ok(self.block(layer)?.norm_after_mlp())
    }

    /// The norm between a sublayer and the stream.
    pub(crate) fn norm_after(&self, layer: usize, sublayer: Sublayer) -> Result<Option<PlacedNorm<'_>>> {
        let block = self.block(layer)?;
        Ok(match sublayer {
            Sublayer::Attention => block.norm_after_attn(),
            Sublayer::CrossAttention => block.norm_after_cross(),
            Sublayer::Mlp => block.norm_after_mlp(),
        })
    }

    /// The norm of the stream itself after a sublayer has added to it.
    pub(crate) fn norm_of_stream(&self, layer: usize, sublayer: Sublayer) -> Result<Option<PlacedNorm<'_>>> {
        let block = self.block(layer)?;
        Ok(match sublayer {
            Sublayer::Attention => block.norm_of_stream_after_attn(),
            Sublayer::CrossAttention => block.norm_of_stream_after_cross(),
            Sublayer::Mlp => block.norm_of_stream_after_mlp(),
        })
    }

    /// What all embeddings pass through on their way to the stream: a norm, and then a linear map.
    pub(crate) fn behind_embeddings(&self) -> Result<(Option<PlacedNorm<'_>>, Option<&Linear>)> {
        let embed = &self.weights()?.embed;
        Ok((embed.norm_of_sum(), embed.project.as_ref()))
    }

    /// What the stream is multiplied by before a sublayer adds to it: `[1]`, or `[d_model]`.
    pub(crate) fn stream_factor(&self, layer: usize, sublayer: Sublayer) -> Result<Option<Tensor>> {
        let block = self.block(layer)?;
        let gain = match sublayer {
            Sublayer::Attention => &block.stream_gains[0],
            Sublayer::CrossAttention => &None,
            Sublayer::Mlp => &block.stream_gains[1],
        };
        if let Some(gain) = gain {
            return widened(gain).map(Some);
        }
        let Some(factors) = block.factors else { return Ok(None) };
        let factor = match sublayer {
            Sublayer::Attention => factors.attn,
            Sublayer::CrossAttention => return Ok(None),
            Sublayer::Mlp => factors.mlp,
        };
        Ok(Some(full(&[1], factor, (at_least_float(self.kind()), self.device()))?))
    }

    /// What the stream is multiplied by once a layer has added to it, in fp32 or better: `[1]`.
    pub(crate) fn layer_factor(&self, layer: usize) -> Result<Option<Tensor>> {
        self.block(layer)?.scalar.as_deref().map(widened).transpose()
    }

    /// The norms after a mixture's experts and after its shared expert, where each has one of its own.
    pub(crate) fn norms_after_parts(&self, layer: usize) -> Result<Option<[PlacedNorm<'_>; 2]>> {
        Ok(match &self.block(layer)?.mlp {
            Some(MlpOrExperts::Experts(mixture)) => mixture.norms_after(),
            _ => None,
        })
    }

    /// The output weights of a layer's heads, `[d_model, head · d_head]`, and their bias.
    pub(crate) fn head_writer(&self, layer: usize) -> Result<&Linear> {
        Ok(&self.block(layer)?.attn.o)
    }

    /// The weights with which a layer's queries, keys and values read the stream, where they are linear in it: `[head, d_head, d_model]`
    /// each, the last one `[head, d_value, d_model]`. Of a layer that looks at keys of another one, those of queries alone.
    pub(crate) fn head_readers(&self, layer: usize) -> Result<Vec<Tensor>> {
        let attn = &self.block(layer)?.attn;
        let (of_q, of_k, of_v) = (attn.n_heads, attn.n_kv_heads, attn.n_kv_heads);
        let rows = |start: i64, heads: i64, width: i64| -> Result<Tensor> {
            let weight = attn.qkv.weight.f_narrow(0, start, heads * width)?;
            Ok(weight.f_reshape([heads, width, -1])?)
        };
        let queries = rows(0, of_q, attn.d_head)?;
        if attn.shares.is_some() {
            return Ok(vec![queries]);
        }
        Ok(vec![
            queries,
            rows(of_q * attn.d_head, of_k, attn.d_head)?,
            rows((of_q + of_k) * attn.d_head, of_v, attn.d_value)?,
        ])
    }

    /// A layer's attention.
    pub(crate) fn attention_layer(&self, layer: usize) -> Result<&Attention> {
        Ok(&self.block(layer)?.attn)
    }

    /// A layer's cross-attention, in a decoder that has some.
    pub(crate) fn cross_attention(&self, layer: usize) -> Result<Option<&Attention>> {
        Ok(self.block(layer)?.cross.as_ref().map(|cross| &cross.attn))
    }

    /// The norm through which cross-attention alone reads the stream.
    pub(crate) fn norm_before_cross(&self, layer: usize) -> Result<Option<PlacedNorm<'_>>> {
        Ok(self.block(layer)?.norm_before_cross())
    }

    /// What a mixture's experts and its shared expert multiply what they read by, where each has gains of its own: `[d_model]`.
    pub(crate) fn gains_of_parts(&self, layer: usize) -> Result<[Option<Tensor>; 2]> {
        let wide = |gain: &Option<SharedTensor>| gain.as_deref().map(widened).transpose();
        match &self.block(layer)?.mlp {
            Some(MlpOrExperts::Experts(mixture)) => match &mixture.separate {
                Some(separate) => Ok([wide(&separate.experts_gain)?, wide(&separate.shared_gain)?]),
                None => Ok([None, None]),
            },
            _ => Ok([None, None]),
        }
    }

    /// A layer's neurons: its own, or shared out among experts; none in attention-only models.
    pub(crate) fn mlp_or_experts(&self, layer: usize) -> Result<Option<&MlpOrExperts>> {
        Ok(self.block(layer)?.mlp.as_ref())
    }

    /// What chooses the heads of each token in a layer, where the heads are a mixture.
    pub(crate) fn head_router(&self, layer: usize) -> Result<Option<&HeadRouter>> {
        Ok(self.block(layer)?.attn.router.as_ref())
    }

    /// What a layer's mixture adds whatever its experts write.
    pub(crate) fn mixture_bias(&self, layer: usize) -> Result<Option<&Tensor>> {
        Ok(match &self.block(layer)?.mlp {
            Some(MlpOrExperts::Experts(mixture)) => mixture.bias.as_deref(),
            _ => None,
        })
    }

    /// The output of each head of a layer, before any norm after attention: `[batch, pos, head, d_model]`.
    ///
    /// `z` is `[batch, pos, head, d_head]`; `chosen` are the experts that the heads are of, where they are a mixture.
    pub(crate) fn head_results(&self, layer: usize, z: &Tensor, chosen: Option<&ChosenHeads>) -> Result<Tensor> {
        self.block(layer)?.attn.result(z, chosen)
    }

    /// The map through which the heads of a cross-attention write to the stream.
    pub(crate) fn cross_writer(&self, layer: usize) -> Result<&Linear> {
        Ok(&self.cross(layer)?.attn.o)
    }

    /// The map by which the queries (0), keys (1) or values (2) of a cross-attention are made of what they read.
    pub(crate) fn cross_reader(&self, layer: usize, input: usize) -> Result<Linear> {
        let attn = &self.cross(layer)?.attn;
        let kv = attn.kv.as_ref().ok_or(Error::Internal("cross-attention has no keys"))?;
        let keys = attn.n_kv_heads * attn.d_head;
        match input {
            0 => Ok(attn.qkv.clone()),
            1 => kv.narrow(0, keys),
            _ => kv.narrow(keys, attn.n_kv_heads * attn.d_value),
        }
    }

    /// Each head's output of a cross-attention, of `z`, `[batch, pos, head, d_head]`: `[batch, pos, head, d_model]`.
    pub(crate) fn cross_results(&self, layer: usize, z: &Tensor) -> Result<Tensor> {
        self.cross(layer)?.attn.result(z, None)
    }

    fn cross(&self, layer: usize) -> Result<&Cross> {
        let cross = self.block(layer)?.cross.as_ref();
        cross.ok_or_else(|| Error::model_has_no("cross-attention", "it is no decoder of an encoder-decoder"))
    }

    /// The outputs of a layer's neurons: one of an MLP; one of a mixture's shared expert and one per expert; none in attention-only
    /// models.
    pub(crate) fn neuron_writers(&self, layer: usize) -> Result<Vec<NeuronWriter<'_>>> {
        Ok(match &self.block(layer)?.mlp {
            None => Vec::new(),
            Some(MlpOrExperts::Mlp(mlp)) => vec![NeuronWriter { expert: None, out: &mlp.w_out }],
            Some(MlpOrExperts::Experts(mixture)) => {
                let writer = |(expert, weights)| NeuronWriter { expert: Some(expert), out: weights };
                let shared = mixture.shared.iter().map(|it| NeuronWriter { expert: None, out: &it.mlp.w_out });
                shared.chain(mixture.experts.iter().map(|expert| &expert.w_out).enumerate().map(writer)).collect()
            }
        })
    }

    /// What the outputs of the chosen experts are multiplied by: `[batch, pos, chosen]`.
    ///
    /// `weights` are those of all experts, `[batch, pos, expert]`, and `indices` are the chosen experts, `[batch, pos, chosen]`.
    pub(crate) fn chosen_weights(&self, layer: usize, weights: &Tensor, indices: &Tensor) -> Result<Tensor> {
        match &self.block(layer)?.mlp {
            Some(MlpOrExperts::Experts(mixture)) => mixture.output_weights(weights, indices),
            _ => Err(Error::model_has_no("experts", format!("layer {layer} has one MLP, or none"))),
        }
    }

    /// The neurons between the last norm and the unembedding.
    pub(crate) fn head(&self) -> Option<&Head> {
        self.weights().ok().and_then(|weights| weights.unembed.head.as_ref())
    }

    /// What the unembedding reads of what the last norm gives: `[…, d_unembed]`.
    pub(crate) fn through_head(&self, normalized: Tensor) -> Result<Tensor> {
        self.weights()?.unembed.through_head(normalized)
    }

    /// `W_U`, as `[d_vocab_out, d_model]`, and `b_U`.
    pub(crate) fn unembedding(&self) -> Result<&Linear> {
        self.weights()?.unembed.matrix()
    }

    /// The logits of a stream, through the last norm and the unembedding: `[…, d_model]` to `[…, d_vocab_out]`.
    pub(crate) fn read_logits(&self, resid: &Tensor) -> Result<Tensor> {
        self.weights()?.unembed.read(resid)
    }
}
