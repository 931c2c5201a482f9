//! Gemma Scope's formats: `params.npz` (Gemma Scope 1), and `params.safetensors` with a `config.json` (Gemma Scope 2).

use std::path::Path;

use super::options::DictionaryOptions;
use super::tensors::{finished, point, read_fields, Orientation, Tensors};
use crate::format::{npz, safetensors};
use crate::hook::{self, HookPoint};
use crate::pretrained::config_json::ConfigJson;
use crate::sae::{Dictionary, DictionaryConfig, Encoder, FeatureActivation};
use crate::{Error, Result};

pub(super) const NPZ: &str = "params.npz";
pub(super) const SAFETENSORS: &str = "params.safetensors";

/// Gemma Scope 1: `layer_L/width_W/average_l0_N/params.npz`. Which activation it reads stands in the name of its repository only:
/// `gemma-scope-2b-pt-res`, `-mlp`, `-att` or `-transcoders`.
pub(super) fn open_npz(path: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let tensors = Tensors::open(path, npz::entries, options)?;
    let named = || place(path);
    let (read, out, flatten_heads) = match (options.hook_in, options.hook_out) {
        (Some(read), out) => (read, out.unwrap_or(read), read.axes().head.is_some()),
        (None, _) => named().ok_or_else(|| {
            let what = "which activation it reads stands in its repository's name, such as `gemma-scope-2b-pt-res`, and the folder `layer_L`, \
                        which are not in this path: give it with `DictionaryOptions::hook_in` (and `hook_out` for a transcoder)";
            Error::malformed(path, what)
        })?,
    };
    let encoder = npz_encoder(&tensors)?;
    let decoder = tensors.decoder("W_dec", Orientation::ByFeature, None)?;
    tensors.finish()?;
    let config = DictionaryConfig {
        hook_out: out,
        apply_b_dec_to_input: false,
        flatten_heads,
        ..DictionaryConfig::new(read, FeatureActivation::JumpRelu)
    };
    finished(config, encoder, decoder)
}

/// All but the decoder of Gemma Scope 1.
pub(super) fn npz_encoder(tensors: &Tensors) -> Result<Encoder> {
    Ok(Encoder {
        w_enc: tensors.by_feature("W_enc", Orientation::ByColumn)?,
        b_enc: tensors.need("b_enc")?,
        b_dec: tensors.need("b_dec")?,
        w_skip: None,
        threshold: Some(tensors.need("threshold")?),
        b_gate: None,
        r_mag: None,
    })
}

/// All but the decoder of Gemma Scope 2.
pub(super) fn safetensors_encoder(tensors: &Tensors) -> Result<Encoder> {
    let skip = tensors.get("affine_skip_connection")?; // [d_in, d_out]
    Ok(Encoder {
        w_enc: tensors.by_feature("w_enc", Orientation::ByColumn)?,
        b_enc: tensors.need("b_enc")?,
        b_dec: tensors.need("b_dec")?,
        w_skip: skip.map(|skip| skip.f_transpose(0, 1)).transpose()?,
        threshold: Some(tensors.need("threshold")?),
        b_gate: None,
        r_mag: None,
    })
}

/// Where a dictionary of this path reads and writes, and whether it has heads.
fn place(path: &Path) -> Option<(HookPoint, HookPoint, bool)> {
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let layer: usize = parts.iter().rev().find_map(|part| part.strip_prefix("layer_")?.parse().ok())?;
    let of = parts.iter().rev().find_map(|part| part.split_once("gemma-scope-"))?.1;
    Some(match of.rsplit('-').next()? {
        "res" => (hook::resid_post(layer), hook::resid_post(layer), false),
        "mlp" => (hook::mlp_out(layer), hook::mlp_out(layer), false),
        "att" => (hook::z(layer), hook::z(layer), true),
        "transcoders" => (hook::ln2_normalized(layer), hook::mlp_out(layer), false),
        _ => return None,
    })
}

/// Gemma Scope 2: a folder with `config.json` and `params.safetensors`.
pub(super) fn open_safetensors(folder: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let path = folder.join("config.json");
    let json = ConfigJson::new(read_fields(&path)?);
    json.ignore(&["l0", "width", "affine_connection"]);
    let architecture: String = json.require("architecture")?;
    if !matches!(architecture.as_str(), "jump_relu" | "jumprelu") {
        return Err(json.refuse("architecture", architecture, "only `jump_relu` is supported"));
    }
    let kind: String = json.get_or("type", "sae".to_string())?;
    if !matches!(kind.as_str(), "sae" | "transcoder") {
        return Err(json.refuse("type", kind, "only `sae` and `transcoder` are supported"));
    }
    let model_name: Option<String> = json.get("model_name")?;
    let hook = |field: &str| -> Result<Option<HookPoint>> {
        let Some(name) = json.get::<String>(field)? else { return Ok(None) };
        let known = hugging_face_hook(&name);
        known.map(Some).ok_or_else(|| {
            json.refuse(
                field,
                &name,
                "this activation is not known: give it with `DictionaryOptions::hook_in` and `hook_out`",
            )
        })
    };
    let given = options.hook_in.is_some() && (kind == "sae" || options.hook_out.is_some());
    let (read, out) = match given {
        true => {
            json.ignore(&["hf_hook_point_in", "hf_hook_point_out"]);
            (options.hook_in, options.hook_out)
        }
        false => (hook("hf_hook_point_in")?, hook("hf_hook_point_out")?),
    };
    let read =
        options.hook_in.or(read).ok_or_else(|| json.refuse("hf_hook_point_in", "absent", "it is needed here"))?;
    let out = options.hook_out.or(out).unwrap_or(read);
    let unread = json.unread();
    if !unread.is_empty() {
        let what =
            format!("this reader does not know the fields {}, which might change what is computed", unread.join(", "));
        return Err(Error::malformed(&path, what));
    }
    let tensors = Tensors::open(&folder.join(SAFETENSORS), safetensors::entries, options)?;
    let encoder = safetensors_encoder(&tensors)?;
    let decoder = tensors.decoder("w_dec", Orientation::ByFeature, None)?;
    tensors.finish()?;
    let config = DictionaryConfig {
        hook_out: out,
        apply_b_dec_to_input: false,
        flatten_heads: read.axes().head.is_some(),
        model_name,
        ..DictionaryConfig::new(read, FeatureActivation::JumpRelu)
    };
    finished(config, encoder, decoder)
}

/// The hook point of an activation that is named as a module of transformers' Gemma 3.
fn hugging_face_hook(name: &str) -> Option<HookPoint> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let place = match rest {
        "output" => "hook_resid_post",
        "input" => "hook_resid_pre",
        "self_attn.o_proj.input" => "attn.hook_z",
        "post_attention_layernorm.output" => "hook_attn_out",
        "pre_feedforward_layernorm.output" => "mlp.hook_in",
        "post_feedforward_layernorm.output" => "hook_mlp_out",
        _ => return None,
    };
    point(&format!("blocks.{layer}.{place}"))
}
