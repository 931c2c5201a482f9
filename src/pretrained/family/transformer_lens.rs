//! TransformerLens' own form: `cfg.json`, which is its `HookedTransformerConfig` as a dictionary, and its names of weights.

use serde::de::DeserializeOwned;

use super::ConfigJson;
use crate::config::{
    Activation, AttentionConfig, AttentionDir, Experts, LatentAttention, MlpConfig, MlpKind, NormConfig, Normalization,
    PerLayer, Positions, Reach, RopeScaling, Rotary, Routing, Stack,
};
use crate::model::part::{Location, Role};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

/// Fields that do not change what is computed.
const HARMLESS: &[&str] = &[
    "use_attn_result",
    "use_split_qkv_input",
    "use_hook_mlp_in",
    "use_attn_in",
    "ungroup_grouped_query_attention",
    "uses_rms_norm",
    "layer_norm_folding",
    "train_seq_length",
    "from_checkpoint",
    "checkpoint_index",
    "checkpoint_label_type",
    "checkpoint_value",
    "tokenizer_name",
    "tokenizer_prepends_bos",
    "init_mode",
    "quantization_method",
    "seed",
    "init_weights",
    "n_params",
    "trust_remote_code",
    "device",
    "n_devices",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "d_vocab_out_is_set",
    "use_hook_tokens",
    "initializer_range",
    "default_prepend_bos", // not a part of the shape: the loader reads it
];

/// The shape that TransformerLens' dictionary describes.
pub(crate) fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(HARMLESS);
    json.expect_only("load_in_4bit", false)?;
    json.expect_only("use_logn_attn", false)?;
    json.expect_only("use_dynamic_ntk_rope", false)?;
    json.expect_only("use_qk_norm", false)?;
    json.expect_only("use_normalization_before_and_after", false)?;
    json.expect_only("post_embedding_ln", false)?;
    let (n_heads, d_vocab): (usize, usize) = (json.require("n_heads")?, json.require("d_vocab")?);
    let (n_layers, d_model, n_ctx) = (json.require("n_layers")?, json.require("d_model")?, json.require("n_ctx")?);
    let d_head = json.require("d_head")?;
    Ok(Config {
        model_name: json.get_or("model_name", "custom".into())?,
        original_architecture: json.get("original_architecture")?.unwrap_or_default(),
        d_head,
        n_key_value_heads: json.get("n_key_value_heads")?.unwrap_or(n_heads),
        d_vocab_out: unless_minus_one(json, "d_vocab_out")?.unwrap_or(d_vocab),
        attention: attention(json, n_layers)?,
        positions: positions(json, d_head)?,
        mlp: mlp(json)?,
        norms: norms(json)?,
        parallel_attn_mlp: json.get_or("parallel_attn_mlp", false)?,
        output_logits_soft_cap: unless_minus_one(json, "output_logits_soft_cap")?,
        tie_word_embeddings: json.get_or("tie_word_embeddings", false)?,
        ..Config::new(n_layers, d_model, n_heads, d_vocab, n_ctx)
    })
}

/// A number that TransformerLens writes as −1 where it is not set.
fn unless_minus_one<T: DeserializeOwned>(json: &ConfigJson, field: &str) -> Result<Option<T>> {
    match json.get::<f64>(field)? {
        Some(-1.0) => Ok(None),
        _ => json.get(field),
    }
}

/// The value that a field's name stands for.
fn choice<T: Copy>(json: &ConfigJson, field: &str, default: &str, choices: &[(&str, T)]) -> Result<T> {
    let name: String = json.get_or(field, default.into())?;
    let found = choices.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let known: Vec<&str> = choices.iter().map(|(known, _)| *known).filter(|known| !known.is_empty()).collect();
        json.refuse(field, name, &format!("expected one of {}", known.join(", ")))
    })
}

fn attention(json: &ConfigJson, n_layers: usize) -> Result<AttentionConfig> {
    json.ignore(&["attn_scale"]);
    Ok(AttentionConfig {
        direction: choice(
            json,
            "attention_dir",
            "causal",
            &[("causal", AttentionDir::Causal), ("bidirectional", AttentionDir::Bidirectional)],
        )?,
        reach: reach(json, n_layers)?,
        scale: match json.get_or("use_attn_scale", true)? {
            true => unless_minus_one(json, "attn_scale")?,
            false => Some(1.0),
        },
        scale_by_inverse_layer_idx: json.get_or("scale_attn_by_inverse_layer_idx", false)?,
        scores_soft_cap: unless_minus_one(json, "attn_scores_soft_cap")?,
        clip_qkv: json.get("clip_qkv")?,
        sinks: json.get_or("use_attention_sinks", false)?,
        ..AttentionConfig::default()
    })
}

