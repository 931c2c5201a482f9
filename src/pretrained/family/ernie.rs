//! ERNIE (Sun et al. 2020, version 2.0 and 3.0): BERT, perhaps with an embedding of the task; and BERT as the decoder of BERT generation
//! (Rothe et al. 2020), without types of tokens and prediction head.

use super::bert_style::{self, *};
use super::{bert, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const ERNIE: Family = Family {
    left_out: bert::left_out,
    ..bert_style::family("ernie", &["ErnieForMaskedLM", "ErnieForCausalLM"], "ernie.", ernie_config, ernie_names)
};

pub(super) const BERT_GENERATION: Family =
    bert_style::family("bert-generation", &["BertGenerationDecoder"], "bert.", generation_config, generation_names);

const GENERATION: Defaults = Defaults {
    hidden_size: 1024,
    intermediate_size: 4096,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    vocab_size: 50358,
    type_vocab_size: None,
    ..BERT
};

fn ernie_config(json: &ConfigJson) -> Result<Config> {
    let mut config = bert_style::config(json, &BERT)?;
    json.ignore(&["task_type_vocab_size"]);
    if json.get_or("use_task_id", false)? {
        config.embed.task_types = json.get_or("task_type_vocab_size", 3)?;
    }
    Ok(config)
}

fn generation_config(json: &ConfigJson) -> Result<Config> {
    let mut config = bert_style::config(json, &GENERATION)?;
    config.head = None;
    Ok(config)
}

const TASK: &[Entry] = &[entry(WTaskType, "ernie.embeddings.task_type_embeddings.weight", AsIs)];

fn ernie_names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = norms_in_stream!("ernie");
    let task = if config.embed.task_types > 0 { TASK } else { &[] };
    let ends = [&head!("cls.predictions.transform")[..], &bert::unembedding(config), task].concat();
    Ok([&embeddings!("ernie", AsIs)[..], &sublayers!("ernie"), &norms, &ends].concat())
}

fn generation_names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let [word, positions, _] = embeddings!("bert", AsIs);
    let norms = norms_in_stream!("bert");
    let ends = unembedding!(config, "lm_head.decoder.weight", "lm_head.bias", "lm_head.decoder.bias");
    Ok([&[word, positions][..], &sublayers!("bert"), &norms, &ends].concat())
}
