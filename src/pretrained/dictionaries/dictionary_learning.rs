//! The formats of the library dictionary_learning: `config.json` and `ae.pt` (`utils.load_dictionary` of
//! github.com/saprmarks/dictionary_learning, version of August 2025).

use std::path::Path;

use tch::Tensor;

use super::options::DictionaryOptions;
use super::tensors::{finished, read_fields, Orientation, Tensors};
use crate::format::torch_file;
use crate::hook;
use crate::pretrained::config_json::ConfigJson;
use crate::sae::{Dictionary, DictionaryConfig, Encoder, FeatureActivation};
use crate::{Error, Result};

pub(super) const WEIGHTS: &str = "ae.pt";

/// Fields of the trainer that only training uses. Weights of trainings with a `norm_factor` are saved for activations as the model has them.
const HARMLESS: &[&str] = &[
    "trainer_class",
    "lr",
    "l1_penalty",
    "warmup_steps",
    "resample_steps",
    "sparsity_warmup_steps",
    "steps",
    "decay_start",
    "seed",
    "device",
    "wandb_name",
    "auxk_alpha",
    "threshold_beta",
    "threshold_start_step",
    "top_k_aux",
    "group_fractions",
    "group_weights",
    "group_sizes",
    "k",
    "bandwidth",
    "sparsity_penalty",
    "target_l0",
    "sparsity_function",
    "p_start",
    "p_end",
    "anneal_start",
    "anneal_end",
    "sparsity_queue_length",
    "n_sparsity_updates",
    "norm_factor",
    "layer",
    "submodule_name",
];

pub(super) fn open(folder: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let path = folder.join("config.json");
    let json = ConfigJson::new(read_fields(&path)?);
    let Some(trainer) = json.object("trainer")? else {
        return Err(json.refuse("trainer", "absent", "it is needed here"));
    };
    json.ignore(&["buffer"]);
    trainer.ignore(HARMLESS);
    let class: String = trainer.require("dict_class")?;
    let (width, dict_size): (Option<i64>, Option<i64>) = (trainer.get("activation_dim")?, trainer.get("dict_size")?);
    let tensors = Tensors::open(&folder.join(WEIGHTS), torch_file::entries, options)?;
    let k = || trainer.require::<usize>("k");
    let of_rows = Orientation::ByFeature;
    // A matrix of `torch.nn.Linear` has a row for each output, a parameter of the library's own a column.
    let (w_enc, b_enc, b_dec, w_dec, orientation, activation, subtracts) = match class.as_str() {
        "AutoEncoder" => {
            ("encoder.weight", "encoder.bias", "bias", "decoder.weight", of_rows, FeatureActivation::Relu, true)
        }
        "AutoEncoderNew" => (
            "encoder.weight",
            "encoder.bias",
            "decoder.bias",
            "decoder.weight",
            of_rows,
            FeatureActivation::Relu,
            false,
        ),
        "AutoEncoderTopK" => {
            ("encoder.weight", "encoder.bias", "b_dec", "decoder.weight", of_rows, FeatureActivation::TopK(k()?), true)
        }
        "BatchTopKSAE" => {
            ("encoder.weight", "encoder.bias", "b_dec", "decoder.weight", of_rows, FeatureActivation::JumpRelu, true)
        }
        "MatryoshkaBatchTopKSAE" => {
            ("W_enc", "b_enc", "b_dec", "W_dec", Orientation::ByColumn, FeatureActivation::JumpRelu, true)
        }
        "JumpReluAutoEncoder" => {
            ("W_enc", "b_enc", "b_dec", "W_dec", Orientation::ByColumn, FeatureActivation::JumpRelu, false)
        }
        "GatedAutoEncoder" => {
            ("encoder.weight", "mag_bias", "decoder_bias", "decoder.weight", of_rows, FeatureActivation::Gated, true)
        }
        other => {
            return Err(trainer.refuse("dict_class", other, "this class is not supported by this version of the crate"))
        }
    };
    let read = match options.hook_in {
        Some(read) => read,
        None => {
            let layer: usize = trainer.require("layer")?;
            match trainer.get::<String>("submodule_name")?.as_deref() {
                Some(name) if name.starts_with("resid_post") => hook::resid_post(layer),
                Some(name) if name.starts_with("mlp") => hook::mlp_out(layer),
                Some(name) if name.starts_with("attention") => hook::attn_out(layer),
                other => {
                    let name = other.unwrap_or("absent");
                    let why = "which activation that is is not known: give it with `DictionaryOptions::hook_in`";
                    return Err(trainer.refuse("submodule_name", name, why));
                }
            }
        }
    };
    let w_enc = tensors.by_feature(w_enc, orientation)?;
    let d_sae = w_enc.size().first().copied().unwrap_or(0);
    let expected = [dict_size.unwrap_or(d_sae), width.unwrap_or(w_enc.size().get(1).copied().unwrap_or(0))];
    if w_enc.size() != expected {
        return Err(tensors.malformed(format!(
            "its encoder has shape {:?}, but config.json says dict_size and activation_dim {expected:?}",
            w_enc.size()
        )));
    }
    let threshold = match activation {
        FeatureActivation::JumpRelu => {
            let threshold: Tensor = tensors.need("threshold")?;
            // One for all features, or one for each.
            Some(if threshold.numel() == 1 {
                threshold.f_reshape([1])?.f_expand([d_sae], false)?.f_contiguous()?
            } else {
                threshold
            })
        }
        _ => None,
    };
    let gated = activation == FeatureActivation::Gated;
    let encoder = Encoder {
        w_enc,
        b_enc: tensors.need(b_enc)?,
        b_dec: tensors.need(b_dec)?,
        w_skip: None,
        threshold,
        b_gate: if gated { Some(tensors.need("gate_bias")?) } else { None },
        r_mag: if gated { Some(tensors.need("r_mag")?) } else { None },
    };
    let by_column = orientation == of_rows; // `decoder.weight` is [d_out, feature]
    let decoder =
        tensors.decoder(w_dec, if by_column { Orientation::ByColumn } else { Orientation::ByFeature }, None)?;
    for name in ["k", "threshold", "group_sizes"] {
        tensors.skip(name);
    }
    tensors.finish()?;
    let model_name: Option<String> = trainer.get("lm_name")?;
    let unread = json.unread();
    if !unread.is_empty() {
        let what =
            format!("this reader does not know the fields {}, which might change what is computed", unread.join(", "));
        return Err(Error::malformed(&path, what));
    }
    if read.axes().head.is_some() {
        return Err(Error::malformed(&path, format!("`{read}` has heads, which this format does not flatten")));
    }
    let config =
        DictionaryConfig { apply_b_dec_to_input: subtracts, model_name, ..DictionaryConfig::new(read, activation) };
    let config = DictionaryConfig { hook_out: options.hook_out.unwrap_or(read), ..config };
    let dictionary = finished(config, encoder, decoder)?;
    // The library gives the rows of this class norm 1 when it loads them, unless they have it.
    match class == "AutoEncoder" && !dictionary.has_unit_decoder()? {
        true => dictionary.fold_decoder_norm(),
        false => Ok(dictionary),
    }
}
