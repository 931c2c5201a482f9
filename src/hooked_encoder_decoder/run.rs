//! Runs of an encoder and of the decoder that reads its output.

use tch::Tensor;

use super::{EncoderDecoderCache, HookedEncoderDecoder};
use crate::hook::HookFilter;
use crate::hooked_transformer::{ReturnType, RunOptions};
use crate::model::EncoderOutput;
use crate::run::Hooks;
use crate::text::input::{Input, Tokens};
use crate::{Error, Result};

/// What a run of an encoder-decoder gives.
#[derive(Debug)]
pub struct EncoderDecoderOutput {
    /// The decoder's logits, `[batch, pos, d_vocab_out]`, if the run was asked for them.
    pub logits: Option<Tensor>,
    /// The loss, if the run was asked for it: that of predicting the decoder's input.
    pub loss: Option<Tensor>,
    /// The encoder's output.
    pub encoder_output: EncoderOutput,
    /// What the run kept of both.
    pub cache: EncoderDecoderCache,
}

impl HookedEncoderDecoder {
    /// Runs the encoder on an input, and the decoder on an input of its own, which begins with the [start token](Self::start_token).
    ///
    /// Names in hooks and in the cache's filter mean the points of both stacks, or those of one: `encoder.0.attn.hook_z`, or
    /// `hook::z(0).with_stack(Stack::Encoder)`. All other settings are those of the decoder's run.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`](crate::HookedTransformer::run); [`Error::Shape`] where the two inputs differ in their rows.
    pub fn run<'a>(
        &self,
        input: impl Into<Input>,
        decoder_input: impl Into<Input>,
        mut run: RunOptions<'a>,
    ) -> Result<EncoderDecoderOutput> {
        let (mut hooks, select) = run.take_hooks_and_cache();
        let (encoder, decoder) = (self.encoder.config(), self.decoder.config());
        hooks.check_in(encoder, decoder)?;
        select.iter().try_for_each(|select| select.check_in(encoder, decoder))?;
        let tokens = self.to_tokens(input)?;
        let decoder_tokens = self.decoder.to_tokens(decoder_input)?;
        let rows = |tokens: &Tokens| tokens.ids.size().first().copied().unwrap_or(0);
        if rows(&tokens) != 1 && rows(&tokens) != rows(&decoder_tokens) {
            return Err(Error::Shape {
                what: "the decoder's input".into(),
                found: decoder_tokens.ids.size(),
                expected: format!("{} rows, as the encoder's input has", rows(&tokens)),
            });
        }
        let mask = tokens.mask.as_ref().map(Tensor::shallow_clone);
        let mut of_encoder = RunOptions::new().hooks(hooks.in_model(encoder));
        if let Some(select) = select.as_ref().and_then(|select| select.by_ref().in_model(encoder)) {
            of_encoder = of_encoder.cache(select);
        }
        let mut encoded = self.encoder.run(tokens, of_encoder)?;
        let encoder_output = EncoderOutput::new(encoded.take_logits()?, mask)?;
        let mut of_decoder = run.hooks(hooks.in_model(decoder));
        if let Some(select) = select.as_ref().and_then(|select| select.by_ref().in_model(decoder)) {
            of_decoder = of_decoder.cache(select);
        }
        let decoded = self.decoder.with_encoder_output(encoder_output.clone())?.run(decoder_tokens, of_decoder)?;
        let cache = EncoderDecoderCache { encoder: encoded.cache, decoder: decoded.cache };
        Ok(EncoderDecoderOutput { logits: decoded.logits, loss: decoded.loss, encoder_output, cache })
    }

    /// The decoder's logits: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run).
    pub fn forward(&self, input: impl Into<Input>, decoder_input: impl Into<Input>) -> Result<Tensor> {
        self.run_with_hooks(input, decoder_input, Hooks::new())
    }

    /// The decoder's logits in a run with hooks: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run).
    pub fn run_with_hooks(
        &self,
        input: impl Into<Input>,
        decoder_input: impl Into<Input>,
        hooks: Hooks<'_>,
    ) -> Result<Tensor> {
        logits(self.run(input, decoder_input, RunOptions::new().hooks(hooks))?)
    }

    /// The decoder's logits, `[batch, pos, d_vocab_out]`, and a cache of every activation of both stacks that fires by default.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run).
    pub fn run_with_cache(
        &self,
        input: impl Into<Input>,
        decoder_input: impl Into<Input>,
    ) -> Result<(Tensor, EncoderDecoderCache)> {
        let output = self.run(input, decoder_input, RunOptions::new().cache(HookFilter::All))?;
        let cache = output.cache.clone();
        Ok((logits(output)?, cache))
    }

    /// The mean cross entropy, in nats, of a target given an input: the decoder reads the start token and then the target, and predicts
    /// each token of the target.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run) and of [`start_token`](Self::start_token).
    pub fn loss(&self, input: impl Into<Input>, target: impl Into<Input>) -> Result<f64> {
        let decoder_input = self.shifted_right(&self.to_tokens(target)?)?;
        let output = self.run(input, decoder_input, RunOptions::new().return_type(ReturnType::Loss))?;
        let loss = output.loss.ok_or(Error::Internal("a run that was asked for a loss has none"))?;
        Ok(loss.f_double_value(&[])?)
    }

    /// The start token and then these tokens, whose padding is put on the right.
    fn shifted_right(&self, target: &Tokens) -> Result<Tokens> {
        let start = self.start_token()?;
        let rows = target.rows()?.into_iter().map(|row| [vec![start], row].concat());
        Tokens::padded(&rows.collect::<Vec<_>>(), start, crate::PaddingSide::Right)
    }
}

fn logits(output: EncoderDecoderOutput) -> Result<Tensor> {
    output.logits.ok_or(Error::Internal("a run that was asked for logits has none"))
}
