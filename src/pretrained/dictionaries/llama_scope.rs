//! Llama Scope's format: `hyperparams.json`, and the weights in `checkpoints/`.

use std::path::Path;

use tch::Tensor;

use super::options::DictionaryOptions;
use super::tensors::{finished, point, read_fields, Orientation, Tensors};
use crate::format::safetensors;
use crate::pretrained::config_json::ConfigJson;
use crate::sae::{Dictionary, DictionaryConfig, Encoder, FeatureActivation};
use crate::tensor::scalar::{full, Scalar};
use crate::Result;

pub(super) const CONFIG: &str = "hyperparams.json";
const WEIGHTS: &str = "checkpoints/final.safetensors";

/// A dictionary that was trained on activations scaled to the norm `√d` on average over a data set. The factors of input and output
/// are folded into the weights.
pub(super) fn open(folder: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let json = ConfigJson::new(read_fields(&folder.join(CONFIG))?);
    let norms = json.object("dataset_average_activation_norm")?;
    let scaled: String = json.get_or("norm_activation", "none".to_string())?;
    let (d_in, d_out): (f64, f64) = (json.require("d_model")?, json.require("d_model")?);
    let factor = |side: &str, d: f64| -> Result<f64> {
        match (scaled.as_str(), &norms) {
            ("dataset-wise", Some(norms)) => {
                let norm: f64 = norms.require(side)?;
                match norm > 0.0 && norm.is_finite() {
                    true => Ok(d.sqrt() / norm),
                    false => Err(norms.refuse(side, norm, "it must be a positive number")),
                }
            }
            ("none" | "inference", _) => Ok(1.0),
            (other, _) => Err(json.refuse(
                "norm_activation",
                other,
                "only `dataset-wise` with its norms, and `none`, are supported",
            )),
        }
    };
    let (into, out_of) = (factor("in", d_in)?, factor("out", d_out)?);
    let name = |field: &str| -> Result<Option<crate::HookPoint>> {
        let Some(name) = json.get::<String>(field)? else { return Ok(None) };
        point(&name).map(Some).ok_or_else(|| json.refuse(field, &name, "it names no hook point"))
    };
    let (read, out) = (name("hook_point_in")?, name("hook_point_out")?);
    let read = options.hook_in.or(read).ok_or_else(|| json.refuse("hook_point_in", "absent", "it is needed here"))?;
    let out = options.hook_out.or(out).unwrap_or(read);
    let by_norm: bool = json.get_or("sparsity_include_decoder_norm", false)?;
    let subtracts: bool = json.get_or("apply_decoder_bias_to_pre_encoder", false)?;
    json.expect_only("use_glu_encoder", false)?;
    let activation = match json.get_or("act_fn", "jumprelu".to_string())?.as_str() {
        "jumprelu" => FeatureActivation::JumpRelu,
        "topk" => FeatureActivation::TopK(json.require("top_k")?),
        "relu" => FeatureActivation::Relu,
        other => return Err(json.refuse("act_fn", other, "this activation function is not supported")),
    };

    let tensors = Tensors::open(&folder.join(WEIGHTS), safetensors::entries, options)?;
    let decoder = tensors.by_feature("decoder.weight", Orientation::ByColumn)?.f_contiguous()?; // [feature, d_out]
    let threshold = match activation {
        FeatureActivation::JumpRelu => {
            let threshold: f64 = json.require("jump_relu_threshold")?;
            let d_sae = decoder.size().first().copied().unwrap_or(0);
            let threshold = full(&[d_sae], threshold, (decoder.f_kind()?, decoder.device()))?;
            Some(if by_norm { threshold.f_div(&decoder.norm_over(&[-1], false)?)? } else { threshold })
        }
        _ => None,
    };
    let b_dec: Tensor = tensors.need("decoder.bias")?;
    let encoder = Encoder {
        w_enc: tensors.by_feature("encoder.weight", Orientation::ByFeature)?.mul_number(into)?,
        b_enc: tensors.need("encoder.bias")?,
        b_dec: b_dec.div_number(out_of)?,
        w_skip: None,
        threshold,
        b_gate: None,
        r_mag: None,
    };
    tensors.finish()?;
    let config = DictionaryConfig {
        hook_out: out,
        apply_b_dec_to_input: subtracts,
        rescale_by_decoder_norm: by_norm && matches!(activation, FeatureActivation::TopK(_)),
        flatten_heads: read.axes().head.is_some(),
        ..DictionaryConfig::new(read, activation)
    };
    finished(config, encoder, crate::sae::Decoder::Memory(decoder.div_number(out_of)?.into()))
}
