//! Scores of all nodes that write, by gradients.

use tch::{Kind, Tensor};

use super::cross::CrossHeads;
use super::linear_norm::LinearNorm;
use super::node::HeadInput;
use super::part::{PartKind, PartNodes};
use super::scores::{add_weighted, NodeScores};
use super::senders::{layer_inputs, of_attention};
use super::task::CircuitTask;
use crate::cache::ActivationCache;
use crate::hook::{self, HookPoint};
use crate::run::Hooks;
use crate::tensor::precision::widened;
use crate::{Error, Result, RunOptions};

/// How nodes are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeMethod {
    /// The gradient at the clean run. One backward pass.
    Gradient,
    /// The mean of the gradients where the embeddings go from ablated to clean in equal steps, the clean one left out. A backward pass for
    /// each step.
    IntegratedInputs {
        /// How many.
        steps: usize,
    },
}

impl CircuitTask<'_, '_> {
    /// A score for every node, and for every dimension that it writes: `Σ (ablated − clean) · ∂metric/∂written`, over rows of the batch and
    /// positions. It is the sum of the scores of the node's edges.
    ///
    /// # Errors
    ///
    /// Those of [`CircuitTask::edge_scores`].
    pub fn node_scores(&self, method: NodeMethod) -> Result<NodeScores> {
        let differences = self.differences()?;
        let (dimensions, sides) = match method {
            NodeMethod::Gradient => self.nodes_by_gradient(self.layer_inputs_at(Hooks::new(), 1.0)?, &differences)?,
            NodeMethod::IntegratedInputs { steps } => {
                let mut sums: (Option<Tensor>, Option<Tensor>) = (None, None);
                for hooks in self.inputs_between(steps)? {
                    let (dimensions, sides) = self.nodes_by_gradient(hooks, &differences)?;
                    let weight = 1.0 / steps as f64;
                    sums =
                        (Some(add_weighted(sums.0, &dimensions, weight)?), Some(add_weighted(sums.1, &sides, weight)?));
                }
                let (Some(dimensions), Some(sides)) = sums else {
                    return Err(Error::Internal("an integral has no steps"));
                };
                (dimensions, sides)
            }
        };
        NodeScores::of_tensors(self.graph.clone(), &dimensions, &sides)
    }

    /// Of nodes that write to the stream, `[sender, d_model]`, and of those that do not, `[sender]`.
    fn nodes_by_gradient(&self, hooks: Hooks<'_>, differences: &Tensor) -> Result<(Tensor, Tensor)> {
        let graph = &self.graph;
        let cross = || graph.parts().iter().filter(|part| part.kind == PartKind::CrossAttention);
        let mut points: Vec<HookPoint> = vec![hook::embedding(self.model.config())];
        points.extend(graph.parts().iter().flat_map(|part| [part.written(), part.computed()]));
        points.extend(cross().flat_map(|part| [hook::cross_k(part.layer), hook::cross_v(part.layer)]));
        points.extend(layer_inputs(graph));
        points.extend(self.metric.needs(self.model.config())?);
        points.sort();
        points.dedup();
        let run = RunOptions::new()
            .cache(points)
            .hooks(hooks)
            .backward_rules(self.rules)
            .logits_at(self.metric.positions().clone());
        let output =
            self.model.run_with_grad(&self.tokens, run, |run| self.metric.scalar(run.logits()?, &run.cache))?;
        let gradient = |point: HookPoint| widened(output.gradients.get(point)?);
        let mut scores = Vec::new();
        let mut add = |start: usize, senders: usize, gradient: &Tensor| -> Result<()> {
            let product = differences.f_narrow(0, start as i64, senders as i64)?.f_mul(gradient)?;
            scores.push(product.f_sum_dim_intlist([1i64, 2].as_slice(), false, None)?);
            Ok(())
        };
        add(0, 1, &gradient(hook::embedding(self.model.config()))?)?;
        for part in graph.parts() {
            add(part.first_sender, part.n, &self.at_written(part, &output.run.cache, gradient(part.written())?)?)?;
        }
        let mut sides = Vec::new();
        if self.clean.encoder.is_some() {
            let mut of_encoder = Vec::new();
            for part in cross() {
                let heads = CrossHeads::new(self, part);
                for (input, point) in
                    [(HeadInput::K, hook::cross_k(part.layer)), (HeadInput::V, hook::cross_v(part.layer))]
                {
                    of_encoder.push(heads.scores_of_encoder(input, &gradient(point)?)?);
                }
            }
            sides.push(Tensor::f_cat(&of_encoder, 0)?.f_sum(None)?);
        }
        if !self.clean.layer_inputs.is_empty() {
            let of_layers = (0..graph.n_layers())
                .map(|layer| self.score_of_layer_input(layer, &gradient(hook::ple_embed(layer))?))
                .collect::<Result<Vec<_>>>()?;
            sides.push(Tensor::f_stack(&of_layers, 0)?.f_sum(None)?);
        }
        let sides = match sides.is_empty() {
            true => Tensor::f_zeros([0], (Kind::Double, tch::Device::Cpu))?,
            false => Tensor::f_stack(&sides, 0)?,
        };
        Ok((Tensor::f_cat(&scores, 0)?, sides))
    }

    /// The gradient at what the nodes of a part write, of that at what they add together: before any norm after heads.
    fn at_written(&self, part: &PartNodes, cache: &ActivationCache, gradient: Tensor) -> Result<Tensor> {
        let model = self.model.transformer();
        let Some(norm) = part.norm_after_heads(model)? else { return Ok(gradient) };
        let input = of_attention(model, part, &widened(cache.get(part.computed())?)?)?;
        match LinearNorm::at(Some(norm), &input, self.rules.frozen_norms)? {
            Some(norm) => norm.pull(&gradient),
            None => Ok(gradient),
        }
    }
}