fn norms(json: &ConfigJson) -> Result<NormConfig> {
    let kinds = [
        ("", Normalization::None), // `null` there
        ("LN", Normalization::LN),
        ("LNPre", Normalization::LNPre),
        ("RMS", Normalization::RMS),
        ("RMSPre", Normalization::RMSPre),
    ];
    let kind = choice(json, "normalization_type", "", &kinds)?;
    let last = match (json.get_or("final_rms", false)?, kind) {
        (true, Normalization::LN) => Some(Normalization::RMS),
        (true, Normalization::LNPre) => Some(Normalization::RMSPre),
        _ => None,
    };
    Ok(NormConfig { last, eps: json.get_or("eps", 1e-5)?, ..NormConfig::new(kind) })
}

/// How far each layer reaches.
fn reach(json: &ConfigJson, n_layers: usize) -> Result<PerLayer<Reach>> {
    json.ignore(&["attn_types", "window_size"]);
    if !json.get_or("use_local_attn", false)? {
        return Ok(PerLayer::default());
    }
    let types: Vec<String> = json.require("attn_types")?;
    if types.len() != n_layers {
        let why = format!("it must have one entry for each of the {n_layers} layers");
        return Err(json.refuse("attn_types", format!("a list of {}", types.len()), &why));
    }
    let reach = |name: &String| match name.as_str() {
        "global" => Ok(Reach::Global),
        "local" => json.require("window_size").map(Reach::Window),
        other => Err(json.refuse("attn_types", other, "expected global or local")),
    };
    Ok(PerLayer::from_layers(types.iter().map(reach).collect::<Result<_>>()?))
}

/// The MLPs; `None` for a model of attention only.
fn mlp(json: &ConfigJson) -> Result<Option<MlpConfig>> {
    json.ignore(&["d_mlp", "act_fn", "gated_mlp", "num_experts", "experts_per_token", "norm_topk_prob"]);
    if json.get_or("attn_only", false)? {
        return Ok(None);
    }
    let activation = match json.require::<String>("act_fn")?.as_str() {
        "solu_ln" => Activation::SoluLn,
        _ => json.activation(&["act_fn"], "relu")?,
    };
    let kind = match (json.get("num_experts")?, json.get_or("gated_mlp", false)?) {
        (Some(num_experts), _) => {
            let routing = Routing::softmax().normalized_if(json.get_or("norm_topk_prob", false)?);
            MlpKind::Experts(Experts::new(num_experts, json.require("experts_per_token")?, routing))
        }
        (None, true) => MlpKind::Gated,
        (None, false) => MlpKind::Plain,
    };
    Ok(Some(MlpConfig { d_mlp: json.require("d_mlp")?, activation, kind, widths: PerLayer::default(), norm: None }))
}

fn positions(json: &ConfigJson, d_head: usize) -> Result<Positions> {
    json.ignore(ROTARY); // these change nothing where positions are not rotary
    let kinds = ["standard", "rotary", "shortformer", "alibi"].map(|kind| (kind, kind));
    Ok(match choice(json, "positional_embedding_type", "standard", &kinds)? {
        "rotary" => Positions::rotary(rotary(json, d_head)?),
        "shortformer" => Positions::Shortformer,
        "alibi" => Positions::alibi(8.0),
        _ => Positions::Learned,
    })
}

/// Fields of a rotation.
const ROTARY: &[&str] = &[
    "NTK_by_parts_factor",
    "NTK_by_parts_high_freq_factor",
    "NTK_by_parts_low_freq_factor",
    "NTK_original_ctx_len",
    "rotary_adjacent_pairs",
    "rotary_base",
    "rotary_base_local",
    "rotary_dim",
    "rotary_scaling_factor",
    "use_NTK_by_parts_rope",
    "use_yarn_rope",
    "yarn_attention_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_factor",
    "yarn_global_attn_only",
    "yarn_original_max_position_embeddings",
    "yarn_truncate",
];

