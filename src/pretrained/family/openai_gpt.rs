//! GPT (Radford et al. 2018): GPT-2 whose stream itself is normalised after each sublayer, and that has no last norm.

use super::gpt2_style::{self, Fields, GPT2};
use super::{ConfigJson, Family};
use crate::config::{Activation, NormPosition, Normalization};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    ignored: &["attn.bias", "position_ids"],
    ..gpt2_style::family("openai-gpt", &["OpenAIGPTLMHeadModel"], config, names)
};

const FIELDS: Fields = Fields { n_ctx: (&["max_position_embeddings", "n_positions"], 512), d_vocab: 40478, ..GPT2 };

fn config(json: &ConfigJson) -> Result<Config> {
    gpt2_style::ignore_training(json);
    json.ignore(&["n_ctx"]);
    let mut config =
        gpt2_style::config(json, &Fields { activation: (&["afn"], "gelu"), d_mlp: (&[], None), ..FIELDS })?;
    if let Some(mlp) = config.mlp.as_mut().filter(|mlp| mlp.activation == Activation::Gelu) {
        mlp.activation = Activation::GeluNew; // which is what this model calls "gelu"
    }
    config.norms.position = NormPosition::InStream;
    config.norms.last = Some(Normalization::None);
    Ok(config)
}

const ENDS: &[Entry] = &[
    entry(WE, "transformer.tokens_embed.weight", AsIs),
    entry(WPos, "transformer.positions_embed.weight", AsIs),
    entry(Ln1W, "transformer.h.{l}.ln_1.weight", AsIs),
    entry(Ln1B, "transformer.h.{l}.ln_1.bias", AsIs),
    entry(Ln2W, "transformer.h.{l}.ln_2.weight", AsIs),
    entry(Ln2B, "transformer.h.{l}.ln_2.bias", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let attention = gpt2_style::fused_attention(QkvBlockTransposed, QkvBlock, Transposed);
    Ok([ENDS, &attention, &gpt2_style::mlp(Transposed)].concat())
}
