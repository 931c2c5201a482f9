//! GTE (Zhang et al. 2024, "mGTE"): BERT with rotary positions and gated MLPs, for embeddings of texts.

use super::bert_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Activation, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = bert_style::family("gte", &["GteForMaskedLM"], "gte.", config, names);

const DEFAULTS: Defaults =
    Defaults { vocab_size: 250048, max_position_embeddings: 8192, type_vocab_size: Some(1), ..BERT };

fn config(json: &ConfigJson) -> Result<Config> {
    let config = rotary_config(json, &DEFAULTS, 160_000.0, true)?;
    Ok(Config { head: Some(HeadConfig::new(Activation::Gelu)), ..config })
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let [word, _, types] = embeddings!("gte", AsIs);
    let types = if config.embed.token_types > 0 { vec![types] } else { Vec::new() };
    let layers = entries! { "gte.encoder.layer.{l}.":
        Q, "attention.qkv_proj.weight", QkvBlock(0); QB, "attention.qkv_proj.bias", QkvBlock(0);
        K, "attention.qkv_proj.weight", QkvBlock(1); KB, "attention.qkv_proj.bias", QkvBlock(1);
        V, "attention.qkv_proj.weight", QkvBlock(2); VB, "attention.qkv_proj.bias", QkvBlock(2);
        O, "attention.o_proj.weight", AsIs; OB, "attention.o_proj.bias", AsIs;
        Ln1W, "attn_ln.weight", AsIs; Ln1B, "attn_ln.bias", AsIs;
        In, "mlp.up_gate_proj.weight", Half(0); Gate, "mlp.up_gate_proj.weight", Half(1);
        Out, "mlp.down_proj.weight", AsIs; OutB, "mlp.down_proj.bias", AsIs;
        Ln2W, "mlp_ln.weight", AsIs; Ln2B, "mlp_ln.bias", AsIs;
    };
    let ends = entries! { "":
        EmbedLnW, "gte.embeddings.LayerNorm.weight", AsIs; EmbedLnB, "gte.embeddings.LayerNorm.bias", AsIs;
        HeadW, "lm_head.dense.weight", AsIs; HeadB, "lm_head.dense.bias", AsIs;
        HeadLnW, "lm_head.norm.weight", AsIs; HeadLnB, "lm_head.norm.bias", AsIs;
        U, "lm_head.decoder.weight", AsIs; UB, "lm_head.decoder.bias", AsIs;
    };
    Ok([&[word][..], &types, &layers, &ends].concat())
}
