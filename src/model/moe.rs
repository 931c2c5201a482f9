//! [`MixtureOfExperts`]: an MLP for each token from several.

use tch::Tensor;

use super::linear::Linear;
use super::mlp::{product, Act, Mlp, MlpParts};
use super::norm::{constant_if, Norm, NormPoints};
use super::parameters::module;
use super::part::Part;
use super::placed_norm::PlacedNorm;
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
    /// What its parts have of their own, where they do not share one norm before and after them.
    pub(crate) separate: Option<SeparateNorms>,
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
    separate: (),
    shared: (),
    experts: (),
    act: (),
} plain { moe, layer });

/// The gains and norms of the parts of a mixture where each has its own. A gain is absent where it is folded into what reads it.
#[derive(Clone, Debug)]
pub(crate) struct SeparateNorms {
    /// Of what the router, the experts and the shared expert read: `[d_model]`.
    pub(crate) router_gain: Option<SharedTensor>,
    pub(crate) experts_gain: Option<SharedTensor>,
    pub(crate) shared_gain: Option<SharedTensor>,
    /// Of the weights of chosen experts: `[num_experts]`.
    pub(crate) expert_scale: Option<SharedTensor>,
    /// Of what all experts write together.
    pub(crate) after_experts: Norm,
    pub(crate) after_shared: Norm,
}

// The norms have no bias.
module!(SeparateNorms, () => (), {
    router_gain: Part::RouterInputW,
    experts_gain: Part::ExpertsInputW,
    shared_gain: Part::SharedInputW,
    expert_scale: Part::ExpertScale,
    after_experts: (Part::ExpertsLnW, Part::ExpertsLnW),
    after_shared: (Part::SharedLnW, Part::SharedLnW),
} plain {});

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
        let separate = self.separate.as_ref();
        let shared = match &self.shared {
            Some(shared) => Some(shared.forward(&gained(x, separate.and_then(|it| it.shared_gain.as_deref()))?, tap)?),
            None => None,
        }; // [batch, pos, d_model]
        let shared = match (shared, separate) {
            (Some(shared), Some(it)) => {
                Some(it.after_shared.forward(&shared, shared_norm_points(layer), tap)?.into_tensor())
            }
            (shared, _) => shared,
        };
        let logits = self.router.forward(&gained(x, separate.and_then(|it| it.router_gain.as_deref()))?)?; // [batch, pos, expert]
        let (weights, indices) = self.route(&logits)?;
        let weights = constant_if(tap.plan.rules().frozen_routers, weights)?;
        let weights = tap.at(hook::expert_weights(layer), weights)?; // [batch, pos, expert]
        let indices = tap.at(hook::expert_indices(layer), indices)?; // [batch, pos, chosen]
        let chosen = self.weights(&weights, &indices)?.f_to_kind(x.f_kind()?)?; // [batch, pos, chosen]

        let x = gained(x, separate.and_then(|it| it.experts_gain.as_deref()))?;
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
        let out = match separate {
            Some(it) => it.after_experts.forward(&out, experts_norm_points(layer), tap)?.into_tensor(),
            None => out,
        };
        match shared {
            Some(shared) => Ok(out.f_add(&shared)?),
            None => Ok(out),
        }
    }

    /// The gains of what its parts read, each with all that reads it.
    pub(crate) fn gains_mut(&mut self) -> Vec<(&mut Option<SharedTensor>, Vec<&mut Linear>)> {
        let Some(separate) = &mut self.separate else { return Vec::new() };
        let experts = self.experts.iter_mut().flat_map(|expert| [&mut expert.gate, &mut expert.w_in]);
        let shared = self.shared.iter_mut().flat_map(|it| std::iter::once(&mut it.mlp.w_in).chain(&mut it.mlp.gate));
        vec![
            (&mut separate.router_gain, vec![&mut self.router]),
            (&mut separate.experts_gain, experts.collect()),
            (&mut separate.shared_gain, shared.collect()),
        ]
    }

    /// The norms after the experts and after the shared expert, where they have some of their own.
    pub(crate) fn norms_after(&self) -> Option<[PlacedNorm<'_>; 2]> {
        let separate = self.separate.as_ref()?;
        Some([
            PlacedNorm { norm: &separate.after_experts, points: experts_norm_points(self.layer) },
            PlacedNorm { norm: &separate.after_shared, points: shared_norm_points(self.layer) },
        ])
    }

    /// The weight of every expert and the chosen ones: `[batch, pos, expert]` and `[batch, pos, chosen]`.
    fn route(&self, logits: &Tensor) -> Result<(Tensor, Tensor)> {
        routing::route(&self.moe, self.choice_bias.as_deref(), logits)
    }

    /// The chosen experts' weights: `[batch, pos, chosen]`.
    fn weights(&self, weights: &Tensor, indices: &Tensor) -> Result<Tensor> {
        let chosen = routing::of_chosen(&self.moe.routing, weights, indices)?;
        match self.separate.as_ref().and_then(|it| it.expert_scale.as_deref()) {
            Some(scale) => Ok(chosen.f_mul(&scale.f_to_kind(chosen.f_kind()?)?.f_index(&[Some(indices)])?)?),
            None => Ok(chosen),
        }
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

/// What is read with a gain of its own.
fn gained(x: &Tensor, gain: Option<&Tensor>) -> Result<Tensor> {
    match gain {
        Some(gain) => Ok(x.f_mul(gain)?),
        None => Ok(x.shallow_clone()),
    }
}

fn experts_norm_points(layer: usize) -> NormPoints {
    (hook::experts_ln_scale(layer), hook::experts_ln_normalized(layer))
}

fn shared_norm_points(layer: usize) -> NormPoints {
    (hook::shared_ln_scale(layer), hook::shared_ln_normalized(layer))
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
