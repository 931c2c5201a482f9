//! Continues the decoder's input, token by token.

use super::HookedEncoderDecoder;
use crate::generate::GenerateOptions;
use crate::hooked_transformer::{Generated, StepOptions};
use crate::text::input::Input;
use crate::{Error, Result};

impl HookedEncoderDecoder {
    /// Generates texts from inputs: TransformerLens' `generate`. The encoder runs once, and the decoder continues the
    /// [start token](Self::start_token) with the store of its own keys and values and those of the encoder's output.
    ///
    /// The options alone say how tokens are chosen. What a checkpoint's configuration sets for transformers' `generate` (`num_beams`,
    /// `no_repeat_ngram_size`, `forced_bos_token_id` and the like) is not applied. Where a model's first token is forced, as in
    /// BART's summaries and in translations of M2M-100, give it to [`generate_with`](Self::generate_with) after the start token.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::generate`](crate::HookedTransformer::generate) and of [`start_token`](Self::start_token).
    pub fn generate(&self, input: impl Into<Input>, options: &GenerateOptions) -> Result<Generated> {
        let tokens = self.to_tokens(input)?;
        let rows = tokens.ids.size().first().copied().unwrap_or(0) as usize;
        let start = vec![vec![self.start_token()?]; rows];
        self.generate_with(tokens, start, options, StepOptions::new())
    }

    /// Continues the decoder's input, with hooks, caches and other settings of the decoder's steps.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::generate_with`](crate::HookedTransformer::generate_with).
    pub fn generate_with(
        &self,
        input: impl Into<Input>,
        decoder_input: impl Into<Input>,
        options: &GenerateOptions,
        steps: StepOptions<'_>,
    ) -> Result<Generated> {
        self.decoder_of(input)?.generate_with(decoder_input, options, steps)
    }

    /// Generates a text from a text, without special tokens such as `</s>`.
    ///
    /// # Errors
    ///
    /// Those of [`generate`](Self::generate); [`Error::Setting`] for several samples.
    pub fn generate_text(&self, input: &str, options: &GenerateOptions) -> Result<String> {
        if options.n_samples() > 1 {
            return Err(Error::option_value("samples", options.n_samples(), "one text has one sample: use `generate`"));
        }
        let generated = self.generate(input, options)?;
        Ok(generated.rows.iter().map(|row| row.text()).collect())
    }
}
