//! Models to folders: our own form, which loads as exactly the same model, and GPT-2's Hugging Face form.
//!
//! Our own form is `model.safetensors` by TransformerLens' names, `tch_lens.json` with the [`Config`], and the tokenizer's two
//! files. Every file is written beside its place and then renamed, so that a folder never holds half of one.

use std::path::Path;

use serde::Serialize;
use serde_json::json;
use tch::{Kind, Tensor};

use super::HookedTransformer;
use crate::config::{Activation, AttentionDir, NormPosition, Normalization, PositionalEmbedding};
use crate::format::PartFile;
use crate::model::block::MlpOrExperts;
use crate::pretrained::checkpoint::SAFETENSORS;
use crate::pretrained::saved::{Own, OWN, VERSION};
use crate::tensor::file::write_safetensors;
use crate::text::tokenizer::Tokenizer;
use crate::{Config, Error, Result};

impl HookedTransformer {
    /// Writes a folder that [`Load::open`] loads as the same model: the same weights and logits, bit for bit, if it is
    /// loaded as the same kind. Weights that were processed stay so, and are not processed again.
    ///
    /// `model.safetensors` has TransformerLens' names, so its `load_state_dict` reads it, too.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let folder = tempfile::tempdir().unwrap();
    /// model.save_pretrained(folder.path())?;
    /// let again = HookedTransformer::from_pretrained(folder.path())?;
    /// assert_eq!(again.forward("Mary and John")?, model.forward("Mary and John")?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Tokenizer`] if the tokenizer cannot be written.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut tensors = self.state_dict()?;
        if self.is_tied() {
            tensors.retain(|(name, _)| name != "unembed.W_U");
        }
        let config = Config { tie_word_embeddings: self.is_tied(), ..self.config().clone() };
        let turned = turned(&tensors);
        write_safetensors(&folder.join(SAFETENSORS), tensors)?;
        self.write_tokenizer(folder)?;
        write_json(
            &folder.join(OWN),
            &Own { version: VERSION, config, default_prepend_bos: self.default_prepend_bos(), turned },
        )
    }

    /// Writes an ordinary Hugging Face folder, with the weights in `kind`. Only of a model of GPT-2's shape, loaded
    /// without processing.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], naming what GPT-2 does not have; [`Error::Io`]; [`Error::Tokenizer`].
    pub fn save_hugging_face(&self, folder: impl AsRef<Path>, kind: Kind) -> Result<()> {
        let folder = folder.as_ref();
        if let Some(what) = unlike_gpt2(self.config()) {
            return Err(Error::invalid(format!("only GPT-2's shape can be written as a Hugging Face folder, which has no {what}; `save_pretrained` writes any model")));
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let own = folder.join(OWN);
        if own.exists() {
            std::fs::remove_file(&own).map_err(Error::io(&own))?; // it would say that the names are ours
        }
        write_safetensors(&folder.join(SAFETENSORS), self.gpt2_tensors(kind)?)?;
        self.write_tokenizer(folder)?;
        write_json(&folder.join("config.json"), &self.gpt2_config(kind)?)
    }

    fn write_tokenizer(&self, folder: &Path) -> Result<()> {
        let Some(tokenizer) = self.tokenizer.as_ref() else { return Ok(()) };
        for (name, text) in [("tokenizer.json", tokenizer.json()?), ("tokenizer_config.json", tokenizer.config_json())]
        {
            let path = folder.join(name);
            PartFile::write(&path, text.as_bytes()).map_err(Error::io(path))?;
        }
        Ok(())
    }

    /// Transformers' names and shapes: `Conv1D`s are `[in, out]`.
    fn gpt2_tensors(&self, kind: Kind) -> Result<Vec<(String, Tensor)>> {
        let config = self.config();
        let weights = self.weights();
        let d_model = config.d_model as i64;
        let mut all = Vec::new();
        let mut add = |name: String, tensor: &Tensor| -> Result<()> {
            all.push((name, tensor.f_to_kind(kind)?));
            Ok(())
        };
        let zeros = |n: i64| Tensor::f_zeros([n], (kind, self.device()));
        add("transformer.wte.weight".into(), &weights.embed.w_e)?;
        if let Some(w_pos) = &weights.embed.w_pos {
            add("transformer.wpe.weight".into(), w_pos)?;
        }
        for (l, block) in weights.blocks.iter().enumerate() {
            let at = |name: &str| format!("transformer.h.{l}.{name}");
            for (name, norm) in [("ln_1", &block.ln1), ("ln_2", &block.ln2)] {
                if let Some(w) = &norm.w {
                    add(at(&format!("{name}.weight")), w)?;
                }
                add(at(&format!("{name}.bias")), norm.b.as_deref().unwrap_or(&zeros(d_model)?))?;
            }
            let Some(MlpOrExperts::Mlp(mlp)) = &block.mlp else {
                return Err(Error::invalid("GPT-2 has an MLP in every block"));
            };
            let linears = [
                ("attn.c_attn", &block.attn.qkv),
                ("attn.c_proj", &block.attn.o),
                ("mlp.c_fc", &mlp.w_in),
                ("mlp.c_proj", &mlp.w_out),
            ];
            for (name, linear) in linears {
                let w = linear.w()?; // [in, out]
                let none = zeros(w.size()[1])?;
                add(at(&format!("{name}.weight")), &w)?;
                add(at(&format!("{name}.bias")), linear.bias.as_deref().unwrap_or(&none))?;
            }
        }
        let ln_final = &weights.unembed.ln_final;
        if let Some(w) = &ln_final.w {
            add("transformer.ln_f.weight".into(), w)?;
        }
        add("transformer.ln_f.bias".into(), ln_final.b.as_deref().unwrap_or(&zeros(d_model)?))?;
        if !self.is_tied() {
            add("lm_head.weight".into(), &weights.unembed.u.weight)?;
        }
        if let Some(bias) = &weights.unembed.u.bias {
            if bias.f_count_nonzero(0)?.f_int64_value(&[])? != 0 {
                return Err(Error::invalid("GPT-2 has no bias of the unembedding, and this model's is not zero"));
            }
        }
        Ok(all)
    }

    fn gpt2_config(&self, kind: Kind) -> Result<serde_json::Value> {
        let config = self.config();
        let dtype = match kind {
            Kind::Float => "float32",
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            Kind::Double => "float64",
            other => return Err(Error::invalid(format!("weights cannot be of kind {other:?}"))),
        };
        let tokenizer = self.tokenizer.as_ref();
        Ok(json!({
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
            "dtype": dtype,
        }))
    }
}

