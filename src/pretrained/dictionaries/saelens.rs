//! SAELens' formats: `cfg.json` and `sae_weights.safetensors`, as version 6 and as earlier ones write them.

use std::path::Path;

use super::options::DictionaryOptions;
use super::tensors::{finished, point, read_fields, Orientation, Tensors};
use crate::format::safetensors;
use crate::pretrained::config_json::ConfigJson;
use crate::sae::{Dictionary, DictionaryConfig, Encoder, FeatureActivation, InputNormalization};
use crate::{Error, Result};

pub(super) const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae_weights.safetensors";

/// Fields that only training, or only people, use.
const HARMLESS: &[&str] = &[
    "device",
    "dtype",
    "context_size",
    "dataset_path",
    "dataset_trust_remote_code",
    "hook_layer",
    "hook_point_layer",
    "neuronpedia_id",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "sae_lens_training_version",
    "sae_lens_version",
    "seqpos_slice",
    "exclude_special_tokens",
    "sequence_separator_token",
    "disable_concat_sequences",
    "training_architecture",
    "training_architecture_details",
    "decoder_init_norm",
    "use_sparse_activations",
    "aux_loss_coefficient",
    "topk_threshold_lr",
    "matryoshka_widths",
    "use_matryoshka_aux_loss",
    "l0_coefficient",
    "l0_warm_up_steps",
    "l1_coefficient",
    "l1_warm_up_steps",
    "lp_norm",
    "mse_loss_normalization",
    "noise_std",
    "noise_scale",
    "pre_act_loss_coefficient",
    "jumprelu_bandwidth",
    "jumprelu_init_threshold",
    "jumprelu_sparsity_loss_mode",
    "jumprelu_tanh_scale",
    "tokens_seen",
    "sparsity",
];

pub(super) fn open(folder: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let path = folder.join(CONFIG);
    let json = ConfigJson::new(read_fields(&path)?);
    json.ignore(HARMLESS);
    let tensors = Tensors::open(&folder.join(WEIGHTS), safetensors::entries, options)?;
    let read = || -> Result<Dictionary> {
        let metadata = json.object("metadata")?;
        let about = metadata.as_ref().unwrap_or(&json);
        about.ignore(HARMLESS);
        let is_legacy = metadata.is_none();
        let config = config(&json, about, is_legacy, options)?;
        let d_sae: i64 = json.require("d_sae")?;
        let d_in: i64 = json.require("d_in")?;
        let d_out: i64 = json.get_or("d_out", d_in)?;
        let unread = json.unread();
        if !unread.is_empty() {
            let what = format!(
                "this reader does not know the fields {}, which might change what is computed",
                unread.join(", ")
            );
            return Err(Error::malformed(&path, what));
        }
        let gated = config.activation == FeatureActivation::Gated;
        let threshold = match (tensors.get("threshold")?, tensors.get("log_threshold")?) {
            (None, Some(logarithm)) => Some(logarithm.f_exp()?),
            (threshold, _) => threshold,
        };
        let encoder = Encoder {
            w_enc: tensors.by_feature("W_enc", Orientation::ByColumn)?,
            b_enc: tensors.need(if gated { "b_mag" } else { "b_enc" })?,
            b_dec: tensors.need("b_dec")?,
            w_skip: tensors.get("W_skip")?,
            threshold,
            b_gate: tensors.get("b_gate")?,
            r_mag: tensors.get("r_mag")?,
        };
        let expected = [encoder.w_enc.size(), encoder.b_dec.size()];
        if expected != [vec![d_sae, d_in], vec![d_out]] {
            let what = format!(
                "`W_enc` (transposed) and `b_dec` have shapes {:?} and {:?}, but {CONFIG} says d_in {d_in}, d_sae {d_sae}, d_out {d_out}",
                expected[0], expected[1]
            );
            return Err(tensors.malformed(what));
        }
        // What training keeps beside the weights.
        for name in ["topk_threshold", "n_forward_passes_since_fired"] {
            tensors.skip(name);
        }
        if let Some(factor) = tensors.get("scaling_factor")?
            && !bool::try_from(factor.f_eq_tensor(&factor.f_ones_like()?)?.f_all()?)?
        {
            return Err(tensors.malformed("its `scaling_factor` of finetuning is not 1, which is not supported"));
        }
        let decoder = tensors.decoder("W_dec", Orientation::ByFeature, None)?;
        finished(config, encoder, decoder)
    };
    let dictionary = read()?;
    tensors.finish()?;
    Ok(dictionary)
}

