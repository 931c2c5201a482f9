//! [`Embed`]: from tokens to the residual stream.

use tch::{Device, Kind, Tensor};

use super::batch::Batch;
use super::layer_embedding::LayerEmbeddings;
use super::layout::Layout;
use super::linear::Linear;
use super::norm::{Norm, NormPoints};
use super::parameters::module;
use super::part::Part;
use super::placed_norm::PlacedNorm;
use super::temporary::Temporary;
use crate::config::{Normalization, PositionalEmbedding, Sinusoids};
use crate::hook::{self, Start};
use crate::run::{Flow, Tap};
use crate::tensor::scalar::{arange, Scalar};
use crate::tensor::span::Span;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Result};

impl Sinusoids {
    /// The position embeddings of a model of this shape: `[n_ctx, d_embed]`, in fp64.
    pub(crate) fn table(&self, config: &Config) -> Result<Tensor> {
        let offset = self.offset as i64;
        let positions = arange(offset..offset + config.n_ctx as i64, Device::Cpu)?.f_to_kind(Kind::Double)?;
        let pairs = 0..config.d_embed() / 2;
        let rates: Vec<f64> = pairs.map(|pair| 1e4f64.powf(-(pair as f64) / self.steps as f64)).collect();
        let angles = positions.f_outer(&Tensor::f_from_slice(&rates)?)?; // [n_ctx, d_embed / 2]
        Ok(Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], 1)?)
    }
}

/// Token embeddings, learned positions and types of tokens, their norm, and their map to the stream.
#[derive(Clone, Debug)]
pub(crate) struct Embed {
    /// `[d_vocab, d_embed]`
    pub(crate) w_e: SharedTensor,
    /// `[n_ctx, d_embed]`; absent where positions are not added.
    pub(crate) w_pos: Option<SharedTensor>,
    /// `[token_types, d_embed]`; absent where tokens have no types.
    pub(crate) w_token_type: Option<SharedTensor>,
    /// `[task_types, d_embed]`; absent where there are no tasks. The first row is added to those of the types.
    pub(crate) w_task_type: Option<SharedTensor>,
    /// The token whose embedding is zero, and by whose share the others grow.
    pub(crate) token_dropout: Option<i64>,
    pub(crate) ln: Norm,
    /// Whether the norm is of the sum of all embeddings, and not of the tokens' alone.
    pub(crate) norms_sum: bool,
    /// `d_embed` to `d_model`; absent where these are the same.
    pub(crate) project: Option<Linear>,
    /// Embeddings of distances, which disentangled attention reads in every layer: `[2 · span, d_model]`.
    pub(crate) w_distance: Option<SharedTensor>,
    pub(crate) distance_ln: Norm,
    /// Makes each layer's input, where layers have embeddings of their own.
    pub(crate) of_layers: Option<LayerEmbeddings>,
}

module!(Embed, () => (), {
    w_e: Part::WE,
    ln: (Part::EmbedLnW, Part::EmbedLnB),
    w_pos: Part::WPos,
    w_token_type: Part::WTokenType,
    w_task_type: Part::WTaskType,
    project: (Part::EmbedProject, Part::EmbedProjectB),
    w_distance: Part::WDistance,
    distance_ln: (Part::DistanceLnW, Part::DistanceLnB),
    of_layers: (),
} plain { norms_sum, token_dropout });

/// What a run begins with.
pub(crate) struct Embedded {
    /// The stream before the first block: `[batch, pos, d_model]`.
    pub(crate) resid: Tensor,
    /// What short-former attention adds to the input of its queries and keys: `[batch, pos, d_model]`.
    pub(crate) shortformer: Option<Tensor>,
    /// Each layer's own input: `[batch, pos, layer, width]`.
    pub(crate) layer_inputs: Option<Tensor>,
}

impl Embed {
    /// What the run begins with. Where it begins with a stream, the layers' own inputs are those of the tokens' plain embeddings.
    pub(crate) fn forward(&self, batch: &Batch, start: Start, config: &Config, tap: &mut Tap) -> Flow<Embedded> {
        let apart = config.positional_embedding_type() == PositionalEmbedding::Shortformer;
        let embed = match (start, batch.stream) {
            (Start::Stream, Some(stream)) => {
                let pos_embed = if apart { self.pos_embed(batch.layout, tap)? } else { None };
                let layer_inputs = match &self.of_layers {
                    Some(of_layers) => {
                        let embed = Tensor::f_embedding(&self.w_e, batch.ids, -1, false, false)?;
                        Some(of_layers.forward(batch.ids, &embed)?)
                    }
                    None => None,
                };
                return Ok(Embedded { resid: stream.shallow_clone(), shortformer: pos_embed, layer_inputs });
            }
            (Start::Embeddings, Some(embeddings)) => Temporary::shared(embeddings.shallow_clone()),
            _ => self.tokens(batch, tap)?,
        };
        let embed = embed.at(hook::embed(), tap)?; // [batch, pos, d_embed]
        let layer_inputs = self.of_layers.as_ref().map(|it| it.forward(batch.ids, &embed)).transpose()?;
        // Each of the two that read it has a gradient of its own.
        let embed = match &layer_inputs {
            Some(_) => Temporary::shared(embed.into_tensor().f_alias()?),
            None => embed,
        };
        let (sum, shortformer) = match self.pos_embed(batch.layout, tap)? {
            Some(pos_embed) if !apart => (embed.add(&pos_embed)?, None),
            pos_embed => (embed, pos_embed),
        };
        if !config.has_full_embed() {
            return Ok(Embedded { resid: sum.into_tensor(), shortformer, layer_inputs });
        }
        let sum = match self.token_type_embed(batch, tap)? {
            Some(type_embed) => sum.add(&type_embed)?,
            None => sum,
        };
        let sum = if self.norms_sum { self.normed(&sum, tap)? } else { sum };
        let full = match &self.project {
            Some(project) => Temporary::new(project.forward(&sum)?),
            None => sum,
        };
        let resid = full.at(hook::full_embed(), tap)?.into_tensor(); // [batch, pos, d_model]
        Ok(Embedded { resid, shortformer, layer_inputs })
    }

