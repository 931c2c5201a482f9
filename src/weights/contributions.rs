//! What analyses ask of a model: through which norms the stream is read and written, and with which weights.

use tch::Tensor;

use crate::component::Target;
use crate::model::block::{Block, MlpOrExperts};
use crate::model::linear::Linear;
use crate::model::placed_norm::PlacedNorm;
use crate::model::Transformer;
use crate::{Error, Result};

/// Neurons that write to the stream through one matrix: an MLP's, or an expert's.
pub(crate) struct NeuronWriter<'m> {
    /// Which expert's; absent where the layer has one MLP.
    pub(crate) expert: Option<usize>,
    /// `[d_model, d_mlp]`, and what is added once for all neurons.
    pub(crate) out: &'m Linear,
}

impl Transformer {
    fn block(&self, layer: usize) -> Result<&Block> {
        let n_layers = self.config().n_layers;
        self.weights().blocks.get(layer).ok_or(Error::LayerOutOfRange { layer: layer as i64, n_layers })
    }

    /// The norm through which a target, its layer counted from the start, reads the stream.
    pub(crate) fn norm_before(&self, target: Target) -> Result<Option<PlacedNorm<'_>>> {
        Ok(match target {
            Target::Attn(layer) => self.block(layer as usize)?.norm_before_attn(),
            Target::Mlp(layer) => self.block(layer as usize)?.norm_before_mlp(),
            Target::Unembed => self.weights().unembed.norm_before(),
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

    /// What a layer's heads write through: `[d_model, head · d_head]`, and what is added once for all heads.
    pub(crate) fn head_writer(&self, layer: usize) -> Result<&Linear> {
        Ok(&self.block(layer)?.attn.o)
    }

    /// What each head of a layer writes, before any norm after attention: `[batch, pos, head, d_model]`, of `z`, `[batch, pos, head, d_head]`.
    pub(crate) fn head_results(&self, layer: usize, z: &Tensor) -> Result<Tensor> {
        self.block(layer)?.attn.result(z)
    }

    /// What a layer's neurons write through: one writer, one for each expert, or none.
    pub(crate) fn neuron_writers(&self, layer: usize) -> Result<Vec<NeuronWriter<'_>>> {
        Ok(match &self.block(layer)?.mlp {
            None => Vec::new(),
            Some(MlpOrExperts::Mlp(mlp)) => vec![NeuronWriter { expert: None, out: &mlp.w_out }],
            Some(MlpOrExperts::Experts(mixture)) => {
                let writer = |(expert, weights)| NeuronWriter { expert: Some(expert), out: weights };
                mixture.experts.iter().map(|expert| &expert.w_out).enumerate().map(writer).collect()
            }
        })
    }

    /// What a layer's router gives the chosen experts: `[batch, pos, chosen]`, of the weights of all experts, `[batch, pos, expert]`, and
    /// the indices of the chosen ones.
    pub(crate) fn chosen_weights(&self, layer: usize, weights: &Tensor, indices: &Tensor) -> Result<Tensor> {
        match &self.block(layer)?.mlp {
            Some(MlpOrExperts::Experts(mixture)) => mixture.chosen(weights, indices),
            _ => Err(Error::model_has_no("experts", format!("layer {layer} has one MLP, or none"))),
        }
    }

    /// `W_U` as `[d_vocab_out, d_model]`, and `b_U`.
    pub(crate) fn unembedding(&self) -> &Linear {
        &self.weights().unembed.u
    }

    /// What the unembedding says of a stream: `[…, d_model]` to logits, `[…, d_vocab_out]`.
    pub(crate) fn read_logits(&self, resid: &Tensor) -> Result<Tensor> {
        self.weights().unembed.read(resid)
    }
}
