//! [`BertNextSentencePrediction`]: whether one text follows another.

use std::ops::Deref;
use std::path::Path;

use tch::Tensor;

use super::HookedEncoder;
use crate::pretrained::LoadOptions;
use crate::text::input::Tokens;
use crate::{Error, Result};

/// A BERT whose head tells whether one text follows another: TransformerLens' `BertNextSentencePrediction`.
///
/// The head, with its pooler, is the model's own: of a checkpoint for pre-training (`bert-base-uncased`) it is loaded in place of the head for
/// masked tokens. So a run's logits at the first position are its answer, and hooks, caches and attributions are those of a
/// [`HookedEncoder`].
///
/// ```no_run
/// use tch_lens::BertNextSentencePrediction;
/// let model = BertNextSentencePrediction::from_pretrained("bert-base-uncased")?;
/// let logits = model.forward_pair("She opened the door.", "The room was empty.")?; // [1, 2]: it follows, it does not
/// println!("{}", model.prediction("She opened the door.", "The room was empty.")?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BertNextSentencePrediction {
    encoder: HookedEncoder,
}

impl Deref for BertNextSentencePrediction {
    type Target = HookedEncoder;

    fn deref(&self) -> &HookedEncoder {
        &self.encoder
    }
}

impl BertNextSentencePrediction {
    /// Loads the model of a folder or of a name on the hub, with these settings.
    ///
    /// # Errors
    ///
    /// Those of [`LoadOptions::open_encoder`].
    pub fn open(name_or_folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let options = options.clone().read_as("BertForNextSentencePrediction");
        Ok(BertNextSentencePrediction { encoder: options.open_encoder(name_or_folder)? })
    }

    /// Loads the model of a folder or of a name on the hub.
    ///
    /// # Errors
    ///
    /// Those of [`LoadOptions::open_encoder`].
    pub fn from_pretrained(name_or_folder: impl AsRef<Path>) -> Result<Self> {
        Self::open(name_or_folder, &LoadOptions::new())
    }

    /// The logits of pairs of texts: `[batch, 2]`, of the second text following the first, and of not.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for tokens without types: without these, the two texts are one. Those of [`HookedEncoder::classify`].
    pub fn forward(&self, tokens: &Tokens) -> Result<Tensor> {
        if tokens.types.is_none() {
            return Err(Error::wrong_input(
                "tokens of two texts need types that tell these apart: make them with `to_pair_tokens` or `Tokens::with_types`",
            ));
        }
        self.encoder.classify(tokens)
    }

    /// The logits of one pair of texts: `[1, 2]`.
    ///
    /// # Errors
    ///
    /// Those of [`HookedEncoder::to_pair_tokens`] and [`HookedEncoder::classify`].
    pub fn forward_pair(&self, first: &str, second: &str) -> Result<Tensor> {
        self.forward(&self.to_pair_tokens(first, second)?)
    }

    /// The answer for one pair of texts, in TransformerLens' words.
    ///
    /// # Errors
    ///
    /// Those of [`forward_pair`](Self::forward_pair).
    pub fn prediction(&self, first: &str, second: &str) -> Result<&'static str> {
        let likelier = self.forward_pair(first, second)?.f_argmax(-1, false)?.f_int64_value(&[0])?;
        Ok(["The sentences are sequential", "The sentences are NOT sequential"][usize::from(likelier != 0)])
    }
}