    /// The embedding of each token: `[batch, pos, d_embed]`.
    fn tokens(&self, batch: &Batch, tap: &mut Tap) -> Flow<Temporary> {
        let ids = tap.at(hook::tokens(), batch.ids.shallow_clone())?; // [batch, pos]
        let embed = Tensor::f_embedding(&self.w_e, &ids, -1, false, false)?; // [batch, pos, d_embed]
        let embed = match self.token_dropout {
            Some(mask) => Temporary::new(without_masked(embed, &ids, mask, batch.layout)?),
            None => Temporary::new(embed),
        };
        match self.ln.kind {
            Normalization::None => Ok(embed),
            _ if self.norms_sum => Ok(embed),
            _ => self.normed(&embed, tap),
        }
    }

    /// Embeddings through their norm: `[batch, pos, d_embed]`.
    fn normed(&self, embed: &Tensor, tap: &mut Tap) -> Flow<Temporary> {
        self.ln.forward(embed, EMBED_LN_POINTS, tap)
    }

    /// The position embedding of each token, where positions are learned: `[batch, pos, d_embed]`.
    fn pos_embed(&self, layout: &Layout, tap: &mut Tap) -> Flow<Option<Tensor>> {
        let Some(w_pos) = &self.w_pos else { return Ok(None) };
        let pos_embed = match layout.new_positions()? {
            Some(positions) => Tensor::f_embedding(w_pos, &positions, -1, false, false)?,
            None => {
                let Span { past, new } = layout.span;
                let rows = w_pos.f_narrow(0, past as i64, new as i64)?; // [pos, d_embed]
                rows.f_unsqueeze(0)?.f_expand([layout.batch, new as i64, -1], false)?
            }
        };
        Ok(Some(tap.at(hook::pos_embed(), pos_embed)?))
    }

    /// The embedding of each token's type, which is the first where no types are given: `[batch, pos, d_embed]`.
    fn token_type_embed(&self, batch: &Batch, tap: &mut Tap) -> Flow<Option<Tensor>> {
        let Some(w_token_type) = &self.w_token_type else { return Ok(None) };
        let of_task = self.w_task_type.as_ref().map(|w| w.f_narrow(0, 0, 1)?.f_unsqueeze(0)).transpose()?; // [1, 1, d_embed]
        let type_embed = match batch.token_types {
            Some(types) => Tensor::f_embedding(w_token_type, types, -1, false, false)?,
            None => {
                let first = w_token_type.f_narrow(0, 0, 1)?.f_unsqueeze(0)?; // [1, 1, d_embed]
                first.f_expand([batch.layout.batch, batch.layout.span.new as i64, -1], false)?
            }
        };
        let type_embed = match of_task {
            Some(of_task) => type_embed.f_add(&of_task)?,
            None => type_embed,
        };
        Ok(Some(tap.at(hook::token_type_embed(), type_embed)?))
    }

    /// The norm of the sum of all embeddings, through which these reach the stream.
    pub(crate) fn norm_of_sum(&self) -> Option<PlacedNorm<'_>> {
        PlacedNorm::new(&self.ln, EMBED_LN_POINTS).filter(|_| self.norms_sum)
    }
}

/// Embeddings with zeros for masked tokens, the others multiplied by `0.88 / (1 − share of masked tokens)`: `[batch, pos, d_embed]`.
fn without_masked(embed: Tensor, ids: &Tensor, mask: i64, layout: &Layout) -> Result<Tensor> {
    let is_masked = ids.eq_int(mask)?; // [batch, pos]
    let count = |x: &Tensor| x.f_sum_dim_intlist([-1i64].as_slice(), true, embed.f_kind()?);
    let masked = count(&is_masked)?; // [batch, 1]
    let others = match layout.new_padding()? {
        Some(padding) => count(&padding.f_logical_not()?)?.f_sub(&masked)?,
        None => masked.mul_number(-1.0)?.add_number(ids.size().last().copied().unwrap_or(0) as f64)?,
    };
    // The share of a row's other tokens, of all: 1 − share of masked tokens.
    let factor = others.f_add(&masked)?.f_div(&others.at_least(1.0)?)?.mul_number(0.88)?; // [batch, 1]
    embed.f_mul(&factor.f_unsqueeze(-1)?)?.fill_where(&is_masked.f_unsqueeze(-1)?, 0.0)
}

const EMBED_LN_POINTS: NormPoints = (hook::embed_ln_scale(), hook::embed_ln_normalized());
