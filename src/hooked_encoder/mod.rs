//! [`HookedEncoder`]: a model whose queries see all positions, with what TransformerLens' class of this name does with one.
//!
//! It is a [`HookedTransformer`] of such a shape: runs, hooks, caches, analyses and saves are that model's. Here is only how texts become
//! tokens, what is made of predictions of masked tokens and of classifiers, and [`BertNextSentencePrediction`].

mod next_sentence;

use std::ops::Deref;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::cache::ActivationCache;
use crate::config::{AttentionDir, Stack};
use crate::hook::HookFilter;
use crate::hooked_transformer::{HookedTransformer, RunOptions, RunOutput};
use crate::pretrained::LoadOptions;
use crate::run::Hooks;
use crate::text::input::{Input, Tokens};
use crate::text::tokenizer::PaddingSide;
use crate::{Config, Error, Result};

pub use next_sentence::BertNextSentencePrediction;

/// An encoder with hook points: TransformerLens' `HookedEncoder`.
///
/// Its runs take texts as encoders do, with the special tokens of the tokenizer's template around them (`[CLS] … [SEP]`). Everything else is
/// that of the [`HookedTransformer`] that it is; [`Tokens::with_types`] and [`Tokens::with_mask`] are TransformerLens' `token_type_ids` and
/// `one_zero_attention_mask`. A clone is cheap, because clones share the weights.
///
/// ```
/// use tch_lens::config::{Activation, AttentionConfig, AttentionDir, EmbedConfig, HeadConfig, NormConfig, NormPosition, Normalization};
/// use tch_lens::{Config, HookedEncoder};
/// // A small BERT with fresh weights: 2 layers, d_model 16, 2 heads, 50 tokens, a context of 12.
/// let config = Config {
///     attention: AttentionConfig { direction: AttentionDir::Bidirectional, ..AttentionConfig::default() },
///     embed: EmbedConfig { token_types: 2, ..EmbedConfig::default() },
///     head: Some(HeadConfig::new(Activation::Gelu)),
///     norms: NormConfig {
///         position: NormPosition::InStream,
///         last: Some(Normalization::None),
///         after_full_embed: true,
///         ..NormConfig::default()
///     },
///     ..Config::new(2, 16, 2, 50, 12)
/// };
/// let model = HookedEncoder::init(config, 0)?;
/// let (logits, cache) = model.run_with_cache([1, 4, 7])?;
/// assert_eq!(logits.size(), [1, 3, 50]);
/// assert_eq!(cache["embed.hook_token_type_embed"].size(), [1, 3, 16]);
/// assert_eq!(cache["blocks.1.hook_normalized_resid_post"].size(), [1, 3, 16]);
/// let attrs = cache.logit_attrs(&cache.decompose_resid(Default::default())?, 7)?; // through every norm and the head
/// assert!(attrs.residual_error()? < 1e-4);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HookedEncoder {
    model: HookedTransformer,
}

impl Deref for HookedEncoder {
    type Target = HookedTransformer;

    fn deref(&self) -> &HookedTransformer {
        &self.model
    }
}

impl LoadOptions {
    /// Loads an encoder: [`LoadOptions::open`], without weight processing, as in TransformerLens.
    ///
    /// # Errors
    ///
    /// Those of [`LoadOptions::open`]; [`Error::Unsupported`] for a model whose queries do not see all positions.
    pub fn open_encoder(&self, name_or_folder: impl AsRef<Path>) -> Result<HookedEncoder> {
        HookedEncoder::new(self.clone().no_processing().open(name_or_folder)?)
    }
}

impl HookedEncoder {
    /// A model as an encoder.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a model whose queries do not see all positions.
    pub fn new(model: HookedTransformer) -> Result<Self> {
        match model.config().attention_dir() {
            AttentionDir::Bidirectional => Ok(HookedEncoder { model }),
            AttentionDir::Causal => Err(Error::unsupported(
                "this model is no encoder, as its queries see earlier positions only: load it as a HookedTransformer",
            )),
        }
    }

    /// Loads an encoder with the default settings of [`LoadOptions`], without weight processing.
    ///
    /// # Errors
    ///
    /// Those of [`LoadOptions::open_encoder`].
    pub fn from_pretrained(name_or_folder: impl AsRef<Path>) -> Result<Self> {
        LoadOptions::new().open_encoder(name_or_folder)
    }

