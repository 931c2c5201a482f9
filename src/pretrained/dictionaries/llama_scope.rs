//! Llama Scope's format: `hyperparams.json`, and the weights in `checkpoints/`.
//!
//! What is done to the weights is what the authors' own library does when it loads them (`SparseAutoEncoder.from_config` of
//! github.com/OpenMOSS/Language-Model-SAEs, version of November 2024).

use std::path::{Path, PathBuf};

use super::options::DictionaryOptions;
use super::tensors::{finished, point, read_fields, Orientation, Tensors};
use crate::format::safetensors;
use crate::pretrained::config_json::ConfigJson;
use crate::sae::{Decoder, Dictionary, DictionaryConfig, Encoder, FeatureActivation, InputNormalization};
use crate::tensor::scalar::{full, Scalar};
use crate::{Error, Result};

pub(super) const CONFIG: &str = "hyperparams.json";

/// The files of weights, in the order in which the authors' library looks for them.
const WEIGHTS: [&str; 3] =
    ["sae_weights.safetensors", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors"];

/// Fields that only training and loading use.
const HARMLESS: &[&str] = &[
    "device",
    "dtype",
    "seed",
    "exp_name",
    "exp_series",
    "exp_result_path",
    "sae_pretrained_name_or_path",
    "strict_loading",
    "expansion_factor",
    "bias_init_method",
    "decoder_exactly_fixed_norm",
    "init_decoder_norm",
    "init_encoder_norm",
    "init_encoder_with_decoder_transpose",
    "lp",
    "l1_coefficient",
    "l1_coefficient_warmup_steps",
    "k_warmup_steps",
    "use_batch_norm_mse",
    "use_ghost_grads",
    "tp_size",
    "ddp_size",
];

fn weights(folder: &Path) -> Result<PathBuf> {
    let found = WEIGHTS.iter().map(|file| folder.join(file)).find(|path| path.is_file());
    found.ok_or_else(|| Error::malformed(folder, format!("there is {CONFIG}, but none of {}", WEIGHTS.join(", "))))
}

/// What the activation's norm was in training, and what follows for the weights.
enum Norm {
    /// The factors that input and output were multiplied by: `√d` over the mean norm of the data set, or 1.
    Fixed { into: f64, out_of: f64 },
    /// Each activation was scaled to the norm `√d`.
    EachToken,
}

fn norm(json: &ConfigJson, d_model: i64) -> Result<Norm> {
    let norms = json.object("dataset_average_activation_norm")?;
    norms.iter().for_each(|norms| norms.ignore(&["in", "out"])); // of one side, or of activations that are not scaled by them
    let factor = |side: &str| -> Result<f64> {
        let Some(norms) = &norms else {
            return Err(json.refuse("dataset_average_activation_norm", "absent", "`dataset-wise` needs it"));
        };
        let norm: f64 = norms.require(side)?;
        match norm > 0.0 && norm.is_finite() {
            true => Ok((d_model as f64).sqrt() / norm),
            false => Err(norms.refuse(side, norm, "it must be a positive number")),
        }
    };
    match json.get_or("norm_activation", "token-wise".to_string())?.as_str() {
        "dataset-wise" => Ok(Norm::Fixed { into: factor("in")?, out_of: factor("out")? }),
        // What a checkpoint says whose factors are folded into its weights already.
        "none" | "inference" => Ok(Norm::Fixed { into: 1.0, out_of: 1.0 }),
        "token-wise" => Ok(Norm::EachToken),
        other => Err(json.refuse(
            "norm_activation",
            other,
            "only `dataset-wise`, `token-wise`, `none` and `inference` are supported",
        )),
    }
}

/// A dictionary that was trained on activations of a fixed norm. Its factors are folded into the weights, and so are the norms of the decoder's
/// rows where the training's measure of sparsity had them; the threshold is compared with the activations after that.
pub(super) fn open(folder: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let path = folder.join(CONFIG);
    let json = ConfigJson::new(read_fields(&path)?);
    json.ignore(HARMLESS);
    let d_model: i64 = json.require("d_model")?;
    let norm = norm(&json, d_model)?;
    let place = |field: &str| -> Result<Option<crate::HookPoint>> {
        let Some(name) = json.get::<String>(field)? else { return Ok(None) };
        point(&name).map(Some).ok_or_else(|| json.refuse(field, &name, "it names no hook point"))
    };
    let (read, out) = (place("hook_point_in")?, place("hook_point_out")?);
    let read = options.hook_in.or(read).ok_or_else(|| json.refuse("hook_point_in", "absent", "it is needed here"))?;
    let out = options.hook_out.or(out).unwrap_or(read);
    let unit_decoder: bool = json.get_or("sparsity_include_decoder_norm", true)?;
    let has_bias: bool = json.get_or("use_decoder_bias", true)?;
    let subtracts: bool = json.get_or("apply_decoder_bias_to_pre_encoder", true)?;
    json.expect_only("use_glu_encoder", false)?;
    let threshold: f64 = json.get_or("jump_relu_threshold", 0.0)?;
    if !(threshold >= 0.0 && threshold.is_finite()) {
        return Err(json.refuse("jump_relu_threshold", threshold, "it must not be negative"));
    }
    let k: Option<usize> = json.get("top_k")?;
    let activation = match json.get_or("act_fn", "relu".to_string())?.to_lowercase().as_str() {
        "jumprelu" => FeatureActivation::JumpRelu,
        // The authors' library makes a JumpReLU of a TopK dictionary that has a threshold.
        "topk" if threshold > 0.0 => FeatureActivation::JumpRelu,
        "topk" => FeatureActivation::TopK(k.unwrap_or(50)),
        "relu" => FeatureActivation::Relu,
        other => return Err(json.refuse("act_fn", other, "this activation function is not supported")),
    };
    let d_sae: Option<i64> = json.get("d_sae")?;
    let unread = json.unread();
    if !unread.is_empty() {
        let what =
            format!("this reader does not know the fields {}, which might change what is computed", unread.join(", "));
        return Err(Error::malformed(&path, what));
    }

    let tensors = Tensors::open(&weights(folder)?, safetensors::entries, options)?;
    let (into, out_of, normalization) = match norm {
        Norm::Fixed { into, out_of } => (into, out_of, InputNormalization::None),
        Norm::EachToken if read == out => (1.0, 1.0, InputNormalization::ConstantNorm),
        Norm::EachToken => {
            let why = "the norm of a transcoder's output is not known where it is used";
            return Err(json.refuse("norm_activation", "token-wise", why));
        }
    };
    let mut decoder = tensors.by_feature("decoder.weight", Orientation::ByColumn)?; // [feature, d_out]
    let mut w_enc = tensors.by_feature("encoder.weight", Orientation::ByFeature)?;
    let mut b_enc = tensors.need("encoder.bias")?.div_number(into)?;
    let b_dec = match has_bias {
        true => tensors.need("decoder.bias")?.div_number(out_of)?,
        false => full(&[d_model], 0.0, (decoder.f_kind()?, decoder.device()))?,
    };
    let sizes = [w_enc.size(), decoder.size()];
    let expected = vec![d_sae.unwrap_or(sizes[0].first().copied().unwrap_or(0)), d_model];
    if sizes != [expected.clone(), expected.clone()] {
        let what = format!(
            "`encoder.weight` and `decoder.weight` (transposed) have shapes {:?} and {:?}, but {CONFIG} says {expected:?}",
            sizes[0], sizes[1]
        );
        return Err(tensors.malformed(what));
    }
    tensors.finish()?;
    decoder = decoder.mul_number(into / out_of)?;
    if unit_decoder {
        let norms = decoder.norm_over(&[-1], true)?; // [feature, 1]
        decoder = decoder.f_div(&norms)?;
        w_enc = w_enc.f_mul(&norms)?;
        b_enc = b_enc.f_mul(&norms.f_squeeze_dim(-1)?)?;
    }
    let threshold = match activation {
        FeatureActivation::JumpRelu => Some(full(&b_enc.size(), threshold, (b_enc.f_kind()?, b_enc.device()))?),
        _ => None,
    };
    let encoder = Encoder { w_enc, b_enc, b_dec, w_skip: None, threshold, b_gate: None, r_mag: None };
    let config = DictionaryConfig {
        hook_out: out,
        apply_b_dec_to_input: subtracts && has_bias,
        normalization,
        flatten_heads: read.axes().head.is_some(),
        ..DictionaryConfig::new(read, activation)
    };
    finished(config, encoder, Decoder::Memory(decoder.f_contiguous()?.into()))
}
