//! [`MixtureOfExperts`]: an MLP for each token from several.

use tch::Tensor;

use super::linear::Linear;
use super::mlp::{product, Act, Mlp, MlpParts};
use super::norm::constant_if;
use super::parameters::module;
use super::part::Part;
use super::routing;
use super::temporary::Temporary;
use crate::config::{ExpertGate, Experts};
use crate::hook;
use crate::run::{BackwardRules, Flow, Tap};
use crate::tensor::routed::all_hits;
use crate::tensor::scalar::Scalar;
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// Each token goes to the few experts that the router weighs most (Shazeer et al. 2017), and gets the sum of
/// their outputs by those weights.
#[derive(Clone, Debug)]
pub(crate) struct MixtureOfExperts {
    /// `d_model` to `num_experts`.
    pub(crate) router: Linear,
    /// Counts for the choice of experts only: `[num_experts]`.
    pub(crate) choice_bias: Option<SharedTensor>,
    /// Added to what the experts write: `[d_model]`.
    pub(crate) bias: Option<SharedTensor>,
    /// What every token goes through.
    pub(crate) shared: Option<Shared>,
    pub(crate) experts: Vec<Expert>,
    pub(crate) moe: Experts,
    pub(crate) act: Act,
    pub(crate) layer: usize,
}

module!(MixtureOfExperts, () => (), {
    router: (Part::Router, Part::RouterB),
    choice_bias: Part::ChoiceB,
    bias: Part::MixtureB,
    shared: (),
    experts: (),
    act: (),
} plain { moe, layer });

/// A mixture's shared expert.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) mlp: Mlp,
    /// `d_model` to 1: the sigmoid of it multiplies what the MLP adds.
    pub(crate) weight: Option<Linear>,
}

// The weight has no bias: its part stands in both places.
module!(Shared, () => (), { mlp: MlpParts::SHARED, weight: (Part::SharedWeight, Part::SharedWeight) } plain {});

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
        let shared = self.shared.as_ref().map(|shared| shared.forward(x, tap)).transpose()?; // [batch, pos, d_model]
        let logits = self.router.forward(x)?; // [batch, pos, expert]
        let (weights, indices) = self.route(&logits)?;
        let weights = constant_if(tap.plan.rules().frozen_routers, weights)?;
        let weights = tap.at(hook::expert_weights(layer), weights)?; // [batch, pos, expert]
        let indices = tap.at(hook::expert_indices(layer), indices)?; // [batch, pos, chosen]
        let chosen = self.weights(&weights, &indices)?.f_to_kind(x.f_kind()?)?; // [batch, pos, chosen]

        let flat = x.f_reshape([-1, size[2]])?; // [row, d_model]
        let chosen = chosen.f_flatten(0, 1)?; // [row, chosen]
        let mut out = flat.f_zeros_like()?; // written to by the experts, and seen by nothing else
        let hits = all_hits(&indices, self.experts.len())?;
        for (expert, (mlp, (place, rows))) in self.experts.iter().zip(hits).enumerate() {
            let point = [hook::expert_gate, hook::expert_pre, hook::expert_post].map(|point| point(layer, expert));
            if rows.numel() == 0 && !point.iter().any(|point| tap.live(*point)) {
                continue;
            }
            let weight = chosen.f_index(&[Some(&rows), Some(&place)])?.f_unsqueeze(1)?; // [hit, 1]
            let mut input = flat.f_index_select(0, &rows)?; // [hit, d_model]
            if self.moe.routing.weighs_input {
                input = input.f_mul(&weight)?;
            }
            let gate = mlp.gate.forward(&input)?;
            let gate = match tap.live(point[0]) {
                true => Temporary::shared(tap.at_expert(point[0], gate, &indices)?),
                false => Temporary::new(gate),
            }; // [hit, d_mlp]
            let pre = tap.at_expert(point[1], mlp.w_in.forward(&input)?, &indices)?; // [hit, d_mlp]
            let post = tap.at_expert(point[2], self.gated(gate, &pre, tap.plan.rules())?, &indices)?; // [hit, d_mlp]
            let mut written = mlp.w_out.forward(&post)?; // [hit, d_model]
            if !self.moe.routing.weighs_input {
                written = written.f_mul(&weight)?;
            }
            out = out.f_index_add_(0, &rows, &written)?;
        }
        let out = out.f_view(size.as_slice())?;
        let out = match &self.bias {
            Some(bias) => out.f_add(bias)?,
            None => out,
        };
        match shared {
            Some(shared) => Ok(out.f_add(&shared)?),
            None => Ok(out),
        }
    }

    /// The weight of every expert and the chosen ones: `[batch, pos, expert]` and `[batch, pos, chosen]`.
    fn route(&self, logits: &Tensor) -> Result<(Tensor, Tensor)> {
        routing::route(&self.moe, self.choice_bias.as_deref(), logits)
    }

    /// The chosen experts' weights: `[batch, pos, chosen]`.
    fn weights(&self, weights: &Tensor, indices: &Tensor) -> Result<Tensor> {
        routing::of_chosen(&self.moe.routing, weights, indices)
    }

    /// What the chosen experts' outputs are multiplied by: `[batch, pos, chosen]`.
    pub(crate) fn output_weights(&self, weights: &Tensor, indices: &Tensor) -> Result<Tensor> {
        let weights = self.weights(weights, indices)?;
        match self.moe.routing.weighs_input {
            true => Ok(weights.f_ones_like()?),
            false => Ok(weights),
        }
    }

    /// What the chosen experts' inputs are multiplied by, `[batch, pos, chosen]`; `None` where outputs are weighed.
    pub(crate) fn input_weights(&self, weights: &Tensor, indices: &Tensor) -> Result<Option<Tensor>> {
        self.moe.routing.weighs_input.then(|| self.weights(weights, indices)).transpose()
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

impl Shared {
    /// `[batch, pos, d_model]` to `[batch, pos, d_model]`.
    fn forward(&self, x: &Tensor, tap: &mut Tap) -> Flow<Tensor> {
        let out = self.mlp.forward(x, tap)?;
        let Some(weight) = &self.weight else { return Ok(out) };
        let weight = constant_if(tap.plan.rules().frozen_routers, weight.forward(x)?.f_sigmoid()?)?;
        let weight = tap.at(hook::shared_gate(self.mlp.layer), weight)?; // [batch, pos, 1]
        Ok(out.f_mul(&weight)?)
    }
}
