//! TransformerLens' own configurations (`cfg.json`, its `HookedTransformerConfig` as a dictionary) and names of weights.

use serde::de::DeserializeOwned;

use super::ConfigJson;
use crate::config::{
    Activation, AttentionConfig, AttentionDir, ExpertGate, Experts, MlpConfig, MlpKind, NormConfig, Normalization,
    PerLayer, Positions, Reach, RopeScaling, Rotary, Routing,
};
use crate::model::part::Location;
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

/// Fields that say what is looked at, or where, rather than what is computed.
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
    "default_prepend_bos", // of the model, and read there
];

/// The shape that TransformerLens' dictionary describes.
pub(crate) fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(HARMLESS);
    json.only("load_in_4bit", false)?;
    json.only("use_logn_attn", false)?;
    json.only("use_dynamic_ntk_rope", false)?;
    json.only("use_qk_norm", false)?;
    json.only("use_normalization_before_and_after", false)?;
    json.only("post_embedding_ln", false)?;
    let (n_heads, d_vocab): (usize, usize) = (json.required("n_heads")?, json.required("d_vocab")?);
    let (n_layers, d_model, n_ctx) = (json.required("n_layers")?, json.required("d_model")?, json.required("n_ctx")?);
    let d_head = json.required("d_head")?;
    Ok(Config {
        model_name: json.or("model_name", "custom".into())?,
        original_architecture: json.get("original_architecture")?.unwrap_or_default(),
        d_head,
        n_key_value_heads: json.get("n_key_value_heads")?.unwrap_or(n_heads),
        d_vocab_out: unless_minus_one(json, "d_vocab_out")?.unwrap_or(d_vocab),
        attention: attention(json, n_layers)?,
        positions: positions(json, d_head)?,
        mlp: mlp(json)?,
        norms: norms(json)?,
        parallel_attn_mlp: json.or("parallel_attn_mlp", false)?,
        output_logits_soft_cap: unless_minus_one(json, "output_logits_soft_cap")?,
        tie_word_embeddings: json.or("tie_word_embeddings", false)?,
        ..Config::new(n_layers, d_model, n_heads, d_vocab, n_ctx)
    })
}

/// A number for which TransformerLens writes −1 where there is none.
fn unless_minus_one<T: DeserializeOwned>(json: &ConfigJson, field: &str) -> Result<Option<T>> {
    match json.get::<f64>(field)? {
        Some(-1.0) => Ok(None),
        _ => json.get(field),
    }
}

/// What a name stands for.
fn choice<T: Copy>(json: &ConfigJson, field: &str, default: &str, choices: &[(&str, T)]) -> Result<T> {
    let name: String = json.or(field, default.into())?;
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
        scale: match json.or("use_attn_scale", true)? {
            true => unless_minus_one(json, "attn_scale")?,
            false => Some(1.0),
        },
        scale_by_inverse_layer_idx: json.or("scale_attn_by_inverse_layer_idx", false)?,
        scores_soft_cap: unless_minus_one(json, "attn_scores_soft_cap")?,
        clip_qkv: json.get("clip_qkv")?,
        sinks: json.or("use_attention_sinks", false)?,
        qk_norm: None,
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
    let last = match (json.or("final_rms", false)?, kind) {
        (true, Normalization::LN) => Some(Normalization::RMS),
        (true, Normalization::LNPre) => Some(Normalization::RMSPre),
        _ => None,
    };
    Ok(NormConfig { last, eps: json.or("eps", 1e-5)?, ..NormConfig::new(kind) })
}

/// Which layers have a window.
fn reach(json: &ConfigJson, n_layers: usize) -> Result<PerLayer<Reach>> {
    json.ignore(&["attn_types", "window_size"]);
    if !json.or("use_local_attn", false)? {
        return Ok(PerLayer::default());
    }
    let types: Vec<String> = json.required("attn_types")?;
    if types.len() != n_layers {
        let why = format!("it must have one entry for each of the {n_layers} layers");
        return Err(json.refuse("attn_types", format!("a list of {}", types.len()), &why));
    }
    let reach = |name: &String| match name.as_str() {
        "global" => Ok(Reach::Global),
        "local" => json.required("window_size").map(Reach::Window),
        other => Err(json.refuse("attn_types", other, "expected global or local")),
    };
    Ok(PerLayer::from_layers(types.iter().map(reach).collect::<Result<_>>()?))
}

