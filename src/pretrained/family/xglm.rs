//! XGLM (Lin et al. 2021): sines and cosines for positions, and a scaled embedding.

use super::gpt2_style::{self, Fields, GPT2};
use super::{biogpt, ConfigJson, Family};
use crate::config::{Positions, Sinusoids};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    prefix: "model.",
    ignored: &["embed_positions.weights"],
    ..gpt2_style::family("xglm", &["XGLMForCausalLM"], config, names)
};

const FIELDS: Fields = Fields {
    d_model: (&["hidden_size", "d_model"], 1024),
    n_layers: (&["num_hidden_layers", "num_layers"], 24),
    n_heads: (&["num_attention_heads", "attention_heads"], 16),
    n_ctx: (&["max_position_embeddings"], 2048),
    d_vocab: 256_008,
    d_mlp: (&["ffn_dim"], Some(4096)),
    activation: (&["activation_function"], "gelu"),
    eps: (&[], 1e-5), // transformers has no field for it
    ..GPT2
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["activation_dropout", "attention_dropout", "dropout", "layerdrop", "init_std"]);
    let mut config = gpt2_style::config(json, &FIELDS)?;
    config.positions = Positions::Sinusoidal(Sinusoids { offset: 2, steps: (config.d_model / 2).saturating_sub(1) });
    Ok(config)
}

const BLOCKS: &[Entry] = biogpt::blocks!("model");

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let scaled = json.get_or("scale_embedding", true)?;
    let ends = [
        entry(WE, "model.embed_tokens.weight", if scaled { TimesSqrtDModel } else { AsIs }),
        entry(U, "lm_head.weight", AsIs),
    ];
    Ok([&ends, BLOCKS].concat())
}