fn rotary(json: &ConfigJson, d_head: usize) -> Result<Rotary> {
    json.expect_only("use_yarn_rope", false)?;
    json.expect_only("rotary_scaling_factor", 1.0)?;
    if let Some(base) = json.get::<f64>("rotary_base_local")? {
        return Err(json.refuse("rotary_base_local", base, "another rotation of local layers is not supported here"));
    }
    let scaling = match json.get_or("use_NTK_by_parts_rope", false)? {
        true => RopeScaling::Llama3 {
            factor: json.get_or("NTK_by_parts_factor", 8.0)?,
            low_freq_factor: json.get_or("NTK_by_parts_low_freq_factor", 1.0)?,
            high_freq_factor: json.get_or("NTK_by_parts_high_freq_factor", 4.0)?,
            original_max_position_embeddings: json.get_or("NTK_original_ctx_len", 8192)?,
        },
        false => RopeScaling::None,
    };
    Ok(Rotary {
        dim: json.get("rotary_dim")?.unwrap_or(d_head),
        base: json.get_or("rotary_base", 10000.0)?,
        adjacent_pairs: json.get_or("rotary_adjacent_pairs", false)?,
        reversed: false,
        pairs: None,
        scaling,
    })
}

/// The entries of a state dict in which `has` says which tensors there are.
pub(crate) fn names(config: &Config, has: impl Fn(&str) -> bool) -> Vec<Entry> {
    // Matrices are always needed; biases, gains and positions where the state dict has them in a block.
    let needed = |entry: &Entry| match entry.part {
        WPos => config.has_w_pos() && !matches!(config.positions, Positions::Sinusoidal(_)),
        Gate => config.gated_mlp(),
        WTokenType => config.embed.token_types > 0,
        WTaskType => config.embed.task_types > 0,
        WDistance => config.attention.disentangled.is_some(),
        DistanceK => config.attention.disentangled.is_some_and(|it| it.content_to_position && !it.shares_weights),
        DistanceQ => config.attention.disentangled.is_some_and(|it| it.position_to_content && !it.shares_weights),
        EmbedProject => config.embed.width.is_some(),
        HeadW => config.head.is_some(),
        part => part.role() == Role::Matrix,
    };
    let some_block = |entry: &Entry| {
        let mut layers = if entry.name.contains("{l}") { 0..config.n_layers } else { 0..1 };
        layers.any(|layer| has(&entry.tensor_name(Location::block(layer), 0)))
    };
    let table = table(config, has("blocks.0.attn._W_K"));
    table.into_iter().filter(|entry| needed(entry) || some_block(entry)).collect()
}

