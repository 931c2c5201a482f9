//! Scores of all edges: by gradients (EAP and its relatives), exactly, and by information flow.
//!
//! A gradient method scores the edge from sender `s` to receiver `r` as `Σ (ablated_s − clean_s) · ∂metric/∂input_r`, over rows of the batch,
//! positions and `d_model`: to first order, by how much the metric changes where the edge is ablated (Syed et al. 2023). The gradients at all
//! receivers of a layer are made from those at its queries, keys and values, which one backward pass gives: through the weights that read,
//! and the derivative of the norm before them. Where more lies between stream and heads, latents or gates, the pass goes to what each head
//! reads by itself. The scores of the layer are then one product of matrices. A norm after attention is part of what heads write, and a norm
//! of the stream itself of what reaches a receiver: their derivatives act on the differences. So the scores of a node's edges sum to the
//! node's score.

use tch::Tensor;

use super::circuit::Circuit;
use super::linear_norm::LinearNorm;
use super::reaching::{in_stream, read_by_mlp, Reaching};
use super::scores::{add_weighted, EdgeScores};
use super::senders::{of_readers, real_tokens};
use super::task::CircuitTask;
use crate::cache::ActivationCache;
use crate::component::Target;
use crate::hook::{self, HookPoint};
use crate::run::{Hooks, Patch};
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::text::input::Tokens;
use crate::{Error, Result, RunOptions};

/// How edges are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EdgeMethod {
    /// EAP: the gradient at the clean run (Syed et al. 2023). One backward pass.
    Gradient,
    /// EAP-IG: the mean of the gradients where the embeddings go from ablated to clean in equal steps, the clean one left out (Hanna et al.
    /// 2024). A backward pass for each step.
    IntegratedInputs {
        /// How many.
        steps: usize,
    },
    /// EAP-IG on activations: the mean of the gradients where what one group of nodes computes (the input, a layer's heads, an MLP) goes from
    /// ablated to clean, the ablated one left out, over all groups. A backward pass for each step and group.
    IntegratedActivations {
        /// How many.
        steps: usize,
    },
    /// The mean of the gradients at the clean and at the counterfactual run.
    CleanAndCounterfactual,
    /// The change of the metric where this edge alone is ablated. A forward pass for each edge.
    Exact,
    /// Information flow routes (Ferrando and Voita 2024): how close what a sender writes is to what the receiver reads,
    /// `max(0, ‖input‖₁ − ‖input − written‖₁)`, as a share among all senders, averaged over positions and rows. It needs neither metric nor
    /// ablation.
    InformationFlow,
}

impl CircuitTask<'_, '_> {
    /// A score for every edge.
    ///
    /// Gradient methods take a few times the memory of what all nodes write, `[sender, batch, pos, d_model]`, and none for each edge but its
    /// score.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run_with_grad`](crate::HookedTransformer::run_with_grad); [`Error::Setting`] without steps;
    /// [`Error::Setting`] where a method needs a counterfactual and the ablation is another, or where rules of the backward pass are given
    /// to a method without one.
    pub fn edge_scores(&self, method: EdgeMethod) -> Result<EdgeScores> {
        let scores = match method {
            EdgeMethod::Gradient => self.by_gradient(&self.tokens, Hooks::new(), &self.differences()?)?,
            EdgeMethod::IntegratedInputs { steps } => {
                let differences = self.differences()?;
                let mut sum = None;
                for hooks in self.inputs_between(steps)? {
                    let scores = self.by_gradient(&self.tokens, hooks, &differences)?;
                    sum = Some(add_weighted(sum, &scores, 1.0 / steps as f64)?);
                }
                sum.ok_or(Error::Internal("an integral has no steps"))?
            }
            EdgeMethod::IntegratedActivations { steps } => {
                let differences = self.differences()?;
                let runs = self.activations_between(steps)?;
                let (mut sum, weight) = (None, 1.0 / runs.len() as f64);
                for hooks in runs {
                    sum = Some(add_weighted(sum, &self.by_gradient(&self.tokens, hooks, &differences)?, weight)?);
                }
                sum.ok_or(Error::Internal("an integral has no steps"))?
            }
            EdgeMethod::CleanAndCounterfactual => {
                let Some(counterfactual) = &self.counterfactual else {
                    let why = "the gradient at the counterfactual needs one: use `Ablation::counterfactual`";
                    return Err(Error::setting("ablation", why));
                };
                let differences = self.differences()?;
                let clean = self.by_gradient(&self.tokens, Hooks::new(), &differences)?;
                let other = self.by_gradient(counterfactual, Hooks::new(), &differences)?;
                clean.f_add(&other)?.mul_number(0.5)?
            }
            EdgeMethod::Exact => {
                self.refuse_rules("exact scores")?;
                let full = Circuit::full(self.graph.clone());
                return EdgeScores::from_fn(self.graph.clone(), |edge| {
                    let metric = self.metric_of(&full.without([edge])?)?;
                    Ok(metric - self.clean_metric)
                });
            }
            EdgeMethod::InformationFlow => {
                self.refuse_rules("information flow")?;
                self.information_flow()?
            }
        };
        EdgeScores::of_tensor(self.graph.clone(), &scores)
    }

