//! [`MixtureOfExperts`]: an MLP for each token from several.

use tch::Tensor;

use super::linear::Linear;
use super::mlp::{product, Act};
use super::norm::constant_if;
use super::parameters::module;
use super::part::Part;
use super::temporary::Temporary;
use crate::config::{ExpertGate, Experts, Routing};
use crate::hook;
use crate::run::{BackwardRules, Flow, Tap};
use crate::tensor::precision::widened;
use crate::tensor::routed::all_hits;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// Each token goes to the few experts that the router weighs most (Shazeer et al. 2017), and gets the sum of
/// their outputs by those weights.
#[derive(Clone, Debug)]
pub(crate) struct MixtureOfExperts {
    /// `d_model` to `num_experts`.
    pub(crate) router: Linear,
    pub(crate) experts: Vec<Expert>,
    pub(crate) moe: Experts,
    pub(crate) act: Act,
    pub(crate) layer: usize,
}

module!(MixtureOfExperts, () => (), { router: (Part::Router, Part::RouterB), experts: (), act: () } plain { moe, layer });

/// One expert: a gated MLP.
#[derive(Clone, Debug)]
pub(crate) struct Expert {
    pub(crate) gate: Linear,
    pub(crate) w_in: Linear,
    pub(crate) w_out: Linear,
}

module!(Expert, () => (), {
    w_in: (Part::In, Part::InB),
    gate: (Part::Gate, Part::GateB),
    w_out: (Part::Out, Part::OutB),
} plain {});

impl MixtureOfExperts {
    /// `[batch, pos, d_model]` to `[batch, pos, d_model]`.
    pub(crate) fn forward(&self, x: &Tensor, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
        let size = x.size();
        let logits = self.router.forward(x)?; // [batch, pos, expert]
        let (weights, indices) = self.route(&logits)?;
        let weights = constant_if(tap.plan.rules().frozen_routers, weights)?;
        let weights = tap.at(hook::expert_weights(layer), weights)?; // [batch, pos, expert]
        let indices = tap.at(hook::expert_indices(layer), indices)?; // [batch, pos, chosen]
        let chosen = self.chosen(&weights, &indices)?.f_to_kind(x.f_kind()?)?; // [batch, pos, chosen]

        let flat = x.f_reshape([-1, size[2]])?; // [row, d_model]
        let chosen = chosen.f_flatten(0, 1)?; // [row, chosen]
        let mut out = flat.f_zeros_like()?; // written to by the experts, and seen by nothing else
        let hits = all_hits(&indices, self.experts.len())?;
        for (expert, (mlp, (place, rows))) in self.experts.iter().zip(hits).enumerate() {
            let point = [hook::expert_gate, hook::expert_pre, hook::expert_post].map(|point| point(layer, expert));
            if rows.numel() == 0 && !point.iter().any(|point| tap.live(*point)) {
                continue;
            }
            let input = flat.f_index_select(0, &rows)?; // [hit, d_model]
            let gate = mlp.gate.forward(&input)?;
            let gate = match tap.live(point[0]) {
                true => Temporary::shared(tap.at_expert(point[0], gate, &indices)?),
                false => Temporary::new(gate),
            }; // [hit, d_mlp]
            let pre = tap.at_expert(point[1], mlp.w_in.forward(&input)?, &indices)?; // [hit, d_mlp]
            let post = tap.at_expert(point[2], self.gated(gate, &pre, tap.plan.rules())?, &indices)?; // [hit, d_mlp]
            let weight = chosen.f_index(&[Some(&rows), Some(&place)])?.f_unsqueeze(1)?; // [hit, 1]
            out = out.f_index_add_(0, &rows, &mlp.w_out.forward(&post)?.f_mul(&weight)?)?;
        }
        Ok(out.f_view(size.as_slice())?)
    }

    /// The weight of every expert and the chosen ones: `[batch, pos, expert]` and `[batch, pos, chosen]`.
    fn route(&self, logits: &Tensor) -> Result<(Tensor, Tensor)> {
        let k = self.moe.experts_per_token as i64;
        let wide = widened(logits)?;
        let kind = wide.f_kind()?;
        let (top, indices) = wide.f_topk(k, -1, true, true)?;
        let weights = match self.moe.routing {
            Routing::Softmax | Routing::SoftmaxRenormalized => wide.f_softmax(-1, kind)?,
            Routing::TopKSoftmax => wide.f_zeros_like()?.f_scatter(-1, &indices, &top.f_softmax(-1, kind)?)?,
        };
        Ok((weights, indices))
    }

    /// The chosen experts' weights: `[batch, pos, chosen]`.
    pub(crate) fn chosen(&self, weights: &Tensor, indices: &Tensor) -> Result<Tensor> {
        let chosen = weights.f_gather(-1, indices, false)?;
        match self.moe.routing {
            Routing::SoftmaxRenormalized => {
                let sum = chosen.f_sum_dim_intlist([-1i64].as_slice(), true, None)?;
                Ok(chosen.f_div(&sum)?)
            }
            Routing::Softmax | Routing::TopKSoftmax => Ok(chosen),
        }
    }

    fn gated(&self, gate: Temporary, pre: &Tensor, rules: BackwardRules) -> Result<Tensor> {
        match self.moe.gate {
            ExpertGate::Plain => product(&self.act.apply_by(gate, rules)?, pre, rules),
            ExpertGate::ClampedSwiglu { alpha, limit } => {
                let gate = gate.at_most(limit)?;
                let pre = pre.between(-limit, limit)?.add_number(1.0)?;
                let factor = constant_if(rules.identity_activations, gate.mul_number(alpha)?.f_sigmoid()?)?;
                product(&factor.f_mul(&gate)?, &pre, rules)
            }
        }
    }
}
