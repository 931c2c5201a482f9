//! Families of models: for each, a reader of its `config.json` and a table of its weights' names, and nothing else.
//!
//! A new family is one file and one line in [`FAMILIES`]. [`llama_style`], [`gpt2_style`] and [`bert_style`] have what most families share.
//! The tests in `completeness.rs` compare the reader with transformers' defaults in `tests/fixtures/defaults.json`.

mod afmoe;
mod albert;
mod apertus;
mod arcee;
mod aria_text;
mod axk1;
mod bart;
mod bart_decoder;
mod bart_style;
mod beam;
mod bert;
mod bert_style;
mod big_bird;
mod biogpt;
mod bitnet;
mod blenderbot;
mod blenderbot_small;
mod bloom;
mod codegen;
mod cohere;
mod cohere2;
mod cohere2_moe;
mod cohere_compass;
#[cfg(test)]
mod completeness;
mod ctrl;
mod cwm;
mod dbrx;
mod deberta;
mod deberta_style;
mod deberta_v2;
mod deepseek_v2;
mod deepseek_v3;
mod deepseek_v32;
mod diffllama;
mod distilbert;
mod doge;
mod dots1;
mod electra;
mod emu3_text;
pub(crate) mod encoder_decoder;
mod ernie;
mod ernie4_5;
mod ernie4_5_moe;
mod esm;
mod eurobert;
mod exaone4;
mod exaone_moe;
mod falcon;
mod flex_olmo;
mod flint;
mod fsmt;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod gemma4_names;
mod gemma4_parts;
mod glm;
mod glm4;
mod glm4_moe;
mod glm4_moe_lite;
mod glm_moe_dsa;
mod gpt2;
mod gpt2_style;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_neox_japanese;
mod gpt_oss;
mod gptj;
mod granite;
mod granite_swa;
mod granitemoe;
mod granitemoe_swa;
mod granitemoehybrid;
mod granitemoeshared;
mod gte;
mod helium;
mod hunyuan_dense;
mod hunyuan_v1_moe;
mod hy_v3;
mod hyperclovax;
mod internlm3;
mod iquestcoder;
mod jais2;
mod jetmoe;
mod jina_embeddings_v3;
mod kolibri1;
mod laguna;
mod latent_style;
mod llama;
mod llama4;
mod llama4_layers;
mod llama_style;
mod m2m_100;
mod marian;
mod mbart;
mod megatron_bert;
mod mellum;
mod mimo;
mod minicpm3;
mod minimax_m2;
mod ministral;
mod ministral3;
mod mistral;
mod mistral4;
mod mixtral;
mod mixture_style;
mod mllama_text;
mod modernbert;
mod modernbert_decoder;
mod mpnet;
mod mpt;
mod mt5;
mod nanochat;
mod nemotron;
mod nomic_bert;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod openai_gpt;
mod opt;
mod pegasus;
mod persimmon;
mod phi;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen2_vl;
mod qwen3;
mod qwen3_moe;
mod qwen3_vl;
mod refused;
mod rembert;
mod roberta;
mod roberta_prelayernorm;
mod seed_oss;
mod smollm3;
mod solar_open;
mod stablelm;
mod starcoder2;
mod t5;
mod t5_style;
mod t5gemma;
pub(crate) mod transformer_lens;
mod trocr;
mod umt5;
mod vaultgemma;
mod xglm;
mod youtu;

use super::config_json::ConfigJson;
use super::headless;
use super::parts::Entry;
use crate::{Config, Error, Result};

/// Everything that the crate knows about a family.
pub(crate) struct Family {
    /// transformers' `model_type`.
    pub(crate) model_type: &'static str,
    /// Its `architectures`: transformers' name first, then others for the same.
    pub(crate) architectures: &'static [&'static str],
    /// The prefix of the checkpoint's names. Older files lack it.
    pub(crate) prefix: &'static str,
    /// Reads the model's shape. Every field means what it means in transformers.
    pub(crate) config: fn(&ConfigJson) -> Result<Config>,
    /// Where each weight lies in the checkpoint of an untied model. Tied ones need no other table: see `tied.rs`.
    pub(crate) names: fn(&Config, &ConfigJson) -> Result<Vec<Entry>>,
    /// Ends of the names of tensors that no forward pass needs.
    pub(crate) ignored: &'static [&'static str],
    /// Whether a tensor belongs to what a run over tokens does not reach.
    pub(crate) left_out: fn(&ConfigJson, &str) -> bool,
}

impl Family {
    /// The shape of the model that a `config.json` describes.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`] of a field that the family does not support.
    pub(crate) fn read_config(&self, json: &ConfigJson) -> Result<Config> {
        let config = (self.config)(json)?;
        json.refuse_layer_config()?;
        Ok(config)
    }
}

/// No tensor is left out.
fn nothing(_: &ConfigJson, _: &str) -> bool {
    false
}

