//! [`HookedEncoderDecoder`]: an encoder and a decoder that reads its output, each a [`HookedTransformer`].
//!
//! Here is only what concerns both: loading ([`load`]), running one after the other ([`run`]), the two caches of such a run ([`cache`]),
//! [`generate`] and [`save`]. What one of them does, and every analysis of it, is that of its [`HookedTransformer`].

mod cache;
mod generate;
mod load;
mod run;
mod save;

use std::sync::Arc;

use serde_json::{Map, Value};
use tch::{Device, Kind};

use crate::hooked_transformer::HookedTransformer;
use crate::model::EncoderOutput;
use crate::pretrained::encoder_decoder::PretrainedPair;
use crate::text::input::{Input, Tokens};
use crate::text::tokenizer::{PaddingSide, Tokenizer};
use crate::{Error, Result};

pub use cache::EncoderDecoderCache;
pub use run::EncoderDecoderOutput;

/// An encoder-decoder with hook points: TransformerLens' `HookedEncoderDecoder`.
///
/// Its names are TransformerLens': `encoder.0.attn.hook_pattern`, `decoder.0.cross_attn.hook_pattern`, `decoder.0.hook_resid_mid_cross`.
/// The [encoder](Self::encoder) and the [decoder](Self::decoder) are models of their own, with all methods of a [`HookedTransformer`]:
/// [`decoder_of`](Self::decoder_of) is the decoder that reads the encoder's output for an input. A clone is cheap, because clones share the
/// weights.
///
/// ```
/// use tch_lens::{analysis::HeadOptions, HookedEncoderDecoder, HookedTransformer, Config};
/// # let encoder = Config::new(2, 16, 2, 50, 12).encoder();
/// # let decoder = HookedTransformer::init(Config::new(2, 16, 2, 50, 12).decoder_of(&encoder), 1)?;
/// # let model = HookedEncoderDecoder::new(HookedTransformer::init(encoder, 0)?, decoder, Some(0))?;
/// // let model = HookedEncoderDecoder::from_pretrained("google-t5/t5-small")?;
/// let (logits, cache) = model.run_with_cache([8, 2, 30, 5, 1], [0, 7, 4])?;
/// assert_eq!(logits.size()[1], 3);
/// assert_eq!(cache["encoder.1.attn.hook_pattern"].size(), [1, 2, 5, 5]); // [batch, head, query, key]
/// assert_eq!(cache["decoder.0.cross_attn.hook_pattern"].size(), [1, 2, 3, 5]); // [batch, head, query, encoder_pos]
/// // What each head wrote to the decoder's stream, those of cross-attention included.
/// let heads = cache.decoder.stack_head_results(HeadOptions::new())?;
/// assert_eq!(heads.labels()[..4], ["L0H0", "L0H1", "L0C0", "L0C1"]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HookedEncoderDecoder {
    encoder: HookedTransformer,
    decoder: HookedTransformer,
    start_token: Option<i64>,
    /// The `config.json` of the checkpoint, if it was a Hugging Face folder.
    hugging_face: Option<Arc<Map<String, Value>>>,
}

impl HookedEncoderDecoder {
    /// An encoder and a decoder of its output, whose input begins with this token.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a model that is no encoder, or no decoder with cross-attention, of the encoder's width.
    pub fn new(encoder: HookedTransformer, decoder: HookedTransformer, start_token: Option<i64>) -> Result<Self> {
        use crate::config::Stack;
        let width = decoder.config().attention.cross.map(|cross| cross.d_encoder);
        if encoder.config().stack != Stack::Encoder || width != Some(encoder.config().d_model) {
            let why = "an encoder-decoder is an encoder, and a decoder whose cross-attention reads streams of the encoder's width";
            return Err(Error::unsupported(why));
        }
        let decoder = decoder.sharing_embedding(&encoder)?;
        Ok(HookedEncoderDecoder { encoder, decoder, start_token, hugging_face: None })
    }

    fn from_pair(pair: PretrainedPair) -> Result<Self> {
        let hugging_face = pair.decoder.hugging_face.clone().map(Arc::new);
        let model = Self::new(pair.encoder.into(), pair.decoder.into(), pair.start_token)?;
        Ok(HookedEncoderDecoder { hugging_face, ..model })
    }

    /// The encoder, a model without an unembedding.
    pub fn encoder(&self) -> &HookedTransformer {
        &self.encoder
    }

    /// The decoder. Its runs need an encoder's output: see [`decoder_of`](Self::decoder_of).
    pub fn decoder(&self) -> &HookedTransformer {
        &self.decoder
    }

    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Missing`](crate::TokenizerError::Missing).
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.decoder.tokenizer()
    }

    /// The model with this tokenizer instead of its own.
    pub fn with_tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.encoder = self.encoder.with_tokenizer(tokenizer.clone());
        self.decoder = self.decoder.with_tokenizer(tokenizer);
        self
    }

    /// The token with which the decoder's input begins: transformers' `decoder_start_token_id`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where the checkpoint does not say. Such models begin with the token of a language.
    pub fn start_token(&self) -> Result<i64> {
        self.start_token.ok_or_else(|| {
            Error::unsupported(
                "this model has no token with which the decoder's input begins: set it with `with_start_token`",
            )
        })
    }

    /// The model with another token at the beginning of the decoder's input, such as that of a language.
    pub fn with_start_token(mut self, id: i64) -> Self {
        self.start_token = Some(id);
        self
    }

    /// The tokens of an input. Texts get the special tokens of the tokenizer's template, such as T5's `</s>` at the end, and padding on
    /// the right; ids are taken as they are.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Missing`](crate::TokenizerError::Missing) and those of the tokenizer for texts; [`Error::Shape`] for other tensors.
    pub fn to_tokens(&self, input: impl Into<Input>) -> Result<Tokens> {
        match input.into() {
            Input::Texts(texts) => {
                let tokenizer = self.tokenizer()?;
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let rows = tokenizer.encode_batch_with_template(&texts)?;
                Tokens::padded(&rows, tokenizer.pad_id(), PaddingSide::Right)
            }
            other => self.encoder.to_tokens(other),
        }
    }

    /// The encoder's output for an input.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`] of the encoder.
    pub fn encode(&self, input: impl Into<Input>) -> Result<EncoderOutput> {
        let tokens = self.to_tokens(input)?;
        let mask = tokens.mask.as_ref().map(|mask| mask.shallow_clone());
        EncoderOutput::new(self.encoder.forward(tokens)?, mask)
    }

    /// The decoder that reads the encoder's output for an input: a model by itself, with which everything can be done that can be done
    /// with a [`HookedTransformer`], such as sweeps of patches and gradients.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    pub fn decoder_of(&self, input: impl Into<Input>) -> Result<HookedTransformer> {
        self.decoder.with_encoder_output(self.encode(input)?)
    }

    /// The model with its weights in another kind: see [`HookedTransformer::to_kind`].
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_kind`].
    pub fn to_kind(&self, kind: Kind) -> Result<Self> {
        self.moved(self.encoder.to_kind(kind)?, self.decoder.to_kind(kind)?)
    }

    /// The model on another device: see [`HookedTransformer::to`].
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to`].
    pub fn to(&self, device: Device) -> Result<Self> {
        self.moved(self.encoder.to(device)?, self.decoder.to(device)?)
    }

    fn moved(&self, encoder: HookedTransformer, decoder: HookedTransformer) -> Result<Self> {
        let decoder = decoder.sharing_embedding(&encoder)?;
        Ok(HookedEncoderDecoder { encoder, decoder, ..self.clone() })
    }
}