/// The MLPs; `None` for a model of attention only.
fn mlp(json: &ConfigJson) -> Result<Option<MlpConfig>> {
    json.ignore(&["d_mlp", "act_fn", "gated_mlp", "num_experts", "experts_per_token", "norm_topk_prob"]);
    if json.or("attn_only", false)? {
        return Ok(None);
    }
    let activation = match json.required::<String>("act_fn")?.as_str() {
        "solu_ln" => Activation::SoluLn,
        _ => json.activation(&["act_fn"], "relu")?,
    };
    let kind = match (json.get("num_experts")?, json.or("gated_mlp", false)?) {
        (Some(num_experts), _) => MlpKind::Experts(Experts {
            num_experts,
            experts_per_token: json.required("experts_per_token")?,
            routing: match json.or("norm_topk_prob", false)? {
                true => Routing::SoftmaxRenormalized,
                false => Routing::Softmax,
            },
            gate: ExpertGate::Plain,
        }),
        (None, true) => MlpKind::Gated,
        (None, false) => MlpKind::Plain,
    };
    Ok(Some(MlpConfig { d_mlp: json.required("d_mlp")?, activation, kind }))
}

fn positions(json: &ConfigJson, d_head: usize) -> Result<Positions> {
    json.ignore(ROTARY); // where positions are not rotary, these change nothing
    let kinds = ["standard", "rotary", "shortformer", "alibi"].map(|kind| (kind, kind));
    Ok(match choice(json, "positional_embedding_type", "standard", &kinds)? {
        "rotary" => Positions::rotary(rotary(json, d_head)?),
        "shortformer" => Positions::Shortformer,
        "alibi" => Positions::Alibi { bias_max: 8.0 },
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
    json.only("use_yarn_rope", false)?;
    json.only("rotary_scaling_factor", 1.0)?;
    if let Some(base) = json.get::<f64>("rotary_base_local")? {
        return Err(json.refuse("rotary_base_local", base, "another rotation of local layers is not supported here"));
    }
    let scaling = match json.or("use_NTK_by_parts_rope", false)? {
        true => RopeScaling::Llama3 {
            factor: json.or("NTK_by_parts_factor", 8.0)?,
            low_freq_factor: json.or("NTK_by_parts_low_freq_factor", 1.0)?,
            high_freq_factor: json.or("NTK_by_parts_high_freq_factor", 4.0)?,
            original_max_position_embeddings: json.or("NTK_original_ctx_len", 8192)?,
        },
        false => RopeScaling::None,
    };
    Ok(Rotary {
        dim: json.get("rotary_dim")?.unwrap_or(d_head),
        base: json.or("rotary_base", 10000.0)?,
        adjacent_pairs: json.or("rotary_adjacent_pairs", false)?,
        scaling,
    })
}

/// The entries of a state dict in which `has` says which tensors there are.
pub(crate) fn names(config: &Config, has: impl Fn(&str) -> bool) -> Vec<Entry> {
    // Matrices are always needed; biases, gains and positions where the state dict has them in its first block.
    let optional = |entry: &Entry| !matches!(entry.part, WE | Q | K | V | O | In | Out | U | Router);
    let needed = |entry: &Entry| match entry.part {
        WPos => config.has_w_pos(),
        Gate => config.gated_mlp(),
        _ => false,
    };
    let first = |entry: &Entry| has(&entry.tensor_name(Location::default(), 0));
    let table = table(config, has("blocks.0.attn._W_K"));
    table.into_iter().filter(|entry| !optional(entry) || needed(entry) || first(entry)).collect()
}

/// All that TransformerLens has names for; keys and values that query heads share have names of their own.
pub(crate) fn table(config: &Config, grouped: bool) -> Vec<Entry> {
    let mut all = vec![
        at(WE, "embed.W_E", AsIs),
        at(WPos, "pos_embed.W_pos", AsIs),
        at(EmbedLnW, "embed.ln.w", AsIs),
        at(EmbedLnB, "embed.ln.b", AsIs),
        at(Ln1W, "blocks.{l}.ln1.w", AsIs),
        at(Ln1B, "blocks.{l}.ln1.b", AsIs),
        at(Q, "blocks.{l}.attn.W_Q", Heads),
        at(QB, "blocks.{l}.attn.b_Q", Flat),
        at(K, if grouped { "blocks.{l}.attn._W_K" } else { "blocks.{l}.attn.W_K" }, Heads),
        at(KB, if grouped { "blocks.{l}.attn._b_K" } else { "blocks.{l}.attn.b_K" }, Flat),
        at(V, if grouped { "blocks.{l}.attn._W_V" } else { "blocks.{l}.attn.W_V" }, Heads),
        at(VB, if grouped { "blocks.{l}.attn._b_V" } else { "blocks.{l}.attn.b_V" }, Flat),
        at(QNormW, "blocks.{l}.attn.q_norm.w", AsIs),
        at(QNormB, "blocks.{l}.attn.q_norm.b", AsIs),
        at(KNormW, "blocks.{l}.attn.k_norm.w", AsIs),
        at(KNormB, "blocks.{l}.attn.k_norm.b", AsIs),
        at(Sinks, "blocks.{l}.attn.sinks", AsIs),
        at(O, "blocks.{l}.attn.W_O", HeadsOut),
        at(OB, "blocks.{l}.attn.b_O", AsIs),
        at(Ln1PostW, "blocks.{l}.ln1_post.w", AsIs),
        at(Ln1PostB, "blocks.{l}.ln1_post.b", AsIs),
        at(Ln2W, "blocks.{l}.ln2.w", AsIs),
        at(Ln2B, "blocks.{l}.ln2.b", AsIs),
        at(MlpLnW, "blocks.{l}.mlp.ln.w", AsIs),
        at(MlpLnB, "blocks.{l}.mlp.ln.b", AsIs),
        at(XieluAlphaP, "blocks.{l}.mlp.act_fn.alpha_p", AsIs),
        at(XieluAlphaN, "blocks.{l}.mlp.act_fn.alpha_n", AsIs),
        at(XieluPositive, "blocks.{l}.mlp.act_fn.positive", AsIs),
        at(XieluNegative, "blocks.{l}.mlp.act_fn.negative", AsIs),
        at(XieluBeta, "blocks.{l}.mlp.act_fn.beta", AsIs),
        at(XieluEps, "blocks.{l}.mlp.act_fn.eps", AsIs),
        at(Ln2PostW, "blocks.{l}.ln2_post.w", AsIs),
        at(Ln2PostB, "blocks.{l}.ln2_post.b", AsIs),
        at(LnFinalW, "ln_final.w", AsIs),
        at(LnFinalB, "ln_final.b", AsIs),
        at(U, "unembed.W_U", Transposed),
        at(UB, "unembed.b_U", AsIs),
    ];
    all.extend(if config.experts().is_some() { experts() } else { dense(config.gated_mlp()) });
    all
}

/// A plain or gated MLP; TransformerLens' bias of a gated one is added to the product.
fn dense(gated: bool) -> Vec<Entry> {
    let mut all = vec![
        at(In, "blocks.{l}.mlp.W_in", Transposed),
        at(Gate, "blocks.{l}.mlp.W_gate", Transposed),
        at(GateB, "blocks.{l}.mlp.b_gate", AsIs),
        at(Out, "blocks.{l}.mlp.W_out", Transposed),
        at(OutB, "blocks.{l}.mlp.b_out", AsIs),
    ];
    match gated {
        true => all.extend([at(ProductB, "blocks.{l}.mlp.b_in", AsIs), at(InB, "blocks.{l}.mlp.b_up", AsIs)]),
        false => all.push(at(InB, "blocks.{l}.mlp.b_in", AsIs)),
    }
    all
}

/// A mixture of experts, whose parts are `nn.Linear`s in TransformerLens.
fn experts() -> Vec<Entry> {
    vec![
        at(Router, "blocks.{l}.mlp.W_gate.weight", AsIs),
        at(RouterB, "blocks.{l}.mlp.W_gate.bias", AsIs),
        at(In, "blocks.{l}.mlp.experts.{e}.W_in.weight", AsIs),
        at(InB, "blocks.{l}.mlp.experts.{e}.W_in.bias", AsIs),
        at(Gate, "blocks.{l}.mlp.experts.{e}.W_gate.weight", AsIs),
        at(GateB, "blocks.{l}.mlp.experts.{e}.W_gate.bias", AsIs),
        at(Out, "blocks.{l}.mlp.experts.{e}.W_out.weight", AsIs),
        at(OutB, "blocks.{l}.mlp.experts.{e}.W_out.bias", AsIs),
    ]
}
