//! Scores of all nodes that write, by gradients.

use tch::Tensor;

use super::linear_norm::LinearNorm;
use super::scores::{add_weighted, NodeScores};
use super::senders::of_attention;
use super::task::CircuitTask;
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
        let scores = match method {
            NodeMethod::Gradient => self.nodes_by_gradient(Hooks::new(), &differences)?,
            NodeMethod::IntegratedInputs { steps } => {
                let mut sum = None;
                for hooks in self.inputs_between(steps)? {
                    let scores = self.nodes_by_gradient(hooks, &differences)?;
                    sum = Some(add_weighted(sum, &scores, 1.0 / steps as f64)?);
                }
                sum.ok_or(Error::Internal("an integral has no steps"))?
            }
        };
        NodeScores::of_tensor(self.graph.clone(), &scores)
    }

    /// `[sender, d_model]`
    fn nodes_by_gradient(&self, hooks: Hooks<'_>, differences: &Tensor) -> Result<Tensor> {
        let mut points: Vec<HookPoint> = vec![hook::embedding(self.model.config())];
        for layer in 0..self.graph.n_layers() {
            points.extend([hook::attn_out(layer), hook::z(layer)]);
            if self.graph.has_mlps {
                points.push(hook::mlp_out(layer));
            }
        }
        points.extend(self.metric.needs(self.model.config())?);
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
        for layer in 0..self.graph.n_layers() {
            let start = self.graph.first_sender(layer);
            let mut of_heads = gradient(hook::attn_out(layer))?;
            if let Some(norm) = self.model.norm_after_attn(layer)? {
                let z = widened(output.run.cache.get(hook::z(layer))?)?;
                let input = of_attention(self.model.transformer(), layer, &z)?;
                if let Some(norm) = LinearNorm::at(Some(norm), &input, self.rules.frozen_norms)? {
                    of_heads = norm.pull(&of_heads)?;
                }
            }
            add(start, self.graph.n_heads(layer), &of_heads)?;
            if self.graph.has_mlps {
                add(self.graph.mlp_sender(layer), 1, &gradient(hook::mlp_out(layer))?)?;
            }
        }
        Ok(Tensor::f_cat(&scores, 0)?)
    }
}