/// Matrices of which rows and columns lie the other way round than those of a contiguous tensor of this shape.
///
/// Queries, keys and values are one matrix, which is always laid out anew.
fn turned(tensors: &[(String, Tensor)]) -> Vec<String> {
    let first = |name: &str| !name.starts_with("blocks.") || name.starts_with("blocks.0.");
    let first = |name: &str| first(name) && (!name.contains(".experts.") || name.contains(".experts.0."));
    let qkv = |name: &str| ["W_Q", "W_K", "W_V"].iter().any(|end| name.ends_with(end));
    let turned = |tensor: &Tensor| {
        let (dims, strides) = (tensor.size(), tensor.stride());
        let n = dims.len();
        // Of `W_O`'s three axes the first two are one in memory.
        n >= 2 && dims[n - 1] > 1 && dims[n - 2] > 1 && strides[n - 1] != 1
    };
    let of = |(name, tensor): &(String, Tensor)| {
        (first(name) && !qkv(name) && name != "embed.W_E" && turned(tensor)).then(|| name.clone())
    };
    tensors.iter().filter_map(of).collect()
}

/// What of a model GPT-2 cannot have.
fn unlike_gpt2(config: &Config) -> Option<String> {
    use Activation::*;
    let d = config.d_head as f64;
    let checks = [
        (config.attn_only(), "block without an MLP"),
        (config.parallel_attn_mlp, "parallel attention and MLP"),
        (config.gated_mlp(), "gated MLP"),
        (config.experts().is_some(), "mixture of experts"),
        (
            matches!(config.normalization_type(), Normalization::LNPre | Normalization::RMSPre),
            "folded norms (load it with `no_processing`)",
        ),
        (config.normalization_type() != Normalization::LN || config.final_rms(), "other norm than layer norm"),
        (config.norm_position() != NormPosition::Before, "norm after a sublayer"),
        (config.post_embedding_ln(), "norm of the embedding"),
        (config.qk_norm().is_some(), "norm of queries and keys"),
        (config.positional_embedding_type() != PositionalEmbedding::Standard, "positions but learned ones"),
        (config.n_key_value_heads != config.n_heads, "grouped-query attention"),
        (config.n_heads * config.d_head != config.d_model, "heads that do not make up d_model"),
        (config.attention_dir() != AttentionDir::Causal, "attention to what follows"),
        ((0..config.n_layers).any(|layer| config.window(layer).is_some()), "local attention"),
        (
            config.attn_scale() != 1.0 && (config.score_divisor(0) - d.sqrt()).abs() > 1e-9,
            "attention scale but 1 and the root of d_head",
        ),
        (config.attn_scores_soft_cap().is_some() || config.output_logits_soft_cap.is_some(), "soft cap"),
        (config.clip_qkv().is_some(), "clamp of queries, keys and values"),
        (config.use_attention_sinks(), "attention sinks"),
        (config.d_vocab_out != config.d_vocab, "outputs but its vocabulary"),
        (matches!(config.act_fn(), Some(SoluLn | Xielu)), "such activation function"),
    ];
    checks.into_iter().find(|(unlike, _)| *unlike).map(|(_, what)| what.into())
}

/// Writes a JSON file, which appears when it is whole.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::malformed(path, error))?;
    text.push(b'\n');
    PartFile::write(path, &text).map_err(Error::io(path))
}
