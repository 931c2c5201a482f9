//! EleutherAI's sparsify: a folder named for its module, such as `layers.3.mlp`, with `cfg.json` and `sae.safetensors`.

use std::path::Path;

use super::options::DictionaryOptions;
use super::tensors::{finished, point, read_fields, Orientation, Tensors};
use crate::format::safetensors;
use crate::hook::HookPoint;
use crate::pretrained::config_json::ConfigJson;
use crate::sae::{Dictionary, DictionaryConfig, Encoder, FeatureActivation};
use crate::{Error, Result};

pub(super) const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae.safetensors";

pub(super) fn open(folder: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let path = folder.join(CONFIG);
    let json = ConfigJson::new(read_fields(&path)?);
    json.ignore(&["expansion_factor", "normalize_decoder", "multi_topk", "num_latents", "d_in", "signed"]);
    json.expect_only("signed", false)?;
    let transcode: bool = json.get_or("transcode", false)?;
    let has_skip: bool = json.get_or("skip_connection", false)?;
    let k: usize = json.require("k")?;
    let activation = match json.get_or("activation", "topk".to_string())?.as_str() {
        "topk" => FeatureActivation::TopK(k),
        "groupmax" => FeatureActivation::GroupMax(k),
        other => return Err(json.refuse("activation", other, "only `topk` and `groupmax` are supported")),
    };
    let unread = json.unread();
    if !unread.is_empty() {
        let what =
            format!("this reader does not know the fields {}, which might change what is computed", unread.join(", "));
        return Err(Error::malformed(&path, what));
    }
    let named = folder.file_name().and_then(|name| places(&name.to_string_lossy(), transcode));
    let (read, out) = match (options.hook_in, named) {
        (Some(read), named) => {
            (read, options.hook_out.or(named.map(|(_, out)| out).filter(|_| transcode)).unwrap_or(read))
        }
        (None, Some((read, out))) => (read, options.hook_out.unwrap_or(out)),
        (None, None) => {
            let what = "the folder is not named for a module, such as `layers.3.mlp`: give its activation with `DictionaryOptions::hook_in`";
            return Err(Error::malformed(folder, what));
        }
    };
    let tensors = Tensors::open(&folder.join(WEIGHTS), safetensors::entries, options)?;
    let w_skip = tensors.get("W_skip")?;
    if w_skip.is_some() != has_skip {
        return Err(tensors.malformed(format!("`skip_connection` is {has_skip}, which `W_skip` contradicts")));
    }
    let encoder = Encoder {
        w_enc: tensors.by_feature("encoder.weight", Orientation::ByFeature)?,
        b_enc: tensors.need("encoder.bias")?,
        b_dec: tensors.need("b_dec")?,
        w_skip,
        threshold: None,
        b_gate: None,
        r_mag: None,
    };
    let decoder = tensors.decoder("W_dec", Orientation::ByFeature, None)?;
    tensors.finish()?;
    let config =
        DictionaryConfig { hook_out: out, apply_b_dec_to_input: !transcode, ..DictionaryConfig::new(read, activation) };
    finished(config, encoder, decoder)
}

/// What a dictionary of a module reads and writes: the module's output, or a transcoder its input and output.
fn places(name: &str, transcode: bool) -> Option<(HookPoint, HookPoint)> {
    let rest = ["layers.", "h."].iter().find_map(|prefix| Some(name.split_once(prefix)?.1))?;
    let (layer, module) = rest.split_once('.').unwrap_or((rest, ""));
    let (read, out) = match module {
        "" => ("hook_resid_pre", "hook_resid_post"),
        "mlp" => ("mlp.hook_in", "hook_mlp_out"),
        "attn" | "attention" | "self_attn" => ("ln1.hook_normalized", "hook_attn_out"),
        _ => return None,
    };
    let place = |place: &str| point(&format!("blocks.{layer}.{place}"));
    match (transcode, module) {
        (true, "mlp" | "") => Some((place(read)?, place(out)?)),
        (true, _) => None,
        (false, _) => Some((place(out)?, place(out)?)),
    }
}
