//! The trained model as a Hugging Face folder of the GPT-2 family.

use std::error::Error;
use std::fs;
use std::path::Path;

use serde_json::{json, Value};
use tch::{Kind, Tensor};
use tch_lens::{Config, HookedTransformer};

use crate::vocabulary;

/// Writes `config.json`, `tokenizer.json`, `tokenizer_config.json` and `model.safetensors`, at 16 bits a number.
pub fn write(folder: &Path, model: &HookedTransformer) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let write = |name: &str, value: Value| fs::write(folder.join(name), format!("{value:#}\n"));
    write("config.json", config(model.config()))?;
    write("tokenizer_config.json", vocabulary::tokenizer_config(model.config().n_ctx))?;
    fs::write(folder.join("tokenizer.json"), vocabulary::tokenizer().to_string())?; // on one line: half the size
    let mut tensors = Vec::new();
    for (name, tensor) in model.parameters() {
        if let Some((name, tensor)) = as_gpt2(&name, tensor) {
            tensors.push((name, tensor.detach().to_kind(Kind::Half).contiguous()));
        }
    }
    Ok(Tensor::write_safetensors(&tensors, folder.join("model.safetensors"))?)
}

/// What `config.json` says.
fn config(config: &Config) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.d_vocab,
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp(),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.eps(),
        "initializer_range": crate::SPREAD,
        "tie_word_embeddings": true,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": vocabulary::BOS_ID,
        "eos_token_id": vocabulary::BOS_ID,
        "dtype": "float16",
    })
}

/// A parameter by GPT-2's name and in its layout, matrices from inputs to outputs; none for what GPT-2 does not have.
fn as_gpt2(name: &str, tensor: Tensor) -> Option<(String, Tensor)> {
    let renamed = match name.strip_prefix("blocks.") {
        Some(name) => {
            let (layer, part) = name.split_once('.')?;
            let (of, kind) = part.rsplit_once('.')?;
            let of = match of {
                "ln1" => "ln_1",
                "attn.qkv" => "attn.c_attn",
                "attn.o" => "attn.c_proj",
                "ln2" => "ln_2",
                "mlp.in" => "mlp.c_fc",
                "mlp.out" => "mlp.c_proj",
                _ => return None,
            };
            let kind = if matches!(kind, "w" | "weight") { "weight" } else { "bias" };
            format!("transformer.h.{layer}.{of}.{kind}")
        }
        None => format!(
            "transformer.{}",
            match name {
                "embed.W_E" => "wte.weight",
                "pos_embed.W_pos" => "wpe.weight",
                "ln_final.w" => "ln_f.weight",
                "ln_final.b" => "ln_f.bias",
                _ => return None,
            }
        ),
    };
    let is_product = renamed.contains(".c_") && tensor.dim() == 2;
    Some((renamed, if is_product { tensor.tr() } else { tensor }))
}