    /// An encoder with fresh weights: [`HookedTransformer::init`].
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::init`] and [`HookedEncoder::new`].
    pub fn init(config: Config, seed: i64) -> Result<Self> {
        HookedEncoder::new(HookedTransformer::init(config, seed)?)
    }

    /// The model that the encoder is.
    pub fn model(&self) -> &HookedTransformer {
        &self.model
    }

    /// The encoder with its weights in another kind: see [`HookedTransformer::to_kind`].
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_kind`].
    pub fn to_kind(&self, kind: Kind) -> Result<Self> {
        Ok(HookedEncoder { model: self.model.to_kind(kind)? })
    }

    /// The encoder on another device: see [`HookedTransformer::to`].
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to`].
    pub fn to(&self, device: Device) -> Result<Self> {
        Ok(HookedEncoder { model: self.model.to(device)? })
    }

    /// The tokens of an input. Texts get the special tokens of the tokenizer's template, such as BERT's `[CLS]` and `[SEP]`, and padding on
    /// the right; ids are taken as they are.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer for texts; [`Error::Shape`] for other tensors.
    pub fn to_tokens(&self, input: impl Into<Input>) -> Result<Tokens> {
        match input.into() {
            Input::Texts(texts) => {
                let tokenizer = self.tokenizer()?;
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let rows = tokenizer.encode_batch_with_template(&texts)?;
                Tokens::padded(&rows, tokenizer.pad_id(), PaddingSide::Right)
            }
            other => self.model.to_tokens(other),
        }
    }

    /// The tokens of two texts as one, with their types: BERT's `[CLS] first [SEP] second [SEP]`.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer.
    pub fn to_pair_tokens(&self, first: &str, second: &str) -> Result<Tokens> {
        let (ids, types) = self.tokenizer()?.encode_pair_with_template(first, second)?;
        let tokens = Tokens::new(&Tensor::f_from_slice(&ids)?)?;
        match self.config().embed.token_types {
            0 | 1 => Ok(tokens), // the template's types are for models that have some
            _ => tokens.with_types(&Tensor::f_from_slice(&types)?),
        }
    }

    /// Runs the encoder: [`HookedTransformer::run`] of [`to_tokens`](Self::to_tokens).
    ///
    /// # Errors
    ///
    /// Those of both.
    pub fn run<'a>(&self, input: impl Into<Input>, run: RunOptions<'a>) -> Result<RunOutput> {
        self.model.run(self.to_tokens(input)?, run)
    }

    /// The logits of an input: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run).
    pub fn forward(&self, input: impl Into<Input>) -> Result<Tensor> {
        self.model.forward(self.to_tokens(input)?)
    }

    /// The logits, `[batch, pos, d_vocab_out]`, and a cache of every activation that fires by default.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run).
    pub fn run_with_cache(&self, input: impl Into<Input>) -> Result<(Tensor, ActivationCache)> {
        self.model.run_with_cache(self.to_tokens(input)?)
    }

    /// The logits, `[batch, pos, d_vocab_out]`, and a cache of the selected activations.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run).
    pub fn run_with_cache_of<'a>(
        &self,
        input: impl Into<Input>,
        select: impl Into<HookFilter<'a>>,
    ) -> Result<(Tensor, ActivationCache)> {
        self.model.run_with_cache_of(self.to_tokens(input)?, select)
    }

    /// The logits of a run with hooks: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run).
    pub fn run_with_hooks(&self, input: impl Into<Input>, hooks: Hooks<'_>) -> Result<Tensor> {
        self.model.run_with_hooks(self.to_tokens(input)?, hooks)
    }

    /// The likeliest token in place of each mask (`[MASK]`, `<mask>`) of each row, as text: TransformerLens' `return_type="predictions"`.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run); [`Error::Unsupported`] for a tokenizer without a mask, or outputs that are no vocabulary.
    pub fn predictions(&self, input: impl Into<Input>) -> Result<Vec<Vec<String>>> {
        let config = self.config();
        if config.stack == Stack::Encoder {
            return Err(Error::unsupported(
                "this model has no head, and its outputs are streams: it predicts no tokens",
            ));
        }
        if config.d_vocab_out != config.d_vocab {
            return Err(Error::unsupported(
                "this model classifies, and predicts no tokens: use `forward` or `classify`",
            ));
        }
        let mask = self.tokenizer()?.mask_id();
        let mask = mask.ok_or_else(|| Error::unsupported("this tokenizer has no token that masks others"))?;
        let tokens = self.to_tokens(input)?;
        let likeliest = self.model.forward(&tokens)?.f_argmax(-1, false)?.f_to_device(Device::Cpu)?; // [batch, pos]
        let ids = Vec::<Vec<i64>>::try_from(tokens.ids.f_to_device(Device::Cpu)?)?;
        let likeliest = Vec::<Vec<i64>>::try_from(likeliest)?;
        let of_row = |(ids, likeliest): (&Vec<i64>, &Vec<i64>)| {
            let masked = ids.iter().zip(likeliest).filter(|(id, _)| **id == mask);
            masked.map(|(_, likeliest)| self.tokenizer()?.decode(&[*likeliest])).collect()
        };
        ids.iter().zip(&likeliest).map(of_row).collect()
    }

    /// The logits of a classifier of texts, which reads the first token of each row: `[batch, label]`.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run); [`Error::Unsupported`] for a model that is no classifier of texts.
    pub fn classify(&self, input: impl Into<Input>) -> Result<Tensor> {
        if !self.config().head.is_some_and(|head| head.of_first) {
            return Err(Error::unsupported(
                "this model does not classify texts: `forward` has the logits of each token",
            ));
        }
        let tokens = self.to_tokens(input)?;
        let first = match &tokens.mask {
            Some(mask) => Vec::<i64>::try_from(mask.f_to_kind(Kind::Int64)?.f_argmax(1, false)?)?,
            None => vec![0; tokens.ids.size()[0] as usize],
        };
        let run = RunOptions::new().logits_at(crate::Positions::PerRow(first));
        Ok(self.model.run(&tokens, run)?.take_logits()?.f_squeeze_dim(1)?)
    }
}
