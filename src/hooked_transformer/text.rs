//! Texts to tokens and back, under TransformerLens' names.

use super::HookedTransformer;
use crate::text::input::{prepends_bos, Input, Tokens};
use crate::text::tokenizer::{Bos, PaddingSide};
use crate::{Error, Result};

impl HookedTransformer {
    /// Whether texts get the BOS token first where a call does not say ([`Bos::Default`]): yes, as in TransformerLens,
    /// unless the model's `cfg.json` or [`HookedTransformer::with_default_prepend_bos`] says otherwise.
    pub fn default_prepend_bos(&self) -> bool {
        self.default_prepend_bos
    }

    /// The same model with another default for the BOS token.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let with = model.to_tokens("the shop")?.ids.size()[1];
    /// let without = model.with_default_prepend_bos(false).to_tokens("the shop")?.ids.size()[1];
    /// assert_eq!(with, without + 1);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn with_default_prepend_bos(mut self, prepend: bool) -> Self {
        self.default_prepend_bos = prepend;
        self
    }

    /// Texts (or ids, as they are) to tokens, with the BOS token first where that is the model's default.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`]; [`Error::EmptyPrompt`]; [`Error::UnknownWord`] for a word that the vocabulary does not have,
    /// which [`Tokenizer::allow_unknown`](crate::Tokenizer::allow_unknown) lets pass; [`Error::NoBosToken`]; [`Error::Tokenizer`].
    pub fn to_tokens(&self, input: impl Into<Input>) -> Result<Tokens> {
        self.to_tokens_with(input, Bos::Default, PaddingSide::default())
    }

    /// [`HookedTransformer::to_tokens`] with a word on BOS and padding.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`].
    pub fn to_tokens_with(&self, input: impl Into<Input>, bos: Bos, side: PaddingSide) -> Result<Tokens> {
        input.into().tokens(self.default_prepend_bos, self.tokenizer.as_ref(), bos, side)
    }

    /// Ids to text.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`], [`Error::TokenOutOfRange`].
    #[allow(clippy::inherent_to_string_shadow_display)]
    pub fn to_string(&self, ids: &[i64]) -> Result<String> {
        self.tokenizer()?.decode(ids)
    }

    /// A text's tokens as texts, with the BOS token where that is the model's default.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`].
    pub fn to_str_tokens(&self, text: &str) -> Result<Vec<String>> {
        let tokenizer = self.tokenizer()?;
        let prepend = prepends_bos(self.default_prepend_bos, tokenizer, Bos::Default);
        tokenizer.str_tokens(&tokenizer.encode(text, prepend)?)
    }

    /// The id of a text that is exactly one token; [`Tokenizer::single_token`](crate::Tokenizer::single_token) says more.
    ///
    /// It leads back from what [`to_single_str_token`](Self::to_single_str_token) shows, for every id of the vocabulary:
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// for id in 0..model.config().d_vocab as i64 {
    ///     assert_eq!(model.to_single_token(&model.to_single_str_token(id)?)?, id);
    /// }
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotOneToken`], with the tokens that it is; [`Error::UnknownWord`]; [`Error::NoTokenizer`];
    /// [`Error::TokenOutOfRange`] for a number outside the model's vocabulary.
    pub fn to_single_token(&self, text: &str) -> Result<i64> {
        self.in_vocabulary(self.tokenizer()?.single_token(text)?)
    }

    /// The text of one token, a different one for each; [`Tokenizer::str_tokens`](crate::Tokenizer::str_tokens) says how.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`]; [`Error::TokenOutOfRange`] for an id outside the model's vocabulary.
    pub fn to_single_str_token(&self, id: i64) -> Result<String> {
        let tokenizer = self.tokenizer()?;
        self.in_vocabulary(id).map(|id| tokenizer.text_or_number(id))
    }

    /// The id, if the model has such an input or output.
    fn in_vocabulary(&self, id: i64) -> Result<i64> {
        let d_vocab = self.config().d_vocab.max(self.config().d_vocab_out);
        let known = usize::try_from(id).is_ok_and(|id| id < d_vocab);
        known.then_some(id).ok_or(Error::TokenOutOfRange { id, d_vocab })
    }
}