/// What the file says of the architecture.
fn config(
    json: &ConfigJson,
    about: &ConfigJson,
    is_legacy: bool,
    options: &DictionaryOptions,
) -> Result<DictionaryConfig> {
    let architecture: String = json.get_or("architecture", "standard".to_string())?;
    let hook_in: String = about
        .get_any(&["hook_name", "hook_point"])?
        .ok_or_else(|| about.refuse("hook_name", "absent", "it is needed here"))?;
    let hook_out: Option<String> = about.get("hook_name_out")?;
    let head: Option<i64> = about.get_any(&["hook_head_index", "hook_point_head_index"])?;
    if let Some(head) = head {
        return Err(about.refuse("hook_head_index", head, "dictionaries of a single head are not supported"));
    }
    json.expect_only("finetuning_scaling_factor", false)?;
    let (kind, transcoder) =
        match architecture.strip_suffix("skip_transcoder").or_else(|| architecture.strip_suffix("transcoder")) {
            Some(kind) => (kind.trim_end_matches('_'), true),
            None => (architecture.as_str(), false),
        };
    let k = || -> Result<f64> {
        let kwargs = json.object("activation_fn_kwargs")?;
        match (json.get("k")?, kwargs) {
            (Some(k), _) => Ok(k),
            (None, Some(kwargs)) => kwargs.require("k"),
            (None, None) => json.require("k"),
        }
    };
    let function: Option<String> = json.get_any(&["activation_fn_str", "activation_fn"])?;
    json.ignore(&["activation_fn_kwargs"]);
    let whole = |k: f64| match k >= 1.0 && k.fract() == 0.0 && k < u32::MAX as f64 {
        true => Ok(k as usize),
        false => Err(json.refuse("k", k, "it must be a whole number of features")),
    };
    let activation = match (kind, function.as_deref()) {
        ("standard" | "", None | Some("relu")) => FeatureActivation::Relu,
        ("standard" | "", Some("tanh-relu")) => FeatureActivation::TanhRelu,
        ("topk", None | Some("relu" | "topk")) | ("standard", Some("topk")) => FeatureActivation::TopK(whole(k()?)?),
        ("abstopk", None) => FeatureActivation::AbsTopK(whole(k()?)?),
        ("batchtopk" | "matryoshka_batchtopk", None) => FeatureActivation::BatchTopK(k()?),
        ("gated", None | Some("relu")) => FeatureActivation::Gated,
        ("jumprelu", None | Some("relu")) => FeatureActivation::JumpRelu,
        (_, Some(other)) if !matches!(other, "relu") => {
            return Err(json.refuse(
                "activation_fn",
                other,
                "this activation function is not supported for this architecture",
            ))
        }
        _ => {
            return Err(json.refuse(
                "architecture",
                &architecture,
                "this architecture is not supported by this version of the crate",
            ))
        }
    };
    let normalization: Option<String> = json.get("normalize_activations")?;
    let normalization = match normalization.as_deref() {
        None | Some("none" | "expected_average_only_in") => InputNormalization::None,
        Some("layer_norm") => InputNormalization::LayerNorm,
        Some("constant_norm_rescale") => InputNormalization::ConstantNorm,
        Some(other) => return Err(json.refuse("normalize_activations", other, "this normalisation is not supported")),
    };
    let reshape: Option<String> = json.get("reshape_activations")?;
    let flatten_heads = match reshape.as_deref() {
        None => is_legacy && hook_in.ends_with("hook_z"),
        Some("none") => false,
        Some("hook_z") => true,
        Some(other) => return Err(json.refuse("reshape_activations", other, "only `none` and `hook_z` are supported")),
    };
    let place =
        |field: &str, name: &str| point(name).ok_or_else(|| about.refuse(field, name, "it names no hook point"));
    let read = place("hook_name", &hook_in)?;
    let out = match (transcoder, hook_out) {
        (true, Some(out)) => place("hook_name_out", &out)?,
        (true, None) if options.hook_out.is_none() => {
            return Err(about.refuse(
                "hook_name_out",
                "absent",
                "a transcoder needs it: give it with `DictionaryOptions::hook_out`",
            ))
        }
        _ => read,
    };
    Ok(DictionaryConfig {
        hook_in: options.hook_in.unwrap_or(read),
        hook_out: options.hook_out.unwrap_or(if transcoder { out } else { options.hook_in.unwrap_or(out) }),
        activation,
        normalization,
        apply_b_dec_to_input: json.get_or("apply_b_dec_to_input", is_legacy || !transcoder)?,
        rescale_by_decoder_norm: json.get_or("rescale_acts_by_decoder_norm", false)?,
        flatten_heads,
        model_name: about.get("model_name")?,
    })
}
