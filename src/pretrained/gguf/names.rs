//! The tensors of a GGUF file under the names of a family, in its shapes and orders.

use super::architecture::Architecture;
use crate::format::gguf::{Gguf, GgufTensor};
use crate::format::quantized::Method;
use crate::format::Place;
use crate::model::part::Location;
use crate::pretrained::checkpoint::Checkpoint;
use crate::pretrained::parts::{Entry, Part, View};
use crate::pretrained::quantized::weight::{Layout, RowOrder};
use crate::{Config, Result};

/// Names of modules: transformers', without what they begin with, and GGUF's.
const NAMES: &[(&str, &str)] = &[
    ("embed_tokens", "token_embd"),
    ("wte", "token_embd"),
    ("word_embeddings", "token_embd"),
    ("word_embeddings_layernorm", "token_embd_norm"),
    ("wpe", "position_embd"),
    ("norm", "output_norm"),
    ("ln_f", "output_norm"),
    ("final_layernorm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("ln_1", "attn_norm"),
    ("ln_mlp", "attn_norm"), // llama.cpp gives the norm before attention a second name where there are two
    ("ln_attn", "attn_norm_2"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("attn.c_attn", "attn_qkv"),
    ("self_attention.query_key_value", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.dense", "attn_output"),
    ("attn.c_proj", "attn_output"),
    ("self_attention.dense", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_layernorm", "attn_q_norm"),
    ("self_attn.k_layernorm", "attn_k_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("ln_2", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.c_proj", "ffn_down"),
    ("mlp.fc2", "ffn_down"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("block_sparse_moe.experts.{e}.w1", "ffn_gate_exps"),
    ("block_sparse_moe.experts.{e}.w3", "ffn_up_exps"),
    ("block_sparse_moe.experts.{e}.w2", "ffn_down_exps"),
];

/// Tensors that the configuration is made of.
const IN_CONFIG: &[&str] = &["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// A tensor as the family has it.
pub(super) struct Named {
    name: String,
    tensor: GgufTensor,
    shape: Vec<i64>,
    layout: Layout,
}

impl Named {
    /// Adds the tensor to a checkpoint, of whose files it lies in this one.
    pub(super) fn put(self, checkpoint: &mut Checkpoint, file: usize) -> Result<()> {
        let Named { name, tensor, shape, layout } = self;
        let start = tensor.bytes.start;
        if let (Some(dtype), true) = (tensor.kind.plain(), layout == Layout::default()) {
            checkpoint.put(file, name, Place::contiguous(start, dtype, shape));
            return Ok(());
        }
        // A vector is a row, but where its entries change places.
        let columns = match (tensor.shape.as_slice(), layout.order) {
            ([_], order) if order != RowOrder::Same => 1,
            (shape, _) => shape.last().map_or(1, |n| *n as usize),
        };
        let bytes = Place::contiguous(start, crate::format::Dtype::U8, vec![tensor.bytes.len() as i64]);
        checkpoint.put_quantized(file, name, Method::Ggml { kind: tensor.kind, columns }, bytes, shape, layout)
    }
}

/// All tensors: those of the table under its names, others under their own.
pub(super) fn named(architecture: &Architecture, gguf: &Gguf, config: &Config, table: &[Entry]) -> Vec<Named> {
    let mut all: Vec<Named> = Vec::new();
    let mut used: Vec<String> = IN_CONFIG.iter().map(|name| name.to_string()).collect();
    for entry in table {
        let Some(template) = gguf_name(entry.name, table) else { continue };
        let layers = if template.contains("{l}") { config.n_layers } else { 1 };
        let experts = if entry.name.contains("{e}") { config.num_experts().unwrap_or(0) } else { 1 };
        for layer in 0..layers {
            let name = template.replace("{l}", &layer.to_string());
            let Some(tensor) = gguf.tensors.get(name.as_str()) else { continue };
            used.push(name);
            for expert in 0..experts {
                let location = Location { layer: Some(layer), expert: Some(expert) };
                let Some((shape, layout)) = layout(architecture, entry, tensor, config, expert) else { continue };
                all.push(Named { name: entry.tensor_name(location, 0), tensor: tensor.clone(), shape, layout });
            }
        }
    }
    let others = gguf.tensors.iter().filter(|(name, _)| !used.iter().any(|used| used == *name));
    all.extend(others.map(|(name, tensor)| Named {
        name: name.to_string(),
        tensor: tensor.clone(),
        shape: tensor.shape.clone(),
        layout: Layout::default(),
    }));
    all
}

/// The shape and layout of an entry's tensor; `None` where there is no such expert.
fn layout(
    architecture: &Architecture,
    entry: &Entry,
    tensor: &GgufTensor,
    config: &Config,
    expert: usize,
) -> Option<(Vec<i64>, Layout)> {
    let mut shape = tensor.shape.clone();
    let mut order = match (entry.view, entry.part) {
        (View::QkvPerHead(_), _) => RowOrder::Groups { heads: config.n_heads, kv_heads: config.n_heads },
        (View::QkvPerGroup(_), _) => RowOrder::Groups { heads: config.n_heads, kv_heads: config.n_key_value_heads },
        (_, Part::Q | Part::QB) if architecture.pairs => RowOrder::Pairs { heads: config.n_heads },
        (_, Part::K | Part::KB) if architecture.pairs => RowOrder::Pairs { heads: config.n_key_value_heads },
        _ => RowOrder::Same,
    };
    if entry.name.contains("{e}") {
        if shape.len() != 3 || expert as i64 >= shape[0] {
            return None;
        }
        shape.remove(0);
        order = RowOrder::From(expert.checked_mul(usize::try_from(shape[0]).ok()?)?);
    }
    let transposed = entry.view.is_transposed() && shape.len() == 2;
    if transposed {
        shape.reverse();
    }
    Some((shape, Layout { transposed, order, minus_one: entry.view == View::PlusOne }))
}

/// GGUF's name of a tensor, with `{l}` for the layer.
fn gguf_name(name: &str, table: &[Entry]) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let module = module.strip_prefix("model.").or_else(|| module.strip_prefix("transformer.")).unwrap_or(module);
    let (block, module) = match module.strip_prefix("layers.{l}.").or_else(|| module.strip_prefix("h.{l}.")) {
        Some(module) => ("blk.{l}.", module),
        None => ("", module),
    };
    let after = table.iter().any(|entry| entry.name.contains("post_feedforward_layernorm"));
    let own = match module {
        "post_attention_layernorm" if after => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        _ => NAMES.iter().find(|(known, _)| *known == module).map(|(_, own)| *own)?,
    };
    Some(format!("{block}{own}.{kind}"))
}
