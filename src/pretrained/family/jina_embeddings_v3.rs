//! The third of Jina's embeddings of texts (Sturua et al. 2024): RoBERTa with rotary positions.

use super::bert_style::{self, *};
use super::{roberta, ConfigJson, Family};
use crate::config::{Activation, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    bert_style::family("jina_embeddings_v3", &["JinaEmbeddingsV3ForMaskedLM"], "roberta.", config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 1024,
    intermediate_size: 4096,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    vocab_size: 250002,
    max_position_embeddings: 8194,
    type_vocab_size: Some(1),
    layer_norm_eps: 1e-5,
    ..BERT
};

fn config(json: &ConfigJson) -> Result<Config> {
    let config = rotary_config(json, &DEFAULTS, 20_000.0, false)?;
    Ok(Config { head: Some(HeadConfig::new(Activation::Gelu)), ..config })
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let [word, _, types] = embeddings!("roberta", AsIs);
    let layers = entries! { "roberta.encoder.layers.{l}.":
        Q, "mixer.Wqkv.weight", QkvBlock(0); QB, "mixer.Wqkv.bias", QkvBlock(0);
        K, "mixer.Wqkv.weight", QkvBlock(1); KB, "mixer.Wqkv.bias", QkvBlock(1);
        V, "mixer.Wqkv.weight", QkvBlock(2); VB, "mixer.Wqkv.bias", QkvBlock(2);
        O, "mixer.out_proj.weight", AsIs; OB, "mixer.out_proj.bias", AsIs;
        In, "mlp.fc1.weight", AsIs; InB, "mlp.fc1.bias", AsIs; Out, "mlp.fc2.weight", AsIs; OutB, "mlp.fc2.bias", AsIs;
        Ln1W, "norm1.weight", AsIs; Ln1B, "norm1.bias", AsIs; Ln2W, "norm2.weight", AsIs; Ln2B, "norm2.bias", AsIs;
    };
    let norm = [entry(EmbedLnW, "roberta.emb_ln.weight", AsIs), entry(EmbedLnB, "roberta.emb_ln.bias", AsIs)];
    Ok([&[word, types][..], &layers, &norm, roberta::HEAD, &roberta::unembedding(config)].concat())
}
