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
use super::cross::CrossHeads;
use super::linear_norm::LinearNorm;
use super::node::HeadInput;
use super::part::{PartKind, PartNodes};
use super::reaching::{in_stream, read_at, Reaching};
use super::scores::{add_weighted, EdgeScores};
use super::senders::{layer_inputs, of_readers, real_tokens};
use super::task::CircuitTask;
use crate::cache::ActivationCache;
use crate::component::Target;
use crate::hook::{self, HookPoint};
use crate::run::{Hooks, Patch};
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::text::input::Tokens;
use crate::{Error, HookedTransformer, Result, RunOptions};

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
            EdgeMethod::Gradient => {
                self.by_gradient((&self.model, &self.tokens), Hooks::new(), &self.differences()?)?
            }
            EdgeMethod::IntegratedInputs { steps } => {
                let differences = self.differences()?;
                let mut sum = None;
                for hooks in self.inputs_between(steps)? {
                    let scores = self.by_gradient((&self.model, &self.tokens), hooks, &differences)?;
                    sum = Some(add_weighted(sum, &scores, 1.0 / steps as f64)?);
                }
                sum.ok_or(Error::Internal("an integral has no steps"))?
            }
            EdgeMethod::IntegratedActivations { steps } => {
                let differences = self.differences()?;
                let runs = self.activations_between(steps)?;
                let (mut sum, weight) = (None, 1.0 / runs.len() as f64);
                for hooks in runs {
                    sum = Some(add_weighted(
                        sum,
                        &self.by_gradient((&self.model, &self.tokens), hooks, &differences)?,
                        weight,
                    )?);
                }
                sum.ok_or(Error::Internal("an integral has no steps"))?
            }
            EdgeMethod::CleanAndCounterfactual => {
                let Some((model, counterfactual)) = &self.counterfactual else {
                    let why = "the gradient at the counterfactual needs one: use `Ablation::counterfactual`";
                    return Err(Error::setting("ablation", why));
                };
                let differences = self.differences()?;
                let clean = self.by_gradient((&self.model, &self.tokens), Hooks::new(), &differences)?;
                let other = self.by_gradient((model, counterfactual), Hooks::new(), &differences)?;
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

    /// A run for each step between the ablated and the clean embeddings, with the encoder's output and the inputs of per-layer embeddings.
    pub(super) fn inputs_between(&self, steps: usize) -> Result<Vec<Hooks<'static>>> {
        let (clean, ablated) = (&self.clean.embed, &self.ablated.embed);
        let hooks = (0..at_least_one(steps)?).map(|step| {
            let at = step as f64 / steps as f64;
            let hooks = Hooks::new();
            let hooks = hooks.patch(hook::embedding(self.model.config()), Patch::set(lerp(ablated, clean, at)?));
            self.layer_inputs_at(self.encoder_at(hooks, at)?, at)
        });
        hooks.collect()
    }

    /// Sets the inputs of per-layer embeddings to those between ablated, 0, and clean, 1: what they are made of does not change them then.
    pub(super) fn layer_inputs_at<'h>(&self, mut hooks: Hooks<'h>, at: f64) -> Result<Hooks<'h>> {
        let of = self.clean.layer_inputs.iter().zip(&self.ablated.layer_inputs);
        for (point, (clean, ablated)) in layer_inputs(&self.graph).zip(of) {
            hooks = hooks.patch(point, Patch::set(lerp(ablated, clean, at)?));
        }
        Ok(hooks)
    }

    /// Changes the keys and values of cross-attention to those of an encoder's output between ablated, 0, and clean, 1.
    fn encoder_at<'h>(&self, mut hooks: Hooks<'h>, at: f64) -> Result<Hooks<'h>> {
        for part in self.graph.parts().iter().filter(|part| part.kind == PartKind::CrossAttention) {
            let heads = CrossHeads::new(self, part);
            for (input, point) in [(HeadInput::K, hook::cross_k(part.layer)), (HeadInput::V, hook::cross_v(part.layer))]
            {
                hooks = hooks.patch(point, Patch::add(heads.differences(input)?.mul_number(1.0 - at)?));
            }
        }
        Ok(hooks)
    }

    /// A run for each group of nodes and each step between what they compute ablated and clean.
    fn activations_between(&self, steps: usize) -> Result<Vec<Hooks<'static>>> {
        at_least_one(steps)?;
        let mut groups = vec![(hook::embedding(self.model.config()), &self.clean.embed, &self.ablated.embed)];
        let of_parts = self.clean.parts.iter().zip(&self.ablated.parts);
        let parts = self.graph.parts().iter().map(PartNodes::computed).zip(of_parts);
        groups.extend(parts.map(|(point, (clean, ablated))| (point, clean, ablated)));
        let steps_at = || (1..=steps).map(|step| step as f64 / steps as f64);
        let mut runs = Vec::with_capacity((groups.len() + 2) * steps);
        for (point, clean, ablated) in groups {
            for at in steps_at() {
                runs.push(Hooks::new().patch(point, Patch::set(lerp(ablated, clean, at)?)));
            }
        }
        if self.clean.encoder.is_some() {
            for at in steps_at() {
                runs.push(self.encoder_at(Hooks::new(), at)?);
            }
        }
        if !self.clean.layer_inputs.is_empty() {
            for at in steps_at() {
                runs.push(self.layer_inputs_at(Hooks::new(), at)?);
            }
        }
        Ok(runs)
    }

    /// Scores from the gradients of one run: `[sender, receiver]`.
    fn by_gradient(
        &self,
        (of_run, tokens): (&HookedTransformer, &Tokens),
        hooks: Hooks<'_>,
        differences: &Tensor,
    ) -> Result<Tensor> {
        let (model, graph) = (self.model.transformer(), &self.graph);
        let mut points = Reaching::points(model, graph)?;
        for part in graph.parts() {
            let layer = part.layer;
            match part.kind {
                PartKind::Attention => {
                    points.push(hook::resid_pre(layer));
                    points.extend(inputs_of(part, model.heads_read_linearly()));
                }
                PartKind::CrossAttention => {
                    points.push(CrossHeads::new(self, part).stream());
                    points.extend([hook::cross_q(layer), hook::cross_k(layer), hook::cross_v(layer)]);
                }
                PartKind::Mlp => points.push(read_at(model, part)),
                PartKind::LayerEmbedding => points.extend([read_at(model, part), hook::ple_embed(layer)]),
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
        let output = of_run.run_with_grad(tokens, run, |run| self.metric.scalar(run.logits()?, &run.cache))?;
        let cache = &output.run.cache;
        let gradient = |point: HookPoint| widened(output.gradients.get(point)?);

        let mut changes = Reaching::new(model, graph, cache, self.rules.frozen_norms, differences)?;
        let mut scores: Vec<Tensor> = Vec::new();
        let n_senders = graph.n_senders() as i64;
        let mut column = |product: Tensor, first: i64| -> Result<()> {
            let missing = n_senders - first - product.size()[0];
            scores.push(product.f_constant_pad_nd([0, 0, first, missing])?);
            Ok(())
        };
        let product = |changes: Tensor, at_receivers: &Tensor| -> Result<Tensor> {
            let columns = changes.f_flatten(1, -1)?; // [sender, batch · pos · d_model]
            let rows = at_receivers.f_flatten(1, -1)?; // [receiver, batch · pos · d_model]
            Ok(columns.f_matmul(&rows.f_tr()?)?) // [sender, receiver]
        };
        for (index, part) in graph.parts().iter().enumerate() {
            let read = || changes.of(part.reads);
            match part.kind {
                PartKind::Attention => {
                    let of_heads = self.at_head_inputs(part, cache, gradient)?;
                    column(product(read()?, &of_heads)?, 0)?;
                }
                PartKind::CrossAttention => {
                    let heads = CrossHeads::new(self, part);
                    let of_queries = gradient(hook::cross_q(part.layer))?;
                    let of_queries = heads.at_query_inputs(&of_queries, cache.get(heads.stream())?)?;
                    column(product(read()?, &of_queries)?, 0)?;
                    let encoder = graph.senders_of(part.first_receiver + part.n).start as i64;
                    for (input, point) in
                        [(HeadInput::K, hook::cross_k(part.layer)), (HeadInput::V, hook::cross_v(part.layer))]
                    {
                        column(heads.scores_of_encoder(input, &gradient(point)?)?.f_unsqueeze(0)?, encoder)?;
                    }
                }
                PartKind::Mlp => {
                    let of_mlp = gradient(read_at(model, part))?.f_unsqueeze(0)?;
                    column(product(read()?, &of_mlp)?, 0)?;
                }
                PartKind::LayerEmbedding => {
                    let of_stream = gradient(read_at(model, part))?.f_unsqueeze(0)?;
                    column(product(read()?, &of_stream)?, 0)?;
                    let inputs = graph.senders_of(part.first_receiver + 1).start as i64;
                    let score = self.score_of_layer_input(part.layer, &gradient(hook::ple_embed(part.layer))?)?;
                    column(score.f_view([1, 1])?, inputs)?;
                }
            }
            changes.pass(index)?;
        }
        let of_logits = gradient(last)?.f_unsqueeze(0)?;
        column(product(changes.of(graph.n_in_stream())?, &of_logits)?, 0)?;
        Ok(Tensor::f_cat(&scores, 1)?)
    }

    /// By how much a layer's own input matters, of the gradient at it, `[batch, pos, width]`: no dimensions.
    pub(super) fn score_of_layer_input(&self, layer: usize, gradient: &Tensor) -> Result<Tensor> {
        let of =
            |x: &'_ [Tensor]| x.get(layer).map(Tensor::shallow_clone).ok_or(Error::Internal("a layer has no input"));
        let difference = of(&self.ablated.layer_inputs)?.f_sub(&of(&self.clean.layer_inputs)?)?;
        Ok(difference.f_mul(gradient)?.f_sum(None)?)
    }

    /// The gradients at what each head reads for its queries, keys and values: `[receiver, batch, pos, d_model]`.
    fn at_head_inputs(
        &self,
        part: &PartNodes,
        cache: &ActivationCache,
        gradient: impl Fn(HookPoint) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (model, layer) = (self.model.transformer(), part.layer);
        let linear = model.heads_read_linearly();
        let points = inputs_of(part, linear);
        if !linear {
            let read = points.into_iter().map(|point| Ok(gradient(point)?.f_permute([2, 0, 1, 3])?));
            return of_readers(model, &read.collect::<Result<Vec<_>>>()?);
        }
        let mut read = Vec::new();
        for (point, weights) in points.into_iter().zip(model.head_readers(layer)?) {
            let gradients = gradient(point)?; // [batch, pos, head, d_head]
            read.push(Tensor::f_einsum("bphe,hem->hbpm", &[&gradients, &widened(&weights)?], None::<&[i64]>)?);
        }
        let read = of_readers(model, &read)?;
        let norm = self.model.norm_before(Target::Attn(layer as i64))?;
        match LinearNorm::at(norm, cache.get(hook::resid_pre(layer))?, self.rules.frozen_norms)? {
            Some(norm) => norm.pull(&read),
            None => Ok(read),
        }
    }

    /// How close what each sender writes is to what each receiver reads: `[sender, receiver]`. A receiver with one sender alone has all from
    /// that one.
    fn information_flow(&self) -> Result<Tensor> {
        let (model, graph) = (self.model.transformer(), &self.graph);
        let last = hook::stream_after(model.config(), graph.n_layers() - 1);
        let in_stream = in_stream(model);
        let stream_of = |part: &PartNodes| match part.kind {
            PartKind::Attention => hook::resid_pre(part.layer),
            PartKind::CrossAttention => hook::resid_mid(part.layer),
            PartKind::Mlp if !in_stream && graph.shape().parallel => hook::resid_pre(part.layer),
            PartKind::Mlp | PartKind::LayerEmbedding => read_at(model, part),
        };
        let mut points = Reaching::points(model, graph)?;
        points.extend(graph.parts().iter().map(stream_of));
        points.push(last);
        let cache = self.model.run(&self.tokens, RunOptions::new().cache(points))?.cache;
        // At constant scales, each node has its share of what norms give.
        let written = self.clean.written(graph, model)?;
        let mut reaching = Reaching::new(model, graph, &cache, true, &written)?;
        let options = (written.f_kind()?, written.device());
        let real = real_tokens(&self.tokens, options)?; // [batch, pos]
        let weights = real.f_div(&real.f_sum_dim_intlist([1i64].as_slice(), true, None)?)?;
        let weights = weights.div_number(real.size()[0] as f64)?;
        let mut scores = Vec::new();
        let n_senders = graph.n_senders();
        // `input` is what is read: [batch, pos, d_model].
        let mut add = |input: Tensor, written: Tensor, copies: usize| -> Result<()> {
            let size = |x: &Tensor| Ok::<_, Error>(x.f_abs()?.f_sum_dim_intlist([-1i64].as_slice(), false, None)?);
            let away = size(&written.f_sub(&input)?)?; // [sender, batch, pos]
            let close = size(&input)?.f_sub(&away)?.at_least(0.0)?;
            let sum = close.f_sum_dim_intlist([0i64].as_slice(), true, None)?;
            let shares = close.f_div(&sum)?.f_nan_to_num(Some(0.0), None, None)?.f_mul(&weights)?;
            let column = shares.f_sum_dim_intlist([1i64, 2].as_slice(), false, None)?.f_unsqueeze(1)?; // [sender, 1]
            let missing = n_senders as i64 - written.size()[0];
            scores.push(column.f_constant_pad_nd([0, 0, 0, missing])?.f_expand([-1, copies as i64], false)?);
            Ok(())
        };
        let mut alone: Vec<(usize, usize)> = Vec::new();
        for (index, part) in graph.parts().iter().enumerate() {
            let receivers = part.first_receiver..part.first_receiver + part.n_receivers();
            alone.extend(receivers.map(|receiver| (receiver, graph.senders_of(receiver))).filter_map(
                |(receiver, senders)| (senders.start >= graph.n_in_stream()).then_some((receiver, senders.start)),
            ));
            let mut input = widened(cache.get(stream_of(part))?)?;
            // Behind the norm of the stream before it, which has no point after its gain.
            if part.kind == PartKind::CrossAttention
                && let Some(norm) = graph.parts()[index - 1].norm_of_stream(model)?
            {
                input = norm.norm.apply_wide(&input)?;
            }
            add(input, reaching.of(part.reads)?, part.n_receivers())?;
            reaching.pass(index)?;
        }
        add(widened(cache.get(last)?)?, reaching.of(graph.n_in_stream())?, 1)?;
        let scores = Tensor::f_cat(&scores, 1)?.f_contiguous()?; // [sender, receiver]
        for (receiver, sender) in alone {
            let mut column = scores.f_select(1, receiver as i64)?;
            column.f_copy_(&column.f_zeros_like()?)?;
            let mut entry = column.f_select(0, sender as i64)?;
            entry.f_copy_(&entry.f_ones_like()?)?;
        }
        Ok(scores)
    }
}

/// The points of what heads read: queries, keys and values where these are linear in it, or the streams themselves.
fn inputs_of(part: &PartNodes, linear: bool) -> Vec<HookPoint> {
    let points: [fn(usize) -> HookPoint; 3] = match linear {
        true => [hook::q, hook::k, hook::v],
        false => [hook::q_input, hook::k_input, hook::v_input],
    };
    let inputs = part.n_receivers() / part.n;
    points.into_iter().take(inputs).map(|point| point(part.layer)).collect()
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
