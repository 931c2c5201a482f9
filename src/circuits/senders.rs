//! [`Activations`]: what the nodes of a run computed, and what they wrote to the stream.

use tch::{Kind, Tensor};

use super::graph::CircuitGraph;
use super::part::{PartKind, PartNodes};
use crate::cache::ActivationCache;
use crate::hook::{self, HookPoint};
use crate::model::linear::Linear;
use crate::model::{EncoderOutput, Transformer};
use crate::tensor::precision::widened;
use crate::text::input::Tokens;
use crate::{Config, Result};

/// What the nodes of a run computed, in fp32 or better. Axes of one entry are broadcast.
#[derive(Debug)]
pub(super) struct Activations {
    /// The embeddings: `[batch, pos, d_model]`.
    pub(super) embed: Tensor,
    /// Of each part, the mixed values of its heads, `[batch, pos, head, d_head]`, or what it added: `[batch, pos, d_model]`.
    pub(super) parts: Vec<Tensor>,
    /// What the decoder reads of an encoder: `[batch, encoder_pos, d_encoder]`.
    pub(super) encoder: Option<Tensor>,
    /// The inputs of per-layer embeddings, of each layer that has one: `[batch, pos, width]`.
    pub(super) layer_inputs: Vec<Tensor>,
}

impl Activations {
    /// The hook points that it is made of.
    pub(super) fn points(graph: &CircuitGraph, config: &Config) -> Vec<HookPoint> {
        let parts = graph.parts().iter().map(PartNodes::computed);
        std::iter::once(hook::embedding(config)).chain(parts).chain(layer_inputs(graph)).collect()
    }

    /// Those of a run that kept these points.
    pub(super) fn of_cache(
        graph: &CircuitGraph,
        cache: &ActivationCache,
        encoder: Option<&EncoderOutput>,
    ) -> Result<Self> {
        let wide = |point: HookPoint| widened(cache.get(point)?);
        Ok(Activations {
            embed: wide(hook::embedding(cache.model().config()))?,
            parts: graph.parts().iter().map(|part| wide(part.computed())).collect::<Result<_>>()?,
            encoder: encoder.map(|output| widened(output.stream())).transpose()?,
            layer_inputs: layer_inputs(graph).map(wide).collect::<Result<_>>()?,
        })
    }

    /// A function of each of them.
    pub(super) fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Activations {
            embed: f(&self.embed)?,
            parts: self.parts.iter().map(&f).collect::<Result<_>>()?,
            encoder: self.encoder.as_ref().map(&f).transpose()?,
            layer_inputs: self.layer_inputs.iter().map(&f).collect::<Result<_>>()?,
        })
    }

    /// The mean over the batch, and over its real tokens unless positions have means of their own.
    pub(super) fn mean(&self, tokens: &Tokens, encoder_mask: Option<&Tensor>, per_position: bool) -> Result<Self> {
        let mean = |x: &Tensor, mask: Option<&Tensor>| -> Result<Tensor> {
            if per_position {
                return Ok(x.f_mean_dim([0i64].as_slice(), true, None)?);
            }
            let Some(mask) = mask else { return Ok(x.f_mean_dim([0i64, 1].as_slice(), true, None)?) };
            let mut shape = mask.size();
            shape.resize(x.dim(), 1);
            let real = mask.f_to_device(x.device())?.f_to_kind(x.f_kind()?)?.f_view(shape.as_slice())?;
            let sum = x.f_mul(&real)?.f_sum_dim_intlist([0i64, 1].as_slice(), true, None)?;
            Ok(sum.f_div(&real.f_sum(x.f_kind()?)?)?)
        };
        let encoder = self.encoder.as_ref().map(|x| mean(x, encoder_mask)).transpose()?;
        Ok(Activations { encoder, ..self.map(|x| mean(x, tokens.mask.as_ref()))? })
    }

    /// What each node writes to the stream: `[sender, batch, pos, d_model]`; of a head, before any norm after attention.
    pub(super) fn written(&self, graph: &CircuitGraph, model: &Transformer) -> Result<Tensor> {
        let mut senders = vec![self.embed.f_unsqueeze(0)?];
        for (part, computed) in graph.parts().iter().zip(&self.parts) {
            senders.push(match part.kind.has_heads() {
                true => of_heads(model, part, computed)?,
                false => computed.f_unsqueeze(0)?,
            });
        }
        Ok(Tensor::f_cat(&senders, 0)?)
    }
}