/// All families.
pub(crate) const FAMILIES: &[&Family] = &[
    &gpt2::FAMILY,
    &gpt_neo::FAMILY,
    &gptj::FAMILY,
    &gpt_neox::FAMILY,
    &opt::FAMILY,
    &bloom::FAMILY,
    &mpt::FAMILY,
    &llama::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gemma4::FAMILY,
    &gemma4::UNIFIED,
    &phi::FAMILY,
    &phi3::FAMILY,
    &olmo::FAMILY,
    &olmo2::FAMILY,
    &olmo3::FAMILY,
    &olmoe::FAMILY,
    &stablelm::FAMILY,
    &gpt_bigcode::FAMILY,
    &gpt_oss::FAMILY,
    &deepseek_v2::FAMILY,
    &deepseek_v3::FAMILY,
    &deepseek_v32::FAMILY,
    &glm4_moe::FAMILY,
    &glm4_moe_lite::FAMILY,
    &glm_moe_dsa::FAMILY,
    &youtu::FAMILY,
    &solar_open::FAMILY,
    &dots1::FAMILY,
    &minimax_m2::FAMILY,
    &flex_olmo::FAMILY,
    &phimoe::FAMILY,
    &dbrx::FAMILY,
    &ernie4_5_moe::FAMILY,
    &aria_text::FAMILY,
    &hy_v3::FAMILY,
    &axk1::FAMILY,
    &granitemoe::FAMILY,
    &granitemoeshared::FAMILY,
    &granitemoehybrid::FAMILY,
    &granitemoe_swa::FAMILY,
    &hunyuan_v1_moe::FAMILY,
    &exaone_moe::FAMILY,
    &kolibri1::FAMILY,
    &flint::FAMILY,
    &afmoe::FAMILY,
    &mellum::FAMILY,
    &minicpm3::FAMILY,
    &mistral4::FAMILY,
    &llama4::FAMILY,
    &cohere2_moe::FAMILY,
    &laguna::FAMILY,
    &jetmoe::FAMILY,
    &beam::FAMILY,
    &doge::FAMILY,
    &mimo::FAMILY,
    &apertus::FAMILY,
    &cohere::FAMILY,
    &cohere2::FAMILY,
    &cohere_compass::FAMILY,
    &granite::FAMILY,
    &granite_swa::FAMILY,
    &hyperclovax::FAMILY,
    &falcon::FAMILY,
    &glm::FAMILY,
    &glm4::FAMILY,
    &nemotron::FAMILY,
    &starcoder2::FAMILY,
    &smollm3::FAMILY,
    &exaone4::FAMILY,
    &ernie4_5::FAMILY,
    &arcee::FAMILY,
    &jais2::FAMILY,
    &helium::FAMILY,
    &persimmon::FAMILY,
    &bitnet::FAMILY,
    &vaultgemma::FAMILY,
    &hunyuan_dense::FAMILY,
    &nanochat::FAMILY,
    &seed_oss::FAMILY,
    &cwm::FAMILY,
    &ministral::FAMILY,
    &ministral3::FAMILY,
    &internlm3::FAMILY,
    &iquestcoder::FAMILY,
    &emu3_text::FAMILY,
    &mllama_text::FAMILY,
    &codegen::FAMILY,
    &gpt_neox_japanese::FAMILY,
    &ctrl::FAMILY,
    &biogpt::FAMILY,
    &xglm::FAMILY,
    &openai_gpt::FAMILY,
    &diffllama::FAMILY,
    &bart_decoder::FAMILY,
    &trocr::FAMILY,
    &modernbert_decoder::FAMILY,
    &qwen2_vl::FAMILY,
    &qwen2_vl::FAMILY_2_5,
    &qwen3_vl::FAMILY,
    &bert::FAMILY,
    &roberta::ROBERTA,
    &roberta::CAMEMBERT,
    &roberta::XLM_ROBERTA,
    &roberta::DATA2VEC_TEXT,
    &distilbert::FAMILY,
    &albert::FAMILY,
    &electra::FAMILY,
    &modernbert::FAMILY,
    &megatron_bert::FAMILY,
    &roberta_prelayernorm::ROBERTA_PRELAYERNORM,
    &roberta_prelayernorm::XLM_ROBERTA_XL,
    &rembert::REMBERT,
    &rembert::ROFORMER,
    &ernie::ERNIE,
    &ernie::BERT_GENERATION,
    &gte::FAMILY,
    &nomic_bert::FAMILY,
    &jina_embeddings_v3::FAMILY,
    &eurobert::FAMILY,
    &esm::FAMILY,
    &deberta::FAMILY,
    &deberta_v2::FAMILY,
    &mpnet::FAMILY,
    &big_bird::FAMILY,
];

/// The family of a checkpoint that was saved without a head. The whole encoder-decoders are none of these.
fn headless(json: &ConfigJson) -> Option<&'static &'static Family> {
    let model_type = json.model_type().filter(|_| headless::is_named(json))?;
    let is_of_two = encoder_decoder::ENCODER_DECODERS.iter().any(|family| family.model_type == model_type);
    FAMILIES.iter().find(|family| family.model_type == model_type && !is_of_two)
}

/// The family of a `config.json`: by its first architecture or, where it names none, by its `model_type`.
///
/// # Errors
///
/// [`Error::UnknownArchitecture`]; [`Error::ConfigField`] of a field that no family supports.
pub(crate) fn find(json: &ConfigJson) -> Result<&'static Family> {
    let found = match (json.architecture(), json.model_type()) {
        (Some(architecture), model_type) => {
            // Some families are Llama by their architecture, with other defaults.
            let named = |family: &&&Family| family.architectures.contains(&architecture);
            let own = FAMILIES.iter().filter(named).find(|family| Some(family.model_type) == model_type);
            own.or_else(|| FAMILIES.iter().find(named)).or_else(|| headless(json))
        }
        (None, Some(model_type)) => FAMILIES.iter().find(|family| family.model_type == model_type),
        (None, None) => None,
    };
    if found.is_none()
        && let Some(family) = encoder_decoder::named(json)
    {
        return Err(Error::unsupported(format!(
            "{} is an encoder-decoder: open it as a `HookedEncoderDecoder`",
            family.architectures[0]
        )));
    }
    let found = found.copied().ok_or_else(|| Error::UnknownArchitecture {
        found: json.architecture().or(json.model_type()).unwrap_or("(none)").into(),
        why: refused::why(json.architecture(), json.model_type()).map_or(String::new(), |why| format!(": {why}")),
        known: FAMILIES.len(),
    })?;
    json.check_common_fields()?;
    Ok(found)
}
