//! The forward pass, from tokens to logits.

use std::sync::Arc;

use tch::Tensor;

use super::context::{Context, Padding};
use super::Transformer;
use crate::config::PositionalEmbedding;
use crate::run::kept::KeptPositions;
use crate::run::{Flow, Halt, Plan, Tap};
use crate::text::input::Tokens;

impl Transformer {
    /// The forward pass: logits, or the stream before the layer at which the run stops.
    pub(crate) fn forward_pass(
        &self,
        tokens: &Tokens,
        plan: &Plan,
        stops: bool,
        positions: &KeptPositions,
        tap: &mut Tap,
    ) -> Flow<Tensor> {
        if plan.n_live == 0 && !plan.whole {
            return Err(Halt::Done);
        }
        let weights = self.weights();
        let config = self.shared_config();
        let token_positions = tokens.positions()?;
        let shortformer = config.positional_embedding_type() == PositionalEmbedding::Shortformer;
        let (mut resid, pos_embed) = weights.embed.forward(&tokens.ids, token_positions.as_ref(), shortformer, tap)?;
        let padding = match (&tokens.mask, &token_positions) {
            (Some(mask), Some(positions)) => Some(Padding { mask, positions }),
            _ => None,
        };
        let of = (resid.f_kind()?, resid.device());
        let apart = pos_embed.filter(|_| shortformer);
        let context = Context::new(&Arc::clone(config), self.tables(), tokens.ids.size()[1], padding, apart, of)?;
        for block in &weights.blocks[..plan.n_layers] {
            resid = block.forward(resid, &context, tap)?; // [batch, pos, d_model]
        }
        if stops {
            return Ok(resid);
        }
        let resid = positions.at_logits(&resid)?; // [batch, pos of the logits, d_model]
        weights.unembed.forward(&resid, tap)
    }
}
