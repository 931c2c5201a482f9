//! [`Activations`]: what the nodes of a run computed, and what they wrote to the stream.

use tch::{Kind, Tensor};

use super::graph::CircuitGraph;
use crate::cache::ActivationCache;
use crate::hook::{self, HookPoint};
use crate::model::Transformer;
use crate::tensor::precision::widened;
use crate::text::input::Tokens;
use crate::{Config, Result};

/// What the nodes of a run computed, in fp32 or better: the embeddings, `[batch, pos, d_model]`, the mixed values of each layer's heads,
/// `[batch, pos, head, d_head]`, and what each layer's MLP added, `[batch, pos, d_model]`. Axes of one entry are broadcast.
#[derive(Debug)]
pub(super) struct Activations {
    pub(super) embed: Tensor,
    pub(super) z: Vec<Tensor>,
    pub(super) mlp_out: Vec<Tensor>,
}

impl Activations {
    /// The hook points that it is made of.
    pub(super) fn points(graph: &CircuitGraph, config: &Config) -> Vec<HookPoint> {
        let heads = (0..graph.n_layers()).map(hook::z);
        let mlps = (0..graph.n_layers()).filter(|_| graph.has_mlps).map(hook::mlp_out);
        std::iter::once(hook::embedding(config)).chain(heads).chain(mlps).collect()
    }

    /// Those of a run that kept these points.
    pub(super) fn of_cache(graph: &CircuitGraph, cache: &ActivationCache) -> Result<Self> {
        let wide = |point: HookPoint| widened(cache.get(point)?);
        Ok(Activations {
            embed: wide(hook::embedding(cache.model().config()))?,
            z: (0..graph.n_layers()).map(|layer| wide(hook::z(layer))).collect::<Result<_>>()?,
            mlp_out: (0..graph.n_layers())
                .filter(|_| graph.has_mlps)
                .map(|layer| wide(hook::mlp_out(layer)))
                .collect::<Result<_>>()?,
        })
    }

    /// A function of each of them.
    pub(super) fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Activations {
            embed: f(&self.embed)?,
            z: self.z.iter().map(&f).collect::<Result<_>>()?,
            mlp_out: self.mlp_out.iter().map(&f).collect::<Result<_>>()?,
        })
    }

    /// The mean over the batch, and over its real tokens unless positions have means of their own.
    pub(super) fn mean(&self, tokens: &Tokens, per_position: bool) -> Result<Self> {
        self.map(|x| {
            if per_position {
                return Ok(x.f_mean_dim([0i64].as_slice(), true, None)?);
            }
            let Some(mask) = &tokens.mask else { return Ok(x.f_mean_dim([0i64, 1].as_slice(), true, None)?) };
            let mut shape = mask.size();
            shape.resize(x.dim(), 1);
            let real = mask.f_to_device(x.device())?.f_to_kind(x.f_kind()?)?.f_view(shape.as_slice())?;
            let sum = x.f_mul(&real)?.f_sum_dim_intlist([0i64, 1].as_slice(), true, None)?;
            Ok(sum.f_div(&real.f_sum(x.f_kind()?)?)?)
        })
    }

    /// What each node writes: `[sender, batch, pos, d_model]`; of a head, before any norm after attention.
    pub(super) fn written(&self, model: &Transformer) -> Result<Tensor> {
        let mut senders = vec![self.embed.f_unsqueeze(0)?];
        for (layer, z) in self.z.iter().enumerate() {
            senders.push(of_heads(model, layer, z)?);
            if let Some(mlp_out) = self.mlp_out.get(layer) {
                senders.push(mlp_out.f_unsqueeze(0)?);
            }
        }
        Ok(Tensor::f_cat(&senders, 0)?)
    }
}

/// What the heads of a layer write, before any norm after attention: `[batch, pos, head, d_head]` to `[head, batch, pos, d_model]`. A pair of
/// differential heads is one.
pub(super) fn of_heads(model: &Transformer, layer: usize, z: &Tensor) -> Result<Tensor> {
    let results = model.head_results(layer, &z.f_to_kind(model.kind())?, None)?; // [batch, pos, head, d_model]
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

/// All that a layer's heads write together, with the bias: `[batch, pos, head, d_head]` to `[batch, pos, d_model]`.
pub(super) fn of_attention(model: &Transformer, layer: usize, z: &Tensor) -> Result<Tensor> {
    let flat = z.f_flatten(2, 3)?.f_to_kind(model.kind())?;
    widened(&model.head_writer(layer)?.forward(&flat)?)
}

/// Which tokens are real, as numbers: `[batch, pos]`.
pub(super) fn real_tokens(tokens: &Tokens, options: (Kind, tch::Device)) -> Result<Tensor> {
    match &tokens.mask {
        Some(mask) => Ok(mask.f_to_device(options.1)?.f_to_kind(options.0)?),
        None => Ok(Tensor::f_ones(tokens.ids.size(), options)?),
    }
}
