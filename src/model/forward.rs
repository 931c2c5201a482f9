//! The forward pass, from tokens to logits.

use tch::Tensor;

use super::batch::Batch;
use super::context::Context;
use super::embed::Embedded;
use super::{Transformer, Weights};
use crate::hook::End;
use crate::run::kept::KeptPositions;
use crate::run::{Flow, Plan, Tap};

impl Transformer {
    /// The forward pass through the plan's section of the model: logits at their positions, `[batch, pos, d_vocab_out]`, or the
    /// residual stream where the section ends with it, `[batch, pos, d_model]`.
    pub(crate) fn forward_pass(
        &self,
        batch: &Batch,
        plan: &Plan,
        positions: &KeptPositions,
        tap: &mut Tap,
    ) -> Flow<Tensor> {
        tap.begin()?;
        let Weights { embed, blocks, unembed } = self.weights()?;
        let section = &plan.section;
        let Embedded { mut resid, shortformer, layer_inputs } =
            embed.forward(batch, section.start, self.config(), tap)?; // [batch, pos, d_model]
        let context = Context::new(self, batch, &section.layers, shortformer, layer_inputs)?;
        for block in &blocks[section.layers.clone()] {
            resid = block.forward(resid, &context, tap)?; // [batch, pos, d_model]
        }
        if section.end == End::Stream {
            return Ok(resid);
        }
        let resid = positions.at_logits(&resid)?; // [batch, pos of the logits, d_model]
        unembed.forward(&resid, tap) // [batch, pos of the logits, d_vocab_out]
    }
}
