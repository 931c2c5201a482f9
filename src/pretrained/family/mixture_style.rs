//! What families with mixtures of experts share: which layers have one, DeepSeek's router, and tables of names.

use super::llama_style;
use super::ConfigJson;
use crate::config::{
    ChoiceBias, ExpertGroups, Experts, GroupRank, MlpKind, PerLayer, Routing, SharedExpert, WeightNorm, MAX_LAYERS,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

/// Gives the model experts of `width` neurons each.
pub(super) fn set_experts(config: &mut Config, width: usize, experts: Experts) {
    if let Some(mlp) = &mut config.mlp {
        mlp.d_mlp = width;
    }
    llama_style::set_mlp_kind(config, MlpKind::Experts(experts));
}

/// One shared expert with the joint width of `n` experts; `None` if `n` is zero.
pub(super) fn shared(n: usize, width: usize) -> Option<SharedExpert> {
    (n > 0).then(|| SharedExpert { d_mlp: n.saturating_mul(width), gated: false })
}

/// The layers for which `is_dense` holds have one MLP of the model's `intermediate_size`, which `config` still has.
pub(super) fn dense_layers(config: &Config, is_dense: impl Fn(usize) -> bool) -> PerLayer<Option<usize>> {
    let n_layers = config.n_layers.min(MAX_LAYERS); // `Config::validate` refuses more
    PerLayer::from_layers((0..n_layers).map(|layer| is_dense(layer).then_some(config.d_mlp())).collect())
}

/// The same, where `mlp_layer_types` says which layers these are: `is_dense` where the file lacks it.
pub(super) fn mlp_layer_types(
    json: &ConfigJson,
    config: &Config,
    is_dense: impl Fn(usize) -> bool,
) -> Result<PerLayer<Option<usize>>> {
    let Some(types) = json.get::<Vec<String>>("mlp_layer_types")? else { return Ok(dense_layers(config, is_dense)) };
    if types.len() != config.n_layers {
        let why = format!("it must have one entry for each of the {} layers", config.n_layers);
        return Err(json.refuse("mlp_layer_types", format!("a list of {}", types.len()), &why));
    }
    if let Some(other) = types.iter().find(|name| !["dense", "sparse"].contains(&name.as_str())) {
        return Err(json.refuse("mlp_layer_types", other, "only dense and sparse are known"));
    }
    Ok(dense_layers(config, |layer| types[layer] == "dense"))
}

/// Qwen's choice of layers: those of `mlp_only_layers`, and all but each `decoder_sparse_step`-th, have one MLP.
pub(super) fn sparse_steps(json: &ConfigJson, config: &Config, default: &[usize]) -> Result<PerLayer<Option<usize>>> {
    let dense: Vec<usize> = json.get("mlp_only_layers")?.unwrap_or_else(|| default.to_vec());
    let step: usize = json.get_or("decoder_sparse_step", 1)?;
    Ok(dense_layers(config, |layer| dense.contains(&layer) || step == 0 || (layer + 1) % step != 0))
}

/// The first `first_k_dense_replace` layers have one MLP.
pub(super) fn first_dense(json: &ConfigJson, config: &Config, default: usize) -> Result<PerLayer<Option<usize>>> {
    let first = json.get_or("first_k_dense_replace", default)?;
    Ok(dense_layers(config, |layer| layer < first))
}

/// transformers' defaults for the mixtures of DeepSeek 3's relatives.
pub(super) struct Mixture {
    pub(super) experts: usize,
    pub(super) per_token: usize,
    pub(super) shared: usize,
    pub(super) width: usize,
    /// How many groups there are, and how many are kept.
    pub(super) groups: [usize; 2],
    pub(super) normalized: bool,
    pub(super) scale: f64,
}

/// DeepSeek 3's own.
pub(super) const DEEPSEEK_V3: Mixture =
    Mixture { experts: 256, per_token: 8, shared: 1, width: 2048, groups: [8, 4], normalized: true, scale: 2.5 };

/// Gives the model DeepSeek 3's mixture, but for these layers.
pub(super) fn set_deepseek_experts(
    json: &ConfigJson,
    config: &mut Config,
    default: &Mixture,
    dense: PerLayer<Option<usize>>,
) -> Result<()> {
    json.ignore(&["output_router_logits", "num_nextn_predict_layers", "num_mtp_layers"]);
    let width = json.get_or("moe_intermediate_size", default.width)?;
    let n_experts = json.get_any(&["n_routed_experts", "num_local_experts", "num_experts"])?;
    let n_shared = json.get_any(&["n_shared_experts", "num_shared_experts"])?.unwrap_or(default.shared);
    let per_token = json.get_or("num_experts_per_tok", default.per_token)?;
    let routing = deepseek_routing(json, default.groups, default.normalized, default.scale)?;
    let experts = Experts::new(n_experts.unwrap_or(default.experts), per_token, routing);
    set_experts(config, width, Experts { shared: shared(n_shared, width), dense, ..experts });
    Ok(())
}

/// DeepSeek 3's router: sigmoids, a bias that counts for the choice only, and groups ranked by their two best experts.
fn deepseek_routing(json: &ConfigJson, groups: [usize; 2], normalized: bool, scale: f64) -> Result<Routing> {
    json.expect_only("scoring_func", "sigmoid".to_string())?;
    json.expect_only("topk_method", "noaux_tc".to_string())?;
    let normalized = json.get_or("norm_topk_prob", normalized)?;
    Ok(Routing {
        choice_bias: Some(ChoiceBias::OnScores),
        groups: expert_groups(json, groups, GroupRank::TwoLargest)?,
        normalize: normalized.then_some(WeightNorm { p: 1.0, min: 1e-20 }),
        scale: json.get_or("routed_scaling_factor", scale)?,
        ..Routing::sigmoid()
    })
}

/// The groups of `n_group` and `topk_group`; none where all are kept.
pub(super) fn expert_groups(json: &ConfigJson, defaults: [usize; 2], rank: GroupRank) -> Result<Option<ExpertGroups>> {
    let (groups, kept) = (json.get_or("n_group", defaults[0])?, json.get_or("topk_group", defaults[1])?);
    Ok((groups != kept || groups == 0).then_some(ExpertGroups { groups, kept, rank }))
}

/// The router and the experts, each with tensors of its own.
pub(super) const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.mlp.gate.weight", AsIs),
    entry(Gate, "model.layers.{l}.mlp.experts.{e}.gate_proj.weight", AsIs),
    entry(In, "model.layers.{l}.mlp.experts.{e}.up_proj.weight", AsIs),
    entry(Out, "model.layers.{l}.mlp.experts.{e}.down_proj.weight", AsIs),
];

