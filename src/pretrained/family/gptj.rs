//! GPT-J (Wang & Komatsuzaki 2021): attention and MLP in parallel after one norm; rotation of neighbouring pairs.

use super::gpt2_style::{self, Fields, ENDS, GPT2};
use super::{ConfigJson, Family};
use crate::config::{Positions, Rotary};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = gpt2_style::family("gptj", &["GPTJForCausalLM"], config, names);

const FIELDS: Fields = Fields {
    d_model: (&["hidden_size", "n_embd"], 4096),
    n_layers: (&["num_hidden_layers", "n_layer"], 28),
    n_heads: (&["num_attention_heads", "n_head"], 16),
    n_ctx: (&["max_position_embeddings", "n_positions"], 2048),
    d_vocab: 50400,
    tie_word_embeddings: false,
    ..GPT2
};

/// CodeGen's, too.
pub(super) fn config(json: &ConfigJson) -> Result<Config> {
    gpt2_style::ignore_training(json);
    json.ignore(&["n_ctx", "scale_attn_weights"]);
    json.expect_only("rotary", true)?; // of the first files
    let mut config = gpt2_style::config(json, &FIELDS)?;
    let d_head = config.d_head;
    let Some(dim) = json.get_unless_null("rotary_dim", Some(64))? else {
        return Err(json.refuse("rotary_dim", "null", "it must be a number"));
    };
    if dim == 0 || dim > d_head || dim % 2 != 0 {
        return Err(json.refuse("rotary_dim", dim, &format!("it must be even, from 2 to a head's width, {d_head}")));
    }
    config.positions = Positions::rotary(Rotary { adjacent_pairs: true, ..Rotary::new(dim, 10000.0) });
    config.parallel_attn_mlp = true;
    Ok(config)
}

const QKV: &[Entry] = &[
    entry(Q, "transformer.h.{l}.attn.q_proj.weight", AsIs),
    entry(K, "transformer.h.{l}.attn.k_proj.weight", AsIs),
    entry(V, "transformer.h.{l}.attn.v_proj.weight", AsIs),
];

/// CodeGen's, too.
pub(super) const REST: &[Entry] = &[
    entry(O, "transformer.h.{l}.attn.out_proj.weight", AsIs),
    // One norm for both.
    entry(Ln2W, "transformer.h.{l}.ln_1.weight", AsIs),
    entry(Ln2B, "transformer.h.{l}.ln_1.bias", AsIs),
    entry(In, "transformer.h.{l}.mlp.fc_in.weight", AsIs),
    entry(InB, "transformer.h.{l}.mlp.fc_in.bias", AsIs),
    entry(Out, "transformer.h.{l}.mlp.fc_out.weight", AsIs),
    entry(OutB, "transformer.h.{l}.mlp.fc_out.bias", AsIs),
    entry(UB, "lm_head.bias", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, QKV, REST].concat())
}
