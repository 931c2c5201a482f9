//! [`Reaching`]: what nodes write, as it reaches the stream at one place of a run after the other.

use tch::Tensor;

use super::graph::CircuitGraph;
use super::linear_norm::LinearNorm;
use super::senders::of_attention;
use crate::cache::ActivationCache;
use crate::component::Sublayer;
use crate::config::NormPosition;
use crate::hook::{self, HookPoint};
use crate::model::Transformer;
use crate::tensor::precision::widened;
use crate::Result;

/// What nodes write, or changes of it, as it reaches the stream: through the derivatives of the norms on the way, at the run that the cache
/// is of. A norm after attention is passed by the heads of its layer; a norm of the stream itself by all that was written before it.
pub(super) struct Reaching<'t> {
    model: &'t Transformer,
    graph: &'t CircuitGraph,
    cache: &'t ActivationCache,
    /// Whether norms have constant scales.
    frozen: bool,
    /// `[sender, batch, pos, d_model]`
    values: Tensor,
}

impl<'t> Reaching<'t> {
    /// The points that the cache must have.
    pub(super) fn points(model: &Transformer, graph: &CircuitGraph) -> Result<Vec<HookPoint>> {
        let mut points = Vec::new();
        for layer in 0..graph.n_layers() {
            if model.norm_after_attn(layer)?.is_some() {
                points.push(hook::z(layer));
            }
            if in_stream(model) {
                points.push(hook::resid_post(layer));
                points.extend(graph.has_mlps.then(|| hook::resid_mid(layer)));
            }
        }
        Ok(points)
    }

    /// `values` as nodes write them: `[sender, batch, pos, d_model]`; of heads before any norm after attention.
    pub(super) fn new(
        model: &'t Transformer,
        graph: &'t CircuitGraph,
        cache: &'t ActivationCache,
        frozen: bool,
        values: &Tensor,
    ) -> Result<Self> {
        let mut parts = Vec::new();
        let mut done = 0;
        for layer in 0..graph.n_layers() {
            let Some(norm) = model.norm_after_attn(layer)? else { continue };
            let output = of_attention(model, layer, &widened(cache.get(hook::z(layer))?)?)?;
            let Some(norm) = LinearNorm::at(Some(norm), &output, frozen)? else { continue };
            let (start, heads) = (graph.first_sender(layer), graph.n_heads(layer));
            parts.push(values.f_narrow(0, done as i64, (start - done) as i64)?);
            parts.push(norm.push(&values.f_narrow(0, start as i64, heads as i64)?)?);
            done = start + heads;
        }
        let values = match done {
            0 => values.shallow_clone(),
            done => {
                parts.push(values.f_narrow(0, done as i64, (graph.n_senders() - done) as i64)?);
                Tensor::f_cat(&parts, 0)?
            }
        };
        Ok(Reaching { model, graph, cache, frozen, values })
    }

    /// Those of the first senders, which wrote before this place: `[sender, batch, pos, d_model]`.
    pub(super) fn of(&self, senders: usize) -> Result<Tensor> {
        Ok(self.values.f_narrow(0, 0, senders as i64)?)
    }

    /// Goes on past the attention of a layer.
    pub(super) fn pass_attention(&mut self, layer: usize) -> Result<()> {
        let summed = if self.graph.has_mlps { hook::resid_mid(layer) } else { hook::resid_post(layer) };
        self.pass(layer, Sublayer::Attention, summed)
    }

    /// Goes on past the MLP of a layer.
    pub(super) fn pass_mlp(&mut self, layer: usize) -> Result<()> {
        self.pass(layer, Sublayer::Mlp, hook::resid_post(layer))
    }

    /// Through the norm of the stream at a point, where it has one there.
    fn pass(&mut self, layer: usize, sublayer: Sublayer, summed: HookPoint) -> Result<()> {
        let Some(norm) = self.model.norm_of_stream(layer, sublayer)? else { return Ok(()) };
        let input = widened(self.cache.get(summed)?)?;
        let Some(norm) = LinearNorm::at(Some(norm), &input, self.frozen)? else { return Ok(()) };
        let before = self.graph.mlp_sender(layer) + usize::from(sublayer == Sublayer::Mlp);
        let rest = (self.graph.n_senders() - before) as i64;
        let passed = norm.push(&self.of(before)?)?;
        self.values = Tensor::f_cat(&[passed, self.values.f_narrow(0, before as i64, rest)?], 0)?;
        Ok(())
    }
}

/// The stream as the MLP of a layer reads it: behind its norm where that is of the stream itself.
pub(super) fn read_by_mlp(model: &Transformer, layer: usize) -> HookPoint {
    if in_stream(model) {
        hook::mlp_hook_in(layer)
    } else {
        hook::mlp_in(layer)
    }
}

/// Whether norms change the stream itself.
pub(super) fn in_stream(model: &Transformer) -> bool {
    model.config().norm_position() == NormPosition::InStream
}
