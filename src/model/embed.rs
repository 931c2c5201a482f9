//! [`Embed`]: from tokens to the residual stream.

use tch::Tensor;

use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use super::temporary::Temporary;
use crate::config::Normalization;
use crate::hook;
use crate::run::{Flow, Tap};
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// Token embeddings, learned positions, and the norm that BLOOM puts after them.
#[derive(Clone, Debug)]
pub(crate) struct Embed {
    /// `[d_vocab, d_model]`
    pub(crate) w_e: SharedTensor,
    /// `[n_ctx, d_model]`; absent where positions are not learned.
    pub(crate) w_pos: Option<SharedTensor>,
    pub(crate) ln: Norm,
}

module!(Embed, () => (), { w_e: Part::WE, ln: (Part::EmbedLnW, Part::EmbedLnB), w_pos: Part::WPos } plain {});

impl Embed {
    /// The stream before the first block, and the position embedding, each `[batch, pos, d_model]`; the latter is
    /// part of the stream unless `apart`.
    pub(crate) fn forward(
        &self,
        tokens: &Tensor,
        positions: Option<&Tensor>,
        apart: bool,
        tap: &mut Tap,
    ) -> Flow<(Tensor, Option<Tensor>)> {
        let tokens = tap.at(hook::tokens(), tokens.shallow_clone())?; // [batch, pos]
        let embed = Tensor::f_embedding(&self.w_e, &tokens, -1, false, false)?; // [batch, pos, d_model]
        let points = (hook::embed_ln_scale(), hook::embed_ln_normalized());
        let embed = match self.ln.kind {
            Normalization::None => Temporary::new(embed),
            _ => self.ln.forward(&embed, points, tap)?,
        };
        let embed = embed.at(hook::embed(), tap)?;
        let Some(pos_embed) = self.pos_embed(&tokens, positions)? else { return Ok((embed.into_tensor(), None)) };
        let pos_embed = tap.at(hook::pos_embed(), pos_embed)?;
        let stream = if apart { embed } else { embed.add(&pos_embed)? };
        Ok((stream.into_tensor(), Some(pos_embed)))
    }

    /// The position embedding of each token: `[batch, pos, d_model]`.
    fn pos_embed(&self, tokens: &Tensor, positions: Option<&Tensor>) -> Result<Option<Tensor>> {
        let Some(w_pos) = &self.w_pos else { return Ok(None) };
        if let Some(positions) = positions {
            return Ok(Some(Tensor::f_embedding(w_pos, positions, -1, false, false)?));
        }
        let size = tokens.size();
        let first = w_pos.f_narrow(0, 0, size[1])?; // [pos, d_model]
        Ok(Some(first.f_unsqueeze(0)?.f_expand([size[0], size[1], -1], false)?))
    }
}
