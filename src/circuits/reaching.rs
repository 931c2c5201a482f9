//! [`Reaching`]: what nodes write, as it reaches the stream at one place of a run after the other.

use tch::Tensor;

use super::graph::CircuitGraph;
use super::linear_norm::LinearNorm;
use super::part::{is_last, PartKind, PartNodes};
use super::senders::of_attention;
use crate::cache::ActivationCache;
use crate::config::NormPosition;
use crate::hook::{self, HookPoint};
use crate::model::Transformer;
use crate::tensor::precision::widened;
use crate::Result;

/// What nodes write, or changes of it, as it reaches the stream: through the derivatives of the norms on the way, at the run that the cache
/// is of, and the factors of the stream. A norm after attention is passed by the heads of its layer; a norm or a factor of the stream itself
/// by all that was written before it.
pub(super) struct Reaching<'t> {
    model: &'t Transformer,
    graph: &'t CircuitGraph,
    cache: &'t ActivationCache,
    /// Whether norms have constant scales.
    frozen: bool,
    /// `[sender, batch, pos, d_model]`, of those that write to the stream.
    values: Tensor,
}

impl<'t> Reaching<'t> {
    /// The points that the cache must have.
    pub(super) fn points(model: &Transformer, graph: &CircuitGraph) -> Result<Vec<HookPoint>> {
        let mut points = Vec::new();
        for (index, part) in graph.parts().iter().enumerate() {
            if part.norm_after_heads(model)?.is_some() {
                points.push(part.computed());
            }
            if part.norm_of_stream(model)?.is_some() {
                points.push(part.summed(is_last(graph.parts(), index)));
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
        for part in graph.parts() {
            let Some(norm) = part.norm_after_heads(model)? else { continue };
            let output = of_attention(model, part, &widened(cache.get(part.computed())?)?)?;
            let Some(norm) = LinearNorm::at(Some(norm), &output, frozen)? else { continue };
            let (start, heads) = (part.first_sender, part.n);
            parts.push(values.f_narrow(0, done as i64, (start - done) as i64)?);
            parts.push(norm.push(&values.f_narrow(0, start as i64, heads as i64)?)?);
            done = start + heads;
        }
        let values = match done {
            0 => values.shallow_clone(),
            done => {
                parts.push(values.f_narrow(0, done as i64, values.size()[0] - done as i64)?);
                Tensor::f_cat(&parts, 0)?
            }
        };
        Ok(Reaching { model, graph, cache, frozen, values })
    }

    /// Those of the first senders, which wrote before this place: `[sender, batch, pos, d_model]`.
    pub(super) fn of(&self, senders: usize) -> Result<Tensor> {
        Ok(self.values.f_narrow(0, 0, senders as i64)?)
    }

    /// Goes on past a part of a layer.
    pub(super) fn pass(&mut self, index: usize) -> Result<()> {
        let parts = self.graph.parts();
        let (part, is_last) = (&parts[index], is_last(parts, index));
        self.multiply(part.first_sender, part.factor_before(self.model)?)?;
        let written = part.first_sender + part.n;
        if let Some(norm) = part.norm_of_stream(self.model)? {
            let input = widened(self.cache.get(part.summed(is_last))?)?;
            if let Some(norm) = LinearNorm::at(Some(norm), &input, self.frozen)? {
                let passed = norm.push(&self.of(written)?)?;
                self.set(written, passed)?;
            }
        }
        self.multiply(written, part.factor_after(self.model, is_last)?)
    }

    fn multiply(&mut self, senders: usize, factor: Option<Tensor>) -> Result<()> {
        let Some(factor) = factor else { return Ok(()) };
        let multiplied = self.of(senders)?.f_mul(&factor.f_to_kind(self.values.f_kind()?)?)?;
        self.set(senders, multiplied)
    }

    /// Other values of the first senders.
    fn set(&mut self, senders: usize, values: Tensor) -> Result<()> {
        let rest = self.values.size()[0] - senders as i64;
        self.values = Tensor::f_cat(&[values, self.values.f_narrow(0, senders as i64, rest)?], 0)?;
        Ok(())
    }
}

/// The stream as a part with one input reads it: an MLP behind its norm where that is of the stream itself.
pub(super) fn read_at(model: &Transformer, part: &PartNodes) -> HookPoint {
    match part.kind {
        PartKind::LayerEmbedding => hook::ple_in(part.layer),
        _ if in_stream(model) => hook::mlp_hook_in(part.layer),
        _ => hook::mlp_in(part.layer),
    }
}

/// Whether norms change the stream itself.
pub(super) fn in_stream(model: &Transformer) -> bool {
    model.config().norm_position() == NormPosition::InStream
}
