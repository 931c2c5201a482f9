//! Models to Hugging Face folders.

use std::path::Path;

use serde_json::{json, Map, Value};
use tch::Kind;

use super::save::write_json;
use super::HookedTransformer;
use crate::config::{
    Activation, AttentionDir, NormPosition, Normalization, PerLayer, PositionalEmbedding, Positions, Stack,
};
use crate::pretrained::checkpoint::SAFETENSORS;
use crate::pretrained::hugging_face::hugging_face;
use crate::pretrained::processing::Step;
use crate::pretrained::saved::SAVED;
use crate::tensor::file::write_safetensors;
use crate::text::tokenizer::Tokenizer;
use crate::{Config, Error, Result};

impl HookedTransformer {
    /// Writes a Hugging Face folder, with the weights in `kind`: of the family that the model was read as, or else GPT-2's.
    ///
    /// The model must have been loaded without processing. One that was not read from a Hugging Face folder must have GPT-2's
    /// shape. [`HookedTransformer::save_pretrained`] writes any model.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, LoadOptions};
    /// use tch::Kind;
    /// let model = LoadOptions::new().no_processing().toy()?;
    /// let folder = tempfile::tempdir().unwrap();
    /// model.save_hugging_face(folder.path(), Kind::Float)?;
    /// let again = HookedTransformer::from_pretrained_no_processing(folder.path())?;
    /// assert_eq!(again.forward("Mary and John")?, model.forward("Mary and John")?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] for a weight that the family's folders have no place for; [`Error::Unsupported`], naming what
    /// GPT-2 does not have; [`Error::UnsupportedKind`]; [`Error::Io`]; [`Error::Tokenizer`].
    pub fn save_hugging_face(&self, folder: impl AsRef<Path>, kind: Kind) -> Result<()> {
        let folder = folder.as_ref();
        let folded = self.processing.iter().any(|done| done.step == Step::FoldLn && done.done);
        let fields = match &self.hugging_face {
            _ if folded => Err(self.unlike_gpt2(FOLDED)),
            Some(fields) => Ok(Map::clone(fields)),
            None => match not_in_gpt2(self.config()) {
                Some(what) => Err(self.unlike_gpt2(what)),
                None => self.gpt2_fields(),
            },
        }?;
        let (tensors, fields) = hugging_face(self, fields, kind)?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let saved = folder.join(SAVED);
        if saved.exists() {
            std::fs::remove_file(&saved).map_err(Error::io(&saved))?; // it would say that the names are TransformerLens'
        }
        write_safetensors(&folder.join(SAFETENSORS), tensors)?;
        self.write_tokenizer(folder)?;
        write_json(&folder.join("config.json"), &fields)
    }

    fn unlike_gpt2(&self, what: &str) -> Error {
        Error::unsupported(format!(
            "only GPT-2's shape can be written as a Hugging Face folder, which has no {what}; `save_pretrained` writes any model"
        ))
    }

    /// The `config.json` of a model of GPT-2's shape.
    fn gpt2_fields(&self) -> Result<Map<String, Value>> {
        let config = self.config();
        let tokenizer = self.tokenizer.as_ref();
        let fields = json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_embd": config.d_model,
            "n_inner": config.d_mlp(),
            "n_positions": config.n_ctx,
            "vocab_size": config.d_vocab,
            "activation_function": config.act_fn(),
            "layer_norm_epsilon": config.eps(),
            "scale_attn_weights": config.attn_scale() != 1.0,
            "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx(),
            "tie_word_embeddings": self.is_tied(),
            "bos_token_id": tokenizer.and_then(Tokenizer::bos_id),
            "eos_token_id": tokenizer.and_then(Tokenizer::eos_id),
        });
        match fields {
            Value::Object(fields) => Ok(fields),
            _ => Err(Error::Internal("a config.json is an object")),
        }
    }
}

const FOLDED: &str = "folded norms (load it with `no_processing`)";

/// What of a model GPT-2 cannot have.
fn not_in_gpt2(config: &Config) -> Option<&'static str> {
    use Activation::*;
    let d_head = config.d_head as f64;
    let scale = config.attn_scale();
    let checks = [
        (config.attn_only(), "block without an MLP"),
        (config.parallel_attn_mlp, "parallel attention and MLP"),
        (config.gated_mlp(), "gated MLP"),
        (config.experts().is_some(), "mixture of experts"),
        (config.normalization_type().is_folded(), FOLDED),
        (config.normalization_type() != Normalization::LN || config.final_rms(), "other norm than layer norm"),
        (config.norm_position() != NormPosition::Before, "norm after a sublayer"),
        (config.post_embedding_ln(), "norm of the embedding"),
        (config.qk_norm().is_some(), "norm of queries and keys"),
        (config.positional_embedding_type() != PositionalEmbedding::Standard, "positions but learned ones"),
        (config.n_key_value_heads != config.n_heads, "grouped-query attention"),
        (config.n_heads * config.d_head != config.d_model, "heads that do not make up d_model"),
        (config.attention_dir() != AttentionDir::Causal, "attention to what follows"),
        ((0..config.n_layers).any(|layer| config.window(layer).is_some()), "local attention"),
        (scale != 1.0 && (scale - d_head.sqrt()).abs() > 1e-9, "attention scale but 1 and the root of d_head"),
        (config.attn_scores_soft_cap().is_some() || config.output_logits_soft_cap.is_some(), "soft cap"),
        (config.clip_qkv().is_some(), "clamp of queries, keys and values"),
        (config.use_attention_sinks(), "attention sinks"),
        (config.attention.disentangled.is_some(), "scores of distances"),
        (config.attention.relative_bias.is_some(), "relative bias of scores"),
        (config.stack != Stack::Blocks, "encoder or decoder of two stacks"),
        (config.head.is_some(), "prediction head"),
        (config.embed.token_types > 0, "types of tokens"),
        (config.embed.width.is_some(), "embeddings of another width than d_model"),
        (config.embed.token_dropout.is_some(), "factor of embeddings"),
        (config.norms.bare_first_attention, "attention without a norm before it"),
        (config.attention.differential, "differential attention"),
        (config.attention.z_norm.is_some(), "norm between heads and W_O"),
        (config.mlp.as_ref().is_some_and(|mlp| mlp.norm.is_some()), "norm of the neurons"),
        (config.attention.temperature != PerLayer::All(None), "temperature of queries"),
        (matches!(config.positions, Positions::Sinusoidal(_)), "sines for positions"),
        (config.norms.last_eps() != config.eps(), "eps of the last norm alone"),
        (config.d_vocab_out != config.d_vocab, "outputs but its vocabulary"),
        (matches!(config.act_fn(), Some(SoluLn | Xielu | Relu2)), "such activation function"),
    ];
    checks.into_iter().find(|(unlike, _)| *unlike).map(|(_, what)| what)
}
