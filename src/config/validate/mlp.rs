//! MLPs, mixtures of experts and their routers.

use super::{between, size, FP32, MAX_EXPERTS, MAX_SIZE, STRETCH};
use crate::config::{
    Activation, ChoiceBias, Config, ExpertGate, ExpertGroups, Experts, GroupRank, MlpKind, NormPosition, Normalization,
    PerLayer, Routing, Scores, WeightNorm,
};
use crate::{Error, Result};

impl Config {
    pub(super) fn validate_mlp(&self) -> Result<()> {
        let Some(mlp) = &self.mlp else { return Ok(()) };
        size("mlp.d_mlp", mlp.d_mlp, MAX_SIZE)?;
        self.validate_list("mlp.widths", &mlp.widths)?;
        for width in mlp.widths.values().iter().flatten() {
            size("mlp.widths", *width, MAX_SIZE)?;
        }
        if mlp.activation == Activation::SoluLn && mlp.kind != MlpKind::Plain {
            return Err(Error::field("mlp.activation", "solu_ln", "it belongs to a plain MLP"));
        }
        if let Some(norm) = mlp.norm {
            if norm == Normalization::None {
                return Err(Error::field("mlp.norm", "a norm of no kind", "leave it out where there is none"));
            }
            if mlp.activation == Activation::SoluLn || matches!(mlp.kind, MlpKind::Experts(_)) {
                let why = "SoLU has a norm of its own, and experts have none";
                return Err(Error::field("mlp.norm", format!("{norm:?}"), why));
            }
        }
        let MlpKind::Experts(experts) = &mlp.kind else { return Ok(()) };
        let Experts { num_experts, experts_per_token, routing, gate, shared, separate_norms, dense } = experts;
        if *separate_norms
            && (shared.is_none_or(|shared| shared.gated)
                || self.norms.position != NormPosition::BeforeAndAfter
                || self.normalization_type().centers()
                || self.normalization_type() == Normalization::None)
        {
            let why = "it needs a shared expert without a gate, and root-mean-square norms before and after sublayers";
            return Err(Error::field("mlp.separate_norms", true, why));
        }
        size("mlp.num_experts", *num_experts, MAX_EXPERTS)?;
        size("mlp.experts_per_token", *experts_per_token, *num_experts)?;
        if let ExpertGate::ClampedSwiglu { alpha, limit } = gate {
            between("mlp.gate.alpha", *alpha, STRETCH)?;
            between("mlp.gate.limit", *limit, FP32)?;
        }
        shared.map_or(Ok(()), |shared| size("mlp.shared.d_mlp", shared.d_mlp, MAX_SIZE))?;
        if let PerLayer::Each(layers) = dense
            && layers.len() != self.n_layers
        {
            let why = format!("it must have one entry for each of the {} layers", self.n_layers);
            return Err(Error::field("mlp.dense", format!("a list of {}", layers.len()), &why));
        }
        for width in dense.values().iter().flatten() {
            size("mlp.dense", *width, MAX_SIZE)?;
        }
        validate_routing(routing, *num_experts, *experts_per_token)
    }
}

fn validate_routing(routing: &Routing, num_experts: usize, experts_per_token: usize) -> Result<()> {
    let Routing { scores, logits_soft_cap, choice_bias, groups, normalize, scale, weighs_input: _ } = routing;
    if let Scores::SparseMixer { jitter } = scores {
        between("mlp.routing.jitter", *jitter, [0.0, FP32[1]])?;
        if choice_bias.is_some() || groups.is_some() {
            return Err(Error::field("mlp.routing.scores", "sparse_mixer", "it has neither a bias nor groups"));
        }
    }
    logits_soft_cap.map_or(Ok(()), |cap| between("mlp.routing.logits_soft_cap", cap, FP32))?;
    between("mlp.routing.scale", *scale, STRETCH)?;
    if let Some(WeightNorm { p, min }) = normalize {
        between("mlp.routing.normalize.p", *p, [1e-2, 1e2])?;
        between("mlp.routing.normalize.min", *min, [0.0, FP32[1]])?;
    }
    if *scores == Scores::SoftmaxOfChosen && (*choice_bias == Some(ChoiceBias::OnScores) || groups.is_some()) {
        let why = "experts are chosen before there are scores";
        return Err(Error::field("mlp.routing.scores", "softmax_of_chosen", why));
    }
    let Some(ExpertGroups { groups, kept, rank }) = groups else { return Ok(()) };
    size("mlp.routing.groups.groups", *groups, num_experts)?;
    size("mlp.routing.groups.kept", *kept, *groups)?;
    let refuse = |why: String| Err(Error::field("mlp.routing.groups.groups", groups, &why));
    let of_group = num_experts / groups;
    if !num_experts.is_multiple_of(*groups) {
        return refuse(format!("it must divide num_experts, {num_experts}"));
    }
    if *rank == GroupRank::TwoLargest && of_group < 2 {
        return refuse("a group must have two experts at least, as its two largest scores count".into());
    }
    if experts_per_token > kept * of_group {
        return refuse(format!("the groups kept have {} experts, fewer than experts_per_token", kept * of_group));
    }
    Ok(())
}
