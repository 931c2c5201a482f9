//! Conversion between text and tokens, under TransformerLens' names.

use super::HookedTransformer;
use crate::error::TokenizerError;
use crate::text::input::{Input, TokenOptions, Tokens};
use crate::{Error, Result};

impl HookedTransformer {
    /// Whether [`Bos::Default`](crate::Bos::Default) prepends the BOS token to texts.
    ///
    /// True, as in TransformerLens, unless the model's `cfg.json` or [`HookedTransformer::with_default_prepend_bos`] sets it to false.
    pub fn default_prepend_bos(&self) -> bool {
        self.default_prepend_bos
    }

    /// The model with another default for the BOS token.
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

    /// Converts texts to tokens, and prepends the BOS token if this is the model's default. Ids are used unchanged.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyPrompt`] if a row has no tokens; [`Error::Tokenizer`] for a text if the model has no tokenizer or if it fails, and for
    /// a word that is not in the vocabulary, unless [`Tokenizer::allow_unknown`](crate::Tokenizer::allow_unknown) is set.
    pub fn to_tokens(&self, input: impl Into<Input>) -> Result<Tokens> {
        self.to_tokens_with(input, TokenOptions::default())
    }

    /// [`HookedTransformer::to_tokens`] with options for the BOS token, padding and truncation to the context length.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`]; [`Error::Tokenizer`] if `Bos::Yes` is set and the tokenizer has no BOS token, and for a
    /// text with tokens that the model does not have.
    pub fn to_tokens_with(&self, input: impl Into<Input>, options: TokenOptions) -> Result<Tokens> {
        let (input, config) = (input.into(), self.config());
        let is_text = matches!(input, Input::Texts(_));
        let tokens = input.tokens(self.default_prepend_bos, self.tokenizer.as_ref(), config.n_ctx, &options)?;
        let is_text = is_text && tokens.ids.numel() > 0;
        let tokenizer = self.tokenizer.as_ref().filter(|tokenizer| is_text && tokenizer.vocab_size() > config.d_vocab);
        match tokenizer.map(|_| tokens.check_ids(config)) {
            Some(Err(Error::TokenOutOfRange { id, d_vocab })) => {
                Err(TokenizerError::OfOtherModel { id, d_vocab }.into())
            }
            Some(Err(error)) => Err(error),
            _ => Ok(tokens),
        }
    }

    /// Converts ids to text. Special tokens are included; the padding of [`Tokens`] is not.
    ///
    /// The ids are a list, [`Tokens`] with one row, or a tensor with one id or one row.
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
    /// [`Error::Tokenizer`]; [`Error::TokenOutOfRange`] for an id outside the vocabulary; [`Error::Shape`] for several rows: use
    /// [`to_string_batch`](Self::to_string_batch) for these.
    #[allow(clippy::inherent_to_string_shadow_display)]
    pub fn to_string(&self, ids: impl Into<Input>) -> Result<String> {
        let row = self.one_row(ids.into(), "to_string_batch")?;
        self.tokenizer()?.decode(&row)
    }

    /// Converts each row of ids to text: [`to_string`](Self::to_string) for a batch.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`]; [`Error::TokenOutOfRange`] for an id outside the vocabulary.
    pub fn to_string_batch(&self, ids: impl Into<Input>) -> Result<Vec<String>> {
        let tokenizer = self.tokenizer()?;
        self.rows(ids.into())?.iter().map(|row| tokenizer.decode(row)).collect()
    }

    /// The tokens of a text, or of ids, as strings. The BOS token is prepended to a text if this is the model's default.
    ///
    /// [`Tokenizer::str_tokens`](crate::Tokenizer::str_tokens) describes the strings.
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
    /// Those of [`HookedTransformer::to_tokens`]; [`Error::TokenOutOfRange`] for an id outside the model's vocabulary; [`Error::Shape`] for
    /// several rows: use [`to_str_tokens_batch`](Self::to_str_tokens_batch) for these.
    pub fn to_str_tokens(&self, input: impl Into<Input>) -> Result<Vec<String>> {
        let row = self.one_row(input.into(), "to_str_tokens_batch")?;
        row.into_iter().map(|id| self.to_single_str_token(id)).collect()
    }

    /// The tokens of each text, or of each row of ids, as strings, without padding: [`to_str_tokens`](Self::to_str_tokens) for a batch.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`]; [`Error::TokenOutOfRange`] for an id outside the model's vocabulary.
    pub fn to_str_tokens_batch(&self, input: impl Into<Input>) -> Result<Vec<Vec<String>>> {
        let strings = |row: Vec<i64>| row.into_iter().map(|id| self.to_single_str_token(id)).collect();
        self.rows(input.into())?.into_iter().map(strings).collect()
    }

    /// The ids of each row of an input, without padding. A row may be empty.
    fn rows(&self, input: Input) -> Result<Vec<Vec<i64>>> {
        match input {
            Input::Ids(rows) => Ok(rows),
            Input::Tensor(id) if id.dim() == 0 => self.to_tokens(id.f_view([1])?)?.rows(),
            other => self.to_tokens(other)?.rows(),
        }
    }

    /// The ids of an input with one row. The error for several rows names the method for batches.
    pub(super) fn one_row(&self, input: Input, batch_method: &str) -> Result<Vec<i64>> {
        let mut rows = self.rows(input)?;
        if rows.len() != 1 {
            return Err(Error::Shape {
                what: "the input".into(),
                found: vec![rows.len() as i64],
                expected: format!("one row; use `{batch_method}` for several"),
            });
        }
        Ok(rows.remove(0))
    }

    /// The id of a text that is exactly one token; see [`Tokenizer::single_token`](crate::Tokenizer::single_token).
    ///
    /// This is the inverse of [`to_single_str_token`](Self::to_single_str_token), for every id of the vocabulary:
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
    /// [`Error::Tokenizer`] for a text of several tokens, which the error lists, and for a word that is not in the vocabulary;
    /// [`Error::TokenOutOfRange`] if the id is outside the model's vocabulary.
    pub fn to_single_token(&self, text: &str) -> Result<i64> {
        self.in_vocabulary(self.tokenizer()?.single_token(text)?)
    }

    /// The string of a token, which is different for each token; see [`Tokenizer::str_tokens`](crate::Tokenizer::str_tokens).
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`]; [`Error::TokenOutOfRange`] for an id outside the model's vocabulary.
    pub fn to_single_str_token(&self, id: i64) -> Result<String> {
        let tokenizer = self.tokenizer()?;
        self.in_vocabulary(id).map(|id| tokenizer.text_or_number(id))
    }

    /// The id, if it is in the input or output vocabulary.
    fn in_vocabulary(&self, id: i64) -> Result<i64> {
        let d_vocab = self.config().d_vocab.max(self.config().d_vocab_out);
        let known = usize::try_from(id).is_ok_and(|id| id < d_vocab);
        known.then_some(id).ok_or(Error::TokenOutOfRange { id, d_vocab })
    }
}
