//! Nomic's BERT (Nussbaum et al. 2024): BERT with rotary positions and gated MLPs, without most biases, for embeddings of texts.

use super::bert_style::{self, *};
use super::{bert, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    bert_style::family("nomic_bert", &["NomicBertForMaskedLM"], "nomic_bert.", config, names);

const DEFAULTS: Defaults = Defaults { vocab_size: 30528, max_position_embeddings: 2048, hidden_act: "silu", ..BERT };

fn config(json: &ConfigJson) -> Result<Config> {
    rotary_config(json, &DEFAULTS, 1000.0, true)
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let [word, _, types] = embeddings!("nomic_bert", AsIs);
    let layers = entries! { "nomic_bert.encoder.layers.{l}.":
        Q, "attn.Wqkv.weight", QkvBlock(0); K, "attn.Wqkv.weight", QkvBlock(1); V, "attn.Wqkv.weight", QkvBlock(2);
        O, "attn.out_proj.weight", AsIs;
        In, "mlp.fc11.weight", AsIs; Gate, "mlp.fc12.weight", AsIs; Out, "mlp.fc2.weight", AsIs;
        Ln1W, "norm1.weight", AsIs; Ln1B, "norm1.bias", AsIs; Ln2W, "norm2.weight", AsIs; Ln2B, "norm2.bias", AsIs;
    };
    let ends = entries! { "":
        EmbedLnW, "nomic_bert.emb_ln.weight", AsIs; EmbedLnB, "nomic_bert.emb_ln.bias", AsIs;
        HeadW, "cls.predictions.transform.dense.weight", AsIs; HeadB, "cls.predictions.transform.dense.bias", AsIs;
        HeadLnW, "cls.predictions.transform.layer_norm.weight", AsIs;
        HeadLnB, "cls.predictions.transform.layer_norm.bias", AsIs;
    };
    Ok([&[word, types][..], &layers, &ends, &bert::unembedding(config)].concat())
}
