//! GPT-J (Wang & Komatsuzaki 2021): attention and MLP in parallel after one norm; rotation of neighbouring pairs.

use super::{ConfigJson, Family};
use crate::config::{PositionalEmbedding, RopeScaling, Rotary};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["GPTJForCausalLM", "gptj"],
    prefix: "transformer.",
    config,
    names,
    ignored: &["attn.bias", "attn.masked_bias", "lm_head.weight"],
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["attn_pdrop", "embd_pdrop", "resid_pdrop", "n_ctx", "scale_attn_weights"]);
    super::gpt2::ignore_summary(json);
    json.only("rotary", true)?; // of the first files
    let d_model: usize = json.any(&["hidden_size", "n_embd"])?.unwrap_or(4096);
    let n_heads: usize = json.any(&["num_attention_heads", "n_head"])?.unwrap_or(16);
    let d_head = d_model / n_heads.max(1);
    let d_vocab = json.or("vocab_size", 50400)?;
    let Some(dim) = json.unless_null("rotary_dim", Some(64))? else {
        return Err(json.refuse("rotary_dim", "null", "it must be a number"));
    };
    if dim == 0 || dim > d_head || dim % 2 != 0 {
        return Err(json.refuse("rotary_dim", dim, &format!("it must be even, from 2 to a head's width, {d_head}")));
    }
    Ok(Config {
        n_layers: json.any(&["num_hidden_layers", "n_layer"])?.unwrap_or(28),
        d_model,
        n_heads,
        d_head,
        n_key_value_heads: n_heads,
        d_mlp: json.get("n_inner")?.unwrap_or(4 * d_model),
        d_vocab,
        d_vocab_out: d_vocab,
        n_ctx: json.any(&["max_position_embeddings", "n_positions"])?.unwrap_or(2048),
        act_fn: json.activation(&["activation_function"], "gelu_new")?,
        parallel_attn_mlp: true,
        eps: json.or("layer_norm_epsilon", 1e-5)?,
        positional_embedding_type: PositionalEmbedding::Rotary,
        rotary: Some(Rotary { dim, base: 10000.0, adjacent_pairs: true, scaling: RopeScaling::None }),
        tie_word_embeddings: json.or("tie_word_embeddings", false)?,
        ..Config::default()
    })
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(vec![
        at(WE, "transformer.wte.weight", AsIs),
        at(Ln1W, "transformer.h.{l}.ln_1.weight", AsIs),
        at(Ln1B, "transformer.h.{l}.ln_1.bias", AsIs),
        at(Q, "transformer.h.{l}.attn.q_proj.weight", AsIs),
        at(K, "transformer.h.{l}.attn.k_proj.weight", AsIs),
        at(V, "transformer.h.{l}.attn.v_proj.weight", AsIs),
        at(O, "transformer.h.{l}.attn.out_proj.weight", AsIs),
        at(Ln2W, "transformer.h.{l}.ln_1.weight", AsIs),
        at(Ln2B, "transformer.h.{l}.ln_1.bias", AsIs),
        at(In, "transformer.h.{l}.mlp.fc_in.weight", AsIs),
        at(InB, "transformer.h.{l}.mlp.fc_in.bias", AsIs),
        at(Out, "transformer.h.{l}.mlp.fc_out.weight", AsIs),
        at(OutB, "transformer.h.{l}.mlp.fc_out.bias", AsIs),
        at(LnFinalW, "transformer.ln_f.weight", AsIs),
        at(LnFinalB, "transformer.ln_f.bias", AsIs),
        at(U, if config.tie_word_embeddings { "transformer.wte.weight" } else { "lm_head.weight" }, AsIs),
        at(UB, "lm_head.bias", AsIs),
    ])
}