/// The points of the inputs of per-layer embeddings.
pub(super) fn layer_inputs(graph: &CircuitGraph) -> impl Iterator<Item = HookPoint> + '_ {
    let with_own = graph.parts().iter().filter(|part| part.kind == PartKind::LayerEmbedding);
    with_own.map(|part| hook::ple_embed(part.layer))
}

/// What the heads of a part write, before any norm after attention: `[batch, pos, head, d_head]` to `[head, batch, pos, d_model]`. A pair of
/// differential heads is one.
pub(super) fn of_heads(model: &Transformer, part: &PartNodes, z: &Tensor) -> Result<Tensor> {
    let z = z.f_to_kind(model.kind())?;
    let results = match part.kind {
        PartKind::CrossAttention => model.cross_results(part.layer, &z)?,
        _ => model.head_results(part.layer, &z, None)?,
    }; // [batch, pos, head, d_model]
    let results = widened(&results.f_permute([2, 0, 1, 3])?)?;
    match model.config().attention.differential {
        false => Ok(results),
        // What `W_O` reads of a pair are two heads, one beside the other.
        true => {
            let pairs = results.f_unflatten(0, [-1, 2])?; // [pair, 2, batch, pos, d_model]
            Ok(pairs.f_sum_dim_intlist([1i64].as_slice(), false, None)?)
        }
    }
}

/// Gradients at what the nodes of a layer read, for queries, keys and values, `[receiver, batch, pos, d_model]`, from those at what its heads
/// read for each: `[head, batch, pos, d_model]`. Those of a differential pair are of two heads, the second half of all heads after the first.
pub(super) fn of_readers(model: &Transformer, heads: &[Tensor]) -> Result<Tensor> {
    let nodes = heads.iter().map(|heads| match model.config().attention.differential {
        false => Ok(heads.shallow_clone()),
        true => {
            let halves = heads.f_unflatten(0, [2, -1])?; // [2, pair, batch, pos, d_model]
            Ok(halves.f_sum_dim_intlist([0i64].as_slice(), false, None)?)
        }
    });
    Ok(Tensor::f_cat(&nodes.collect::<Result<Vec<_>>>()?, 0)?)
}

/// What the nodes of a layer read, `[node, batch, pos, d_model]`, as its heads read it: `[batch, pos, head, d_model]`.
pub(super) fn for_readers(model: &Transformer, nodes: &Tensor) -> Result<Tensor> {
    let nodes = nodes.f_permute([1, 2, 0, 3])?; // [batch, pos, node, d_model]
    match model.config().attention.differential {
        false => Ok(nodes),
        true => Ok(nodes.f_repeat([1, 1, 2, 1])?),
    }
}

/// The map through which the heads of a part write.
pub(super) fn head_writer<'m>(model: &'m Transformer, part: &PartNodes) -> Result<&'m Linear> {
    match part.kind {
        PartKind::CrossAttention => model.cross_writer(part.layer),
        _ => model.head_writer(part.layer),
    }
}

/// All that a part's heads write together, with the bias: `[batch, pos, head, d_head]` to `[batch, pos, d_model]`.
pub(super) fn of_attention(model: &Transformer, part: &PartNodes, z: &Tensor) -> Result<Tensor> {
    let flat = z.f_flatten(2, 3)?.f_to_kind(model.kind())?;
    widened(&head_writer(model, part)?.forward(&flat)?)
}

/// Which tokens are real, as numbers: `[batch, pos]`.
pub(super) fn real_tokens(tokens: &Tokens, options: (Kind, tch::Device)) -> Result<Tensor> {
    match &tokens.mask {
        Some(mask) => Ok(mask.f_to_device(options.1)?.f_to_kind(options.0)?),
        None => Ok(Tensor::f_ones(tokens.ids.size(), options)?),
    }
}