/// All that TransformerLens has names for; keys and values that query heads share have names of their own.
pub(crate) fn table(config: &Config, grouped: bool) -> Vec<Entry> {
    let normed = usize::from(config.norms.bare_first_attention); // the first block whose attention has a norm
    let mut all = vec![
        entry(WE, "embed.W_E", AsIs),
        entry(WPos, "pos_embed.W_pos", AsIs),
        entry(WTokenType, "embed.token_type_embed.W_token_type", AsIs),
        entry(WTaskType, "embed.W_task_type", AsIs),
        entry(WDistance, "embed.W_distance", AsIs),
        entry(DistanceLnW, "embed.distance_ln.w", AsIs),
        entry(DistanceLnB, "embed.distance_ln.b", AsIs),
        entry(DistanceK, "blocks.{l}.attn.distance_k.weight", AsIs),
        entry(DistanceKB, "blocks.{l}.attn.distance_k.bias", AsIs),
        entry(DistanceQ, "blocks.{l}.attn.distance_q.weight", AsIs),
        entry(DistanceQB, "blocks.{l}.attn.distance_q.bias", AsIs),
        entry(EmbedProject, "embed.project.W", Transposed),
        entry(EmbedProjectB, "embed.project.b", AsIs),
        entry(EmbedLnW, "embed.ln.w", AsIs),
        entry(EmbedLnB, "embed.ln.b", AsIs),
        entry(Ln1W, "blocks.{l}.ln1.w", AsIs).in_blocks(normed..usize::MAX),
        entry(Ln1B, "blocks.{l}.ln1.b", AsIs).in_blocks(normed..usize::MAX),
        entry(QNormW, "blocks.{l}.attn.q_norm.w", AsIs),
        entry(QNormB, "blocks.{l}.attn.q_norm.b", AsIs),
        entry(KNormW, "blocks.{l}.attn.k_norm.w", AsIs),
        entry(KNormB, "blocks.{l}.attn.k_norm.b", AsIs),
        entry(Sinks, "blocks.{l}.attn.sinks", AsIs),
        entry(LambdaQ1, "blocks.{l}.attn.lambda_q1", AsIs),
        entry(LambdaK1, "blocks.{l}.attn.lambda_k1", AsIs),
        entry(LambdaQ2, "blocks.{l}.attn.lambda_q2", AsIs),
        entry(LambdaK2, "blocks.{l}.attn.lambda_k2", AsIs),
        entry(ZNormW, "blocks.{l}.attn.z_norm.w", AsIs),
        entry(ZNormB, "blocks.{l}.attn.z_norm.b", AsIs),
        entry(O, "blocks.{l}.attn.W_O", HeadsOut),
        entry(OB, "blocks.{l}.attn.b_O", AsIs),
        entry(Ln1PostW, "blocks.{l}.ln1_post.w", AsIs),
        entry(Ln1PostB, "blocks.{l}.ln1_post.b", AsIs),
        entry(MlpLnW, "blocks.{l}.mlp.ln.w", AsIs),
        entry(MlpLnB, "blocks.{l}.mlp.ln.b", AsIs),
        entry(XieluAlphaP, "blocks.{l}.mlp.act_fn.alpha_p", AsIs),
        entry(XieluAlphaN, "blocks.{l}.mlp.act_fn.alpha_n", AsIs),
        entry(XieluPositive, "blocks.{l}.mlp.act_fn.positive", AsIs),
        entry(XieluNegative, "blocks.{l}.mlp.act_fn.negative", AsIs),
        entry(XieluBeta, "blocks.{l}.mlp.act_fn.beta", AsIs),
        entry(XieluEps, "blocks.{l}.mlp.act_fn.eps", AsIs),
        entry(LnFinalW, "ln_final.w", AsIs),
        entry(LnFinalB, "ln_final.b", AsIs),
        entry(HeadW, "mlm_head.W", Transposed),
        entry(HeadB, "mlm_head.b", AsIs),
        entry(HeadLnW, "mlm_head.ln.w", AsIs),
        entry(HeadLnB, "mlm_head.ln.b", AsIs),
    ];
    if config.stack != Stack::Encoder {
        all.extend([entry(U, "unembed.W_U", Transposed), entry(UB, "unembed.b_U", AsIs)]);
    }
    all.extend(match config.attention.cross {
        None => {
            norms_of_mlp(["blocks.{l}.ln2.w", "blocks.{l}.ln2.b", "blocks.{l}.ln2_post.w", "blocks.{l}.ln2_post.b"])
        }
        Some(_) => {
            norms_of_mlp(["blocks.{l}.ln3.w", "blocks.{l}.ln3.b", "blocks.{l}.ln3_post.w", "blocks.{l}.ln3_post.b"])
        }
    });
    if config.attention.cross.is_some() {
        all.extend(cross_attention(grouped));
    }
    if let Some(bias) = config.attention.relative_bias {
        let last = if bias.per_layer { usize::MAX } else { 1 };
        all.push(entry(RelativeBias, "blocks.{l}.attn.rel_pos_bias.weight", AsIs).in_blocks(0..last));
    }
    if config.stream.layer_embedding.is_some() {
        all.extend([
            entry(PleTable, "embed.ple.W_E", AsIs),
            entry(PleProjection, "embed.ple.projection.weight", AsIs),
            entry(PleProjectionNormW, "embed.ple.norm.w", AsIs),
            entry(PleGate, "blocks.{l}.ple.gate.weight", AsIs),
            entry(PleOut, "blocks.{l}.ple.out.weight", AsIs),
            entry(PleLnW, "blocks.{l}.ple.ln.w", AsIs),
        ]);
    }
    if config.stream.gains {
        all.push(entry(AttnStreamW, "blocks.{l}.attn_stream.w", AsIs));
        all.push(entry(MlpStreamW, "blocks.{l}.mlp_stream.w", AsIs));
    }
    if config.attention.dynamic_mask.is_some() {
        all.push(entry(DynamicA, "blocks.{l}.attn.dynamic_mask.A", AsIs));
        all.push(entry(DynamicDt, "blocks.{l}.attn.dynamic_mask.dt.weight", AsIs));
        all.push(entry(DynamicDtB, "blocks.{l}.attn.dynamic_mask.dt.bias", AsIs));
    }
    if config.attention.indexer.is_some() {
        all.extend([
            entry(IndexQ, "blocks.{l}.attn.indexer.q.weight", AsIs),
            entry(IndexK, "blocks.{l}.attn.indexer.k.weight", AsIs),
            entry(IndexKB, "blocks.{l}.attn.indexer.k.bias", AsIs),
            entry(IndexKNormW, "blocks.{l}.attn.indexer.k_norm.w", AsIs),
            entry(IndexKNormB, "blocks.{l}.attn.indexer.k_norm.b", AsIs),
            entry(IndexWeights, "blocks.{l}.attn.indexer.weights.weight", AsIs),
            entry(IndexWeightsB, "blocks.{l}.attn.indexer.weights.bias", AsIs),
        ]);
    }
    if config.stream.layer_scalars {
        all.push(entry(LayerScalar, "blocks.{l}.layer_scalar", AsIs));
    }
    if config.attention.experts.is_some() {
        all.push(entry(HeadRouter, "blocks.{l}.attn.router.weight", AsIs));
    }
    if config.attention.gate.is_some() {
        all.push(entry(HeadGate, "blocks.{l}.attn.W_gate.weight", AsIs));
        all.push(entry(HeadGateB, "blocks.{l}.attn.W_gate.bias", AsIs));
    }
    all.extend(queries_keys_and_values(config, grouped));
    all.extend(if config.experts().is_some() { experts() } else { dense(config.gated_mlp()) });
    if let Some(experts) = config.experts() {
        all.extend(beside_experts(config, experts));
    }
    all
}

