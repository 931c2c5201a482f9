//! The architectures of GGUF files, by llama.cpp's names, and what they are called in transformers.

use crate::format::gguf::Gguf;
use crate::{Error, Result};

/// An architecture: a family, and the fields of its `config.json` that differ from Llama's.
#[derive(Debug)]
pub(super) struct Architecture {
    /// llama.cpp's name, with which the keys of the metadata begin.
    pub(super) name: &'static str,
    pub(super) model_type: &'static str,
    pub(super) class: &'static str,
    pub(super) eps: &'static str,
    pub(super) d_mlp: &'static str,
    /// `None`: there are as many as heads.
    pub(super) kv_heads: Option<&'static str>,
    /// Whether a part of a head may rotate.
    pub(super) partial: bool,
    /// Whether the two dimensions of a pair lie beside each other in the rows of queries and keys.
    pub(super) pairs: bool,
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    eps: "rms_norm_eps",
    d_mlp: "intermediate_size",
    kv_heads: Some("num_key_value_heads"),
    partial: false,
    pairs: true,
};

/// An architecture without a permutation of queries and keys.
const fn like_llama(name: &'static str, model_type: &'static str, class: &'static str) -> Architecture {
    Architecture { name, model_type, class, pairs: false, ..LLAMA }
}

/// Llama with experts, which llama.cpp calls Llama.
pub(super) static MIXTRAL: Architecture = Architecture { model_type: "mixtral", class: "MixtralForCausalLM", ..LLAMA };

static ARCHITECTURES: [Architecture; 15] = [
    LLAMA,
    like_llama("qwen2", "qwen2", "Qwen2ForCausalLM"),
    like_llama("qwen3", "qwen3", "Qwen3ForCausalLM"),
    like_llama("gemma", "gemma", "GemmaForCausalLM"),
    like_llama("gemma2", "gemma2", "Gemma2ForCausalLM"),
    like_llama("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
    like_llama("olmo2", "olmo2", "Olmo2ForCausalLM"),
    Architecture { partial: true, ..like_llama("phi3", "phi3", "Phi3ForCausalLM") },
    Architecture { partial: true, eps: "layer_norm_eps", ..like_llama("phi2", "phi", "PhiForCausalLM") },
    Architecture { partial: true, eps: "layer_norm_eps", ..like_llama("stablelm", "stablelm", "StableLmForCausalLM") },
    Architecture { partial: true, eps: "norm_eps", ..like_llama("nemotron", "nemotron", "NemotronForCausalLM") },
    Architecture { eps: "norm_epsilon", ..like_llama("starcoder2", "starcoder2", "Starcoder2ForCausalLM") },
    Architecture {
        eps: "layer_norm_epsilon",
        d_mlp: "n_inner",
        kv_heads: None,
        ..like_llama("gpt2", "gpt2", "GPT2LMHeadModel")
    },
    Architecture {
        eps: "layer_norm_epsilon",
        d_mlp: "n_inner",
        kv_heads: None,
        ..like_llama("bloom", "bloom", "BloomForCausalLM")
    },
    Architecture {
        eps: "layer_norm_epsilon",
        d_mlp: "ffn_hidden_size",
        kv_heads: Some("num_kv_heads"),
        ..like_llama("falcon", "falcon", "FalconForCausalLM")
    },
];

/// The architecture of a file.
///
/// # Errors
///
/// [`Error::ConfigField`] of one that is not supported.
pub(super) fn find(gguf: &Gguf) -> Result<&'static Architecture> {
    const KEY: &str = "general.architecture";
    let name = gguf.metadata.get(KEY).and_then(|value| value.text()).unwrap_or("(none)");
    let experts = gguf.metadata.get("llama.expert_count").and_then(|value| value.count()).unwrap_or(0);
    if name == "llama" && experts > 0 {
        return Ok(&MIXTRAL);
    }
    let found = ARCHITECTURES.iter().find(|architecture| architecture.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        Error::field(KEY, name, &format!("of GGUF files, these architectures are supported: {}", names.join(", ")))
    })
}
