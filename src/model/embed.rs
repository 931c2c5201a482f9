//! [`Embed`]: from tokens to the residual stream.

use tch::{Device, Kind, Tensor};

use super::batch::Batch;
use super::layout::Layout;
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use super::temporary::Temporary;
use crate::config::{Normalization, PositionalEmbedding, Sinusoids};
use crate::hook::{self, Start};
use crate::run::{Flow, Tap};
use crate::tensor::scalar::arange;
use crate::tensor::span::Span;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Result};

impl Sinusoids {
    /// The position embeddings of a model of this shape: `[n_ctx, d_model]`, in fp64.
    pub(crate) fn table(&self, config: &Config) -> Result<Tensor> {
        let offset = self.offset as i64;
        let positions = arange(offset..offset + config.n_ctx as i64, Device::Cpu)?.f_to_kind(Kind::Double)?;
        let pairs = 0..config.d_model / 2;
        let rates: Vec<f64> = pairs.map(|pair| 1e4f64.powf(-(pair as f64) / self.steps as f64)).collect();
        let angles = positions.f_outer(&Tensor::f_from_slice(&rates)?)?; // [n_ctx, d_model / 2]
        Ok(Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], 1)?)
    }
}

/// Token embeddings, learned positions, and the norm that BLOOM puts after them.
#[derive(Clone, Debug)]
pub(crate) struct Embed {
    /// `[d_vocab, d_model]`
    pub(crate) w_e: SharedTensor,
    /// `[n_ctx, d_model]`; absent where positions are not added.
    pub(crate) w_pos: Option<SharedTensor>,
    pub(crate) ln: Norm,
}

module!(Embed, () => (), { w_e: Part::WE, ln: (Part::EmbedLnW, Part::EmbedLnB), w_pos: Part::WPos } plain {});

impl Embed {
    /// The stream before the first block, and what short-former attention adds to the input of its queries and keys, each
    /// `[batch, pos, d_model]`.
    pub(crate) fn forward(
        &self,
        batch: &Batch,
        start: Start,
        config: &Config,
        tap: &mut Tap,
    ) -> Flow<(Tensor, Option<Tensor>)> {
        let apart = config.positional_embedding_type() == PositionalEmbedding::Shortformer;
        let embed = match (start, batch.stream) {
            (Start::Stream, Some(stream)) => {
                let pos_embed = if apart { self.pos_embed(batch.layout, tap)? } else { None };
                return Ok((stream.shallow_clone(), pos_embed));
            }
            (Start::Embeddings, Some(embeddings)) => Temporary::shared(embeddings.shallow_clone()),
            _ => self.tokens(batch.ids, tap)?,
        };
        let embed = embed.at(hook::embed(), tap)?; // [batch, pos, d_model]
        let pos_embed = self.pos_embed(batch.layout, tap)?;
        match pos_embed {
            Some(pos_embed) if !apart => Ok((embed.add(&pos_embed)?.into_tensor(), None)),
            pos_embed => Ok((embed.into_tensor(), pos_embed)),
        }
    }

    /// The embedding of each token: `[batch, pos, d_model]`.
    fn tokens(&self, ids: &Tensor, tap: &mut Tap) -> Flow<Temporary> {
        let ids = tap.at(hook::tokens(), ids.shallow_clone())?; // [batch, pos]
        let embed = Tensor::f_embedding(&self.w_e, &ids, -1, false, false)?; // [batch, pos, d_model]
        match self.ln.kind {
            Normalization::None => Ok(Temporary::new(embed)),
            _ => self.ln.forward(&embed, (hook::embed_ln_scale(), hook::embed_ln_normalized()), tap),
        }
    }

    /// The position embedding of each token, where positions are learned: `[batch, pos, d_model]`.
    fn pos_embed(&self, layout: &Layout, tap: &mut Tap) -> Flow<Option<Tensor>> {
        let Some(w_pos) = &self.w_pos else { return Ok(None) };
        let pos_embed = match layout.new_positions()? {
            Some(positions) => Tensor::f_embedding(w_pos, &positions, -1, false, false)?,
            None => {
                let Span { past, new } = layout.span;
                let rows = w_pos.f_narrow(0, past as i64, new as i64)?; // [pos, d_model]
                rows.f_unsqueeze(0)?.f_expand([layout.batch, new as i64, -1], false)?
            }
        };
        Ok(Some(tap.at(hook::pos_embed(), pos_embed)?))
    }
}