    fn refuse_rules(&self, what: &str) -> Result<()> {
        match self.rules == Default::default() {
            true => Ok(()),
            false => Err(Error::setting(
                "backward_rules",
                format!("the task's `backward_rules` cannot be used: {what} take no backward pass"),
            )),
        }
    }

    /// A run for each step between the ablated and the clean embeddings.
    pub(super) fn inputs_between(&self, steps: usize) -> Result<Vec<Hooks<'static>>> {
        let (clean, ablated) = (&self.clean.embed, &self.ablated.embed);
        let hooks = (0..at_least_one(steps)?).map(|step| {
            let between = lerp(ablated, clean, step as f64 / steps as f64)?;
            Ok(Hooks::new().patch(hook::embedding(self.model.config()), Patch::set(between)))
        });
        hooks.collect()
    }

    /// A run for each group of nodes and each step between what they compute ablated and clean.
    fn activations_between(&self, steps: usize) -> Result<Vec<Hooks<'static>>> {
        at_least_one(steps)?;
        let mut groups = vec![(hook::embedding(self.model.config()), &self.clean.embed, &self.ablated.embed)];
        for layer in 0..self.graph.n_layers() {
            groups.push((hook::z(layer), &self.clean.z[layer], &self.ablated.z[layer]));
            if self.graph.has_mlps {
                groups.push((hook::mlp_out(layer), &self.clean.mlp_out[layer], &self.ablated.mlp_out[layer]));
            }
        }
        let mut runs = Vec::with_capacity(groups.len() * steps);
        for (point, clean, ablated) in groups {
            for step in 1..=steps {
                let between = lerp(ablated, clean, step as f64 / steps as f64)?;
                runs.push(Hooks::new().patch(point, Patch::set(between)));
            }
        }
        Ok(runs)
    }

    /// Scores from the gradients of one run: `[sender, receiver]`.
    fn by_gradient(&self, tokens: &Tokens, hooks: Hooks<'_>, differences: &Tensor) -> Result<Tensor> {
        let (model, graph) = (self.model.transformer(), &self.graph);
        let mut points = Reaching::points(model, graph)?;
        for layer in 0..graph.n_layers() {
            points.push(hook::resid_pre(layer));
            points.extend(match model.heads_read_linearly() {
                true => [hook::q, hook::k, hook::v].map(|point| point(layer)),
                false => [hook::q_input, hook::k_input, hook::v_input].map(|point| point(layer)),
            });
            if graph.has_mlps {
                points.push(read_by_mlp(model, layer));
            }
        }
        let last = hook::stream_after(model.config(), graph.n_layers() - 1);
        points.push(last);
        points.extend(self.metric.needs(self.model.config())?);
        let run = RunOptions::new()
            .cache(points)
            .hooks(hooks)
            .backward_rules(self.rules)
            .logits_at(self.metric.positions().clone());
        let output = self.model.run_with_grad(tokens, run, |run| self.metric.scalar(run.logits()?, &run.cache))?;
        let (cache, gradients) = (&output.run.cache, &output.gradients);

        let mut changes = Reaching::new(model, graph, cache, self.rules.frozen_norms, differences)?;
        let mut scores: Vec<Tensor> = Vec::new();
        let mut add = |changes: Tensor, at_receivers: &Tensor| -> Result<()> {
            let columns = changes.f_flatten(1, -1)?; // [sender, batch · pos · d_model]
            let rows = at_receivers.f_flatten(1, -1)?; // [receiver, batch · pos · d_model]
            let product = columns.f_matmul(&rows.f_tr()?)?; // [sender, receiver]
            let missing = graph.n_senders() as i64 - columns.size()[0];
            scores.push(product.f_constant_pad_nd([0, 0, 0, missing])?);
            Ok(())
        };
        for layer in 0..graph.n_layers() {
            let of_heads = self.at_head_inputs(layer, cache, |point| widened(gradients.get(point)?))?;
            add(changes.of(graph.first_sender(layer))?, &of_heads)?;
            changes.pass_attention(layer)?;
            if graph.has_mlps {
                let of_mlp = widened(gradients.get(read_by_mlp(model, layer))?)?.f_unsqueeze(0)?;
                add(changes.of(graph.senders_before(graph.mlp_receiver(layer)))?, &of_mlp)?;
                changes.pass_mlp(layer)?;
            }
        }
        add(changes.of(graph.n_senders())?, &widened(gradients.get(last)?)?.f_unsqueeze(0)?)?;
        Ok(Tensor::f_cat(&scores, 1)?)
    }

    /// The gradients at what each head reads for its queries, keys and values: `[receiver, batch, pos, d_model]`.
    fn at_head_inputs(
        &self,
        layer: usize,
        cache: &ActivationCache,
        gradient: impl Fn(HookPoint) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let model = self.model.transformer();
        let read = match model.heads_read_linearly() {
            true => {
                let mut read = Vec::new();
                for (point, weights) in [hook::q, hook::k, hook::v].into_iter().zip(model.head_readers(layer)?) {
                    let gradients = gradient(point(layer))?; // [batch, pos, head, d_head]
                    read.push(Tensor::f_einsum("bphe,hem->hbpm", &[&gradients, &widened(&weights)?], None::<&[i64]>)?);
                }
                let read = of_readers(model, &read)?;
                let norm = self.model.norm_before(Target::Attn(layer as i64))?;
                match LinearNorm::at(norm, cache.get(hook::resid_pre(layer))?, self.rules.frozen_norms)? {
                    Some(norm) => norm.pull(&read)?,
                    None => read,
                }
            }
            false => {
                let points: [fn(usize) -> HookPoint; 3] = [hook::q_input, hook::k_input, hook::v_input];
                let read = points.map(|point| Ok::<_, Error>(gradient(point(layer))?.f_permute([2, 0, 1, 3])?));
                of_readers(model, &read.into_iter().collect::<Result<Vec<_>>>()?)?
            }
        };
        Ok(read)
    }

    /// How close what each sender writes is to what each receiver reads: `[sender, receiver]`.
    fn information_flow(&self) -> Result<Tensor> {
        let (model, graph) = (self.model.transformer(), &self.graph);
        let last = hook::stream_after(model.config(), graph.n_layers() - 1);
        let stream_of_mlp = match (in_stream(model), graph.parallel) {
            (true, _) => hook::mlp_hook_in,
            (false, true) => hook::resid_pre,
            (false, false) => hook::resid_mid,
        };
        let mut points = Reaching::points(model, graph)?;
        points.extend((0..graph.n_layers()).map(hook::resid_pre));
        points.extend((0..graph.n_layers()).filter(|_| graph.has_mlps).map(stream_of_mlp));
        points.push(last);
        let cache = self.model.run(&self.tokens, RunOptions::new().cache(points))?.cache;
        // At constant scales, each node has its share of what norms give.
        let written = self.clean.written(model)?;
        let mut reaching = Reaching::new(model, graph, &cache, true, &written)?;
        let options = (written.f_kind()?, written.device());
        let real = real_tokens(&self.tokens, options)?; // [batch, pos]
        let weights = real.f_div(&real.f_sum_dim_intlist([1i64].as_slice(), true, None)?)?;
        let weights = weights.div_number(real.size()[0] as f64)?;
        let mut scores = Vec::new();
        let mut add = |point: HookPoint, written: Tensor, copies: i64| -> Result<()> {
            let input = widened(cache.get(point)?)?; // [batch, pos, d_model]
            let size = |x: &Tensor| Ok::<_, Error>(x.f_abs()?.f_sum_dim_intlist([-1i64].as_slice(), false, None)?);
            let away = size(&written.f_sub(&input)?)?; // [sender, batch, pos]
            let close = size(&input)?.f_sub(&away)?.at_least(0.0)?;
            let sum = close.f_sum_dim_intlist([0i64].as_slice(), true, None)?;
            let shares = close.f_div(&sum)?.f_nan_to_num(Some(0.0), None, None)?.f_mul(&weights)?;
            let column = shares.f_sum_dim_intlist([1i64, 2].as_slice(), false, None)?.f_unsqueeze(1)?; // [sender, 1]
            let missing = graph.n_senders() as i64 - written.size()[0];
            scores.push(column.f_constant_pad_nd([0, 0, 0, missing])?.f_expand([-1, copies], false)?);
            Ok(())
        };
        for layer in 0..graph.n_layers() {
            add(hook::resid_pre(layer), reaching.of(graph.first_sender(layer))?, 3 * graph.n_heads(layer) as i64)?;
            reaching.pass_attention(layer)?;
            if graph.has_mlps {
                add(stream_of_mlp(layer), reaching.of(graph.senders_before(graph.mlp_receiver(layer)))?, 1)?;
                reaching.pass_mlp(layer)?;
            }
        }
        add(last, reaching.of(graph.n_senders())?, 1)?;
        Ok(Tensor::f_cat(&scores, 1)?)
    }
}

/// A point between two tensors.
fn lerp(from: &Tensor, to: &Tensor, at: f64) -> Result<Tensor> {
    Ok(from.f_add(&to.f_sub(from)?.mul_number(at)?)?)
}

fn at_least_one(steps: usize) -> Result<usize> {
    match steps {
        0 => Err(Error::option_value("steps", 0, "an integral needs at least one")),
        steps => Ok(steps),
    }
}
