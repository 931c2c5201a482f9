//! nanochat (Karpathy 2025): norms without any gain, also of the embedding and of rotated queries and keys, and a squared ReLU.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Normalization, Positions, QkNorm, Rotary};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("nanochat", &["NanoChatForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 768,
    intermediate_size: 8192,
    num_hidden_layers: 12,
    num_attention_heads: 6,
    vocab_size: 50304,
    hidden_act: "relu2",
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    without_gates(&mut config);
    config.norms.kind = Normalization::RMSPre;
    config.norms.after_embedding = true;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMSPre));
    config.attention.qk_norm_after_rotation = true;
    if let Some(rotary) = config.rotary().cloned() {
        config.positions = Positions::rotary(Rotary { reversed: true, ..rotary });
    }
    config.output_logits_soft_cap = json.get_unless_null("final_logit_softcapping", Some(15.0))?;
    Ok(config)
}

const MLP: &[Entry] =
    &[entry(In, "model.layers.{l}.mlp.fc1.weight", AsIs), entry(Out, "model.layers.{l}.mlp.fc2.weight", AsIs)];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&[ENDS[0], ENDS[2]], ATTENTION, attention_biases(json, false)?, MLP].concat())
}