/// The norms of the MLP, which are the third ones of a decoder.
fn norms_of_mlp(names: [&'static str; 4]) -> Vec<Entry> {
    let parts = [Ln2W, Ln2B, Ln2PostW, Ln2PostB];
    parts.into_iter().zip(names).map(|(part, name)| entry(part, name, AsIs)).collect()
}

/// A decoder's attention to the output of an encoder.
fn cross_attention(grouped: bool) -> Vec<Entry> {
    vec![
        entry(CrossLnW, "blocks.{l}.ln2.w", AsIs),
        entry(CrossLnB, "blocks.{l}.ln2.b", AsIs),
        entry(CrossLnPostW, "blocks.{l}.ln2_post.w", AsIs),
        entry(CrossLnPostB, "blocks.{l}.ln2_post.b", AsIs),
        entry(CrossQ, "blocks.{l}.cross_attn.W_Q", Heads),
        entry(CrossQB, "blocks.{l}.cross_attn.b_Q", Flat),
        entry(CrossK, if grouped { "blocks.{l}.cross_attn._W_K" } else { "blocks.{l}.cross_attn.W_K" }, Heads),
        entry(CrossKB, if grouped { "blocks.{l}.cross_attn._b_K" } else { "blocks.{l}.cross_attn.b_K" }, Flat),
        entry(CrossV, if grouped { "blocks.{l}.cross_attn._W_V" } else { "blocks.{l}.cross_attn.W_V" }, ValueHeads),
        entry(CrossVB, if grouped { "blocks.{l}.cross_attn._b_V" } else { "blocks.{l}.cross_attn.b_V" }, ValueFlat),
        entry(CrossO, "blocks.{l}.cross_attn.W_O", HeadsOut),
        entry(CrossOB, "blocks.{l}.cross_attn.b_O", AsIs),
    ]
}

/// What queries, keys and values are made of.
fn queries_keys_and_values(config: &Config, grouped: bool) -> Vec<Entry> {
    let queries = [entry(Q, "blocks.{l}.attn.W_Q", Heads), entry(QB, "blocks.{l}.attn.b_Q", Flat)];
    let query_latent = [
        entry(QDown, "blocks.{l}.attn.q_down.weight", AsIs),
        entry(QDownB, "blocks.{l}.attn.q_down.bias", AsIs),
        entry(QLatentW, "blocks.{l}.attn.q_latent_norm.w", AsIs),
        entry(QUp, "blocks.{l}.attn.q_up.weight", AsIs),
    ];
    let latent = [
        entry(KvDown, "blocks.{l}.attn.kv_down.weight", AsIs),
        entry(KvDownB, "blocks.{l}.attn.kv_down.bias", AsIs),
        entry(KvLatentW, "blocks.{l}.attn.kv_latent_norm.w", AsIs),
        entry(KvUp, "blocks.{l}.attn.kv_up.weight", AsIs),
    ];
    match config.attention.latent {
        Some(LatentAttention { query_rank: Some(_), .. }) => [query_latent, latent].concat(),
        Some(_) => [queries.as_slice(), &latent].concat(),
        None => vec![
            queries[0],
            queries[1],
            entry(K, if grouped { "blocks.{l}.attn._W_K" } else { "blocks.{l}.attn.W_K" }, Heads),
            entry(KB, if grouped { "blocks.{l}.attn._b_K" } else { "blocks.{l}.attn.b_K" }, Flat),
            entry(V, if grouped { "blocks.{l}.attn._W_V" } else { "blocks.{l}.attn.W_V" }, ValueHeads),
            entry(VB, if grouped { "blocks.{l}.attn._b_V" } else { "blocks.{l}.attn.b_V" }, ValueFlat),
        ],
    }
}

/// The layers of a mixture that have one MLP, and the shared expert, for which TransformerLens has no names.
fn beside_experts(config: &Config, experts: &Experts) -> Vec<Entry> {
    let mut all = Vec::new();
    if experts.dense.values().iter().any(Option::is_some) {
        all.extend(dense(config.gated_mlp()));
    }
    all.push(entry(MixtureB, "blocks.{l}.mlp.bias", AsIs));
    if experts.routing.choice_bias.is_some() {
        all.push(entry(ChoiceB, "blocks.{l}.mlp.choice_bias", AsIs));
    }
    if experts.separate_norms {
        all.extend([
            entry(RouterInputW, "blocks.{l}.mlp.W_gate.input_gain", AsIs),
            entry(ExpertsInputW, "blocks.{l}.mlp.experts_input_gain", AsIs),
            entry(SharedInputW, "blocks.{l}.mlp.shared.input_gain", AsIs),
            entry(ExpertScale, "blocks.{l}.mlp.expert_scale", AsIs),
            entry(ExpertsLnW, "blocks.{l}.mlp.experts_ln.w", AsIs),
            entry(SharedLnW, "blocks.{l}.mlp.shared_ln.w", AsIs),
        ]);
    }
    if let Some(shared) = experts.shared {
        all.push(entry(SharedIn, "blocks.{l}.mlp.shared.W_in.weight", AsIs));
        all.push(entry(SharedInB, "blocks.{l}.mlp.shared.W_in.bias", AsIs));
        all.push(entry(SharedGate, "blocks.{l}.mlp.shared.W_gate.weight", AsIs));
        all.push(entry(SharedGateB, "blocks.{l}.mlp.shared.W_gate.bias", AsIs));
        all.push(entry(SharedOut, "blocks.{l}.mlp.shared.W_out.weight", AsIs));
        all.push(entry(SharedOutB, "blocks.{l}.mlp.shared.W_out.bias", AsIs));
        if shared.gated {
            all.push(entry(SharedWeight, "blocks.{l}.mlp.shared.weight", AsIs));
        }
    }
    all
}

/// A plain or gated MLP; TransformerLens' bias of a gated one is added to the product.
fn dense(gated: bool) -> Vec<Entry> {
    let mut all = vec![
        entry(In, "blocks.{l}.mlp.W_in", Transposed),
        entry(Gate, "blocks.{l}.mlp.W_gate", Transposed),
        entry(GateB, "blocks.{l}.mlp.b_gate", AsIs),
        entry(Out, "blocks.{l}.mlp.W_out", Transposed),
        entry(OutB, "blocks.{l}.mlp.b_out", AsIs),
    ];
    match gated {
        true => all.extend([entry(ProductB, "blocks.{l}.mlp.b_in", AsIs), entry(InB, "blocks.{l}.mlp.b_up", AsIs)]),
        false => all.push(entry(InB, "blocks.{l}.mlp.b_in", AsIs)),
    }
    all
}

/// A mixture of experts, whose parts are `nn.Linear`s in TransformerLens.
fn experts() -> Vec<Entry> {
    vec![
        entry(Router, "blocks.{l}.mlp.W_gate.weight", AsIs),
        entry(RouterB, "blocks.{l}.mlp.W_gate.bias", AsIs),
        entry(In, "blocks.{l}.mlp.experts.{e}.W_in.weight", AsIs),
        entry(InB, "blocks.{l}.mlp.experts.{e}.W_in.bias", AsIs),
        entry(Gate, "blocks.{l}.mlp.experts.{e}.W_gate.weight", AsIs),
        entry(GateB, "blocks.{l}.mlp.experts.{e}.W_gate.bias", AsIs),
        entry(Out, "blocks.{l}.mlp.experts.{e}.W_out.weight", AsIs),
        entry(OutB, "blocks.{l}.mlp.experts.{e}.W_out.bias", AsIs),
    ]
}
