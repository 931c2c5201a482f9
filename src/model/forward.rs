//! The forward pass, from tokens to logits.

use tch::Tensor;

use super::context::Context;
use super::layout::Layout;
use super::Transformer;
use crate::config::PositionalEmbedding;
use crate::run::kept::KeptPositions;
use crate::run::{Flow, Halt, Plan, Tap};
use crate::tensor::span::Span;
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
        let config = self.config();
        let size = tokens.ids.size(); // [batch, pos]
        let layout = Layout::new(size[0], Span::whole(size[1] as usize), None, tokens.mask.as_ref())?;
        let shortformer = config.positional_embedding_type() == PositionalEmbedding::Shortformer;
        let token_positions = layout.new_positions()?;
        let (mut resid, pos_embed) = weights.embed.forward(&tokens.ids, token_positions.as_ref(), shortformer, tap)?;
        let options = (resid.f_kind()?, resid.device());
        let apart = pos_embed.filter(|_| shortformer);
        let context = Context::new(config, self.tables(), layout, 0..plan.n_layers, apart, options)?;
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
