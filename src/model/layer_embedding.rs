//! Per-layer embeddings: [`LayerEmbeddings`] makes each layer's input, and [`LayerEmbedding`] is the sublayer that adds it to the stream.

use tch::Tensor;

use super::linear::Linear;
use super::mlp::{product, Act};
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use super::temporary::Temporary;
use crate::hook;
use crate::run::{Flow, Tap};
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// Makes the inputs of all layers.
#[derive(Clone, Debug)]
pub(crate) struct LayerEmbeddings {
    /// `[rows, n_layers · width]`
    pub(crate) table: SharedTensor,
    /// `d_model` to `n_layers · width`.
    pub(crate) projection: Linear,
    /// Of what is projected, each layer's by itself: over `width`.
    pub(crate) norm: Norm,
    pub(crate) width: i64,
}

// Projection and norm have no bias: the parts of the weights stand in both places.
module!(LayerEmbeddings, () => (), {
    table: Part::PleTable,
    projection: (Part::PleProjection, Part::PleProjection),
    norm: (Part::PleProjectionNormW, Part::PleProjectionNormW),
} plain { width });

impl LayerEmbeddings {
    /// The inputs of tokens `[batch, pos]` with these embeddings, `[batch, pos, d_model]`: `[batch, pos, layer, width]`.
    pub(crate) fn forward(&self, ids: &Tensor, embed: &Tensor) -> Result<Tensor> {
        let size = embed.size();
        let by_layer = |x: Tensor| x.f_view([size[0], size[1], -1, self.width]); // [batch, pos, layer, width]
        let projected = self.norm.apply(&by_layer(self.projection.forward(embed)?)?)?;
        let of_tokens = by_layer(Tensor::f_embedding(&self.table, ids, -1, false, false)?)?;
        Ok(of_tokens.f_add(&projected)?)
    }
}

/// A layer's last sublayer: `norm(W_out (act(W_gate x) · input))`, where `x` is the stream.
#[derive(Clone, Debug)]
pub(crate) struct LayerEmbedding {
    /// `d_model` to `width`.
    pub(crate) gate: Linear,
    /// `width` to `d_model`.
    pub(crate) out: Linear,
    pub(crate) norm: Norm,
    pub(crate) act: Act,
    pub(crate) layer: usize,
}

module!(LayerEmbedding, () => (), {
    gate: (Part::PleGate, Part::PleGate),
    out: (Part::PleOut, Part::PleOut),
    norm: (Part::PleLnW, Part::PleLnW),
    act: (),
} plain { layer });

impl LayerEmbedding {
    /// What the sublayer adds to a stream, `[batch, pos, d_model]`. `inputs` are those of all layers: `[batch, pos, layer, width]`.
    pub(crate) fn forward(&self, resid: &Tensor, inputs: &Tensor, tap: &mut Tap) -> Flow<Temporary> {
        let layer = self.layer;
        let point = hook::ple_in(layer);
        let read = match tap.carries(point, resid) {
            true => tap.at(point, resid.f_alias()?)?, // not the stream itself, which goes past the sublayer as well
            false => tap.at(point, resid.shallow_clone())?,
        };
        let input = tap.at(hook::ple_embed(layer), inputs.f_select(2, layer as i64)?)?; // [batch, pos, width]
        let pre = Temporary::new(self.gate.forward(&read)?).at(hook::ple_pre(layer), tap)?;
        let gate = self.act.apply_by(pre, tap.plan.rules())?;
        let post = tap.at(hook::ple_post(layer), product(&gate, &input, tap.plan.rules())?)?; // [batch, pos, width]
        let written = self.out.forward(&post)?; // [batch, pos, d_model]
        let normalized =
            self.norm.forward(&written, (hook::ple_ln_scale(layer), hook::ple_ln_normalized(layer)), tap)?;
        normalized.at(hook::ple_out(layer), tap)
    }
}
