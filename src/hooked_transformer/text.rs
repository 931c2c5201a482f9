//! Texts to tokens and back, under TransformerLens' names.

use super::HookedTransformer;
use crate::text::input::{Input, TokenOptions, Tokens};
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
    /// let with = model.to_tokens("Mary and John")?.ids.size()[1];
    /// let without = model.with_default_prepend_bos(false).to_tokens("Mary and John")?.ids.size()[1];
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
        self.to_tokens_with(input, TokenOptions::default())
    }

    /// [`HookedTransformer::to_tokens`] with choices: BOS, padding, and whether rows longer than the context are cut.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`].
    pub fn to_tokens_with(&self, input: impl Into<Input>, options: TokenOptions) -> Result<Tokens> {
        input.into().tokens(self.default_prepend_bos, self.tokenizer.as_ref(), self.config().n_ctx, &options)
    }

    /// The text of ids: a list, a tensor of one id or one row, or [`Tokens`], whose padding is left out. Special tokens are kept.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let tokens = model.to_tokens("Mary and John")?;
    /// assert_eq!(model.to_string(&tokens)?, "<|endoftext|>Mary and John");
    /// let next = model.forward(&tokens)?.get(0).get(-1).argmax(-1, false); // a tensor without axes
    /// assert_eq!(model.to_string(&next)?, " were");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`]; [`Error::TokenOutOfRange`]; [`Error::Shape`] for several rows, which
    /// [`to_string_batch`](Self::to_string_batch) takes.
    #[allow(clippy::inherent_to_string_shadow_display)]
    pub fn to_string(&self, ids: impl Into<Input>) -> Result<String> {
        let row = self.one_row(ids.into(), "to_string_batch")?;
        self.tokenizer()?.decode(&row)
    }

    /// The text of each row of ids, without its padding: [`to_string`](Self::to_string).
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`]; [`Error::TokenOutOfRange`].
    pub fn to_string_batch(&self, ids: impl Into<Input>) -> Result<Vec<String>> {
        let tokenizer = self.tokenizer()?;
        self.rows(ids.into())?.iter().map(|row| tokenizer.decode(row)).collect()
    }

    /// A text's tokens as texts, with the BOS token where that is the model's default; or those of ids.
    /// [`Tokenizer::str_tokens`](crate::Tokenizer::str_tokens) says how each is shown.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// assert_eq!(model.to_str_tokens("Mary and")?, ["<|endoftext|>", "Mary", " and"]);
    /// let ids = [model.to_single_token(" and")?, model.to_single_token(" John")?];
    /// assert_eq!(model.to_str_tokens(ids)?, [" and", " John"]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`]; [`Error::TokenOutOfRange`] for an id outside the model's vocabulary; [`Error::Shape`]
    /// for several rows, which [`to_str_tokens_batch`](Self::to_str_tokens_batch) takes.
    pub fn to_str_tokens(&self, input: impl Into<Input>) -> Result<Vec<String>> {
        let row = self.one_row(input.into(), "to_str_tokens_batch")?;
        row.into_iter().map(|id| self.to_single_str_token(id)).collect()
    }

    /// The tokens of each text, or each row of ids, as texts, padding left out: [`to_str_tokens`](Self::to_str_tokens).
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`]; [`Error::TokenOutOfRange`] for an id outside the model's vocabulary.
    pub fn to_str_tokens_batch(&self, input: impl Into<Input>) -> Result<Vec<Vec<String>>> {
        let shown = |row: Vec<i64>| row.into_iter().map(|id| self.to_single_str_token(id)).collect();
        self.rows(input.into())?.into_iter().map(shown).collect()
    }

    /// The ids of each row of an input, without padding. A row may be empty.
    fn rows(&self, input: Input) -> Result<Vec<Vec<i64>>> {
        match input {
            Input::Ids(rows) => Ok(rows),
            Input::Tensor(id) if id.dim() == 0 => self.to_tokens(id.f_view([1])?)?.rows(),
            other => self.to_tokens(other)?.rows(),
        }
    }

    /// The ids of an input of one row.
    pub(super) fn one_row(&self, input: Input, several: &str) -> Result<Vec<i64>> {
        let mut rows = self.rows(input)?;
        if rows.len() != 1 {
            return Err(Error::Shape {
                what: "the input".into(),
                found: vec![rows.len() as i64],
                expected: format!("one row; `{several}` takes several"),
            });
        }
        Ok(rows.remove(0))
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