/// DeepSeek's bias of the choice.
pub(super) const CHOICE_BIAS: &[Entry] = &[entry(ChoiceB, "model.layers.{l}.mlp.gate.e_score_correction_bias", AsIs)];

/// One MLP for all shared experts.
pub(super) const SHARED_EXPERTS: &[Entry] = &[
    entry(SharedGate, "model.layers.{l}.mlp.shared_experts.gate_proj.weight", AsIs),
    entry(SharedIn, "model.layers.{l}.mlp.shared_experts.up_proj.weight", AsIs),
    entry(SharedOut, "model.layers.{l}.mlp.shared_experts.down_proj.weight", AsIs),
];

/// The biases of all shared experts.
pub(super) const SHARED_EXPERTS_BIASES: &[Entry] = &[
    entry(SharedGateB, "model.layers.{l}.mlp.shared_experts.gate_proj.bias", AsIs),
    entry(SharedInB, "model.layers.{l}.mlp.shared_experts.up_proj.bias", AsIs),
    entry(SharedOutB, "model.layers.{l}.mlp.shared_experts.down_proj.bias", AsIs),
];

/// The same under the name of one expert.
pub(super) const SHARED_EXPERT: &[Entry] = &[
    entry(SharedGate, "model.layers.{l}.mlp.shared_expert.gate_proj.weight", AsIs),
    entry(SharedIn, "model.layers.{l}.mlp.shared_expert.up_proj.weight", AsIs),
    entry(SharedOut, "model.layers.{l}.mlp.shared_expert.down_proj.weight", AsIs),
];
