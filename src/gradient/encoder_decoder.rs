//! [`run_with_grad`](HookedEncoderDecoder::run_with_grad) of an encoder-decoder: back through the decoder, and then through the encoder.

use tch::Tensor;

use super::cache::GradientCache;
use super::run::{detached, number};
use crate::cache::ActivationCache;
use crate::hook::{self, HookFilter, HookPoint, Stack};
use crate::hooked_encoder_decoder::EncoderDecoderCache;
use crate::model::EncoderOutput;
use crate::run::backward::guarded_scalar;
use crate::run::Order;
use crate::text::input::Input;
use crate::{autodiff, Config, Error, HookedEncoderDecoder, Result, RunOptions, RunOutput};

/// A number of a run of an encoder-decoder, and its gradients with respect to what the run kept of both stacks.
#[derive(Debug)]
pub struct EncoderDecoderGradients {
    /// The number that was differentiated.
    pub value: f64,
    /// What the decoder's run gave, without its graph. Its cache is the decoder's.
    pub run: RunOutput,
    /// What the run kept of both stacks.
    pub cache: EncoderDecoderCache,
    /// Gradients with respect to activations of the encoder.
    pub encoder: GradientCache,
    /// Gradients with respect to activations of the decoder.
    pub decoder: GradientCache,
}

impl HookedEncoderDecoder {
    /// Runs both stacks and differentiates a number that is made of the decoder's output, such as a logit, with respect to the
    /// activations of both stacks that the run keeps. What each stack gives (`encoder.hook_out` and `unembed.hook_in`) is always kept.
    ///
    /// ```
    /// # use tch_lens::{Config, HookedEncoderDecoder, HookedTransformer};
    /// use tch_lens::RunOptions;
    /// # let encoder = Config::new(2, 16, 2, 50, 12).encoder();
    /// # let decoder = HookedTransformer::init(Config::new(2, 16, 2, 50, 12).decoder_of(&encoder), 1)?;
    /// # let model = HookedEncoderDecoder::new(HookedTransformer::init(encoder, 0)?, decoder, Some(0))?;
    /// let run = RunOptions::new().cache(["encoder.0.hook_resid_pre", "decoder.1.cross_attn.hook_z"]);
    /// let gradients = model.run_with_grad([8, 2, 30, 5, 1], [0, 7, 4], run, |output| {
    ///     Ok(output.logits()?.get(0).get(-1).get(9)) // the logit of token 9 at the last position
    /// })?;
    /// assert_eq!(gradients.encoder.get("encoder.0.hook_resid_pre")?.size(), [1, 5, 16]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`run`](HookedEncoderDecoder::run) and of
    /// [`HookedTransformer::run_with_grad`](crate::HookedTransformer::run_with_grad); [`Error::Setting`] for hooks: with these, differentiate
    /// the [decoder of an input](HookedEncoderDecoder::decoder_of).
    pub fn run_with_grad<'a>(
        &self,
        input: impl Into<Input>,
        decoder_input: impl Into<Input>,
        mut run: RunOptions<'a>,
        scalar: impl FnOnce(&RunOutput) -> Result<Tensor>,
    ) -> Result<EncoderDecoderGradients> {
        let (hooks, select) = run.take_hooks_and_cache();
        if !hooks.is_empty() {
            let why =
                "`hooks` cannot be used in a backward pass through both stacks: differentiate `decoder_of` the input";
            return Err(Error::setting("hooks", why));
        }
        let select = select.unwrap_or_default();
        let configs = [self.encoder(), self.decoder()].map(|model| model.config());
        select.check_in(configs[0], configs[1])?;
        let [of_encoder, of_decoder] = configs.map(|config| points(&select, config));
        let tokens = self.to_tokens(input)?;
        let mask = tokens.mask.as_ref().map(Tensor::shallow_clone);
        let _recording = autodiff(true);
        let of_encoder = RunOptions::new().cache(of_encoder?).differentiable(Order::Once);
        let (mut encoded, back_through_encoder) = self.encoder().run_recorded(tokens.into(), of_encoder)?;
        let output = encoded.take_logits()?; // [batch, encoder_pos, d_encoder]

        // The decoder's graph begins at the encoder's output.
        let read = output.f_detach()?.f_set_requires_grad(true)?;
        let decoder = self.decoder().with_encoder_output(EncoderOutput::new(read.shallow_clone(), mask)?)?;
        let of_decoder = run.cache(of_decoder?).differentiable(Order::Once);
        let (decoded, back_through_decoder) = decoder.run_recorded(decoder_input.into(), of_decoder)?;
        let scalar = guarded_scalar(|| scalar(&decoded))?;
        let value = number(&scalar)?;

        let mut kept = items(&decoded.cache);
        let point = hook::unembed_in().with_stack(Stack::Encoder);
        kept.push((point, read.shallow_clone()));
        let mut gradients = back_through_decoder.gradients(&scalar, &kept)?;
        let at_output = gradients.shift_remove(&point).map_or_else(|| read.f_zeros_like(), Ok)?;
        let decoder = GradientCache::new(decoded.cache.with_entries(gradients));
        let onward = output.f_mul(&at_output.f_detach()?)?.f_sum(None)?;
        let gradients = back_through_encoder.gradients(&onward, &items(&encoded.cache))?;
        let encoder = GradientCache::new(encoded.cache.with_entries(gradients));
        let (encoded, run) = (detached(encoded)?, detached(decoded)?);
        let cache = EncoderDecoderCache { encoder: encoded.cache, decoder: run.cache.clone() };
        Ok(EncoderDecoderGradients { value, run, cache, encoder, decoder })
    }
}

/// The points of a model that a filter means, and what the model's last norm gives.
fn points(select: &HookFilter<'_>, config: &Config) -> Result<Vec<HookPoint>> {
    let last = hook::unembed_in().with_stack(config.stack);
    let mut points = select.by_ref().in_model(config).map_or(Ok(Vec::new()), |select| select.resolve(config))?;
    if !points.contains(&last) {
        points.push(last);
    }
    Ok(points)
}

fn items(cache: &ActivationCache) -> Vec<(HookPoint, Tensor)> {
    cache.items().map(|(point, x)| (point, x.shallow_clone())).collect()
}
