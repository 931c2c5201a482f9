//! The methods that run the model.

use tch::Tensor;

use super::run_options::{refused, Outcome, Output, Run};
use super::{loss, HookedTransformer};
use crate::cache::ActivationCache;
use crate::hook::HookFilter;
use crate::run::kept::KeptPositions;
use crate::run::sink::Budget;
use crate::run::{Halt, Hooks, Plan, Sink, Tap};
use crate::text::input::{Input, TokenOptions, Tokens};
use crate::text::positions::PositionAxis;
use crate::text::tokenizer::Bos;
use crate::{Error, Result};

impl HookedTransformer {
    /// Runs the model with all settings of [`Run`]. The other methods here are short forms of it.
    ///
    /// # Errors
    ///
    /// - for the input: those of [`to_tokens`](HookedTransformer::to_tokens), [`Error::PromptTooLong`], [`Error::TokenOutOfRange`];
    /// - for settings: [`Error::Setting`] if one has no effect or contradicts another, and those of hook names and filters, such as
    ///   [`Error::UnknownHook`], [`Error::HookNotInModel`], [`Error::LayerOutOfRange`] and [`Error::NothingSelected`];
    /// - for positions: [`Error::SliceOutOfRange`], [`Error::PaddingChosen`];
    /// - for hooks: [`Error::Hook`], [`Error::HookPanicked`], [`Error::EditedInPlace`], [`Error::Replacement`], [`Error::Patch`];
    /// - for memory: [`Error::Budget`] if one entry exceeds the budget, [`Error::Torch`] if memory runs out.
    pub fn run<'a>(&self, input: impl Into<Input>, run: Run<'a>) -> Result<Outcome> {
        let plan = self.plan(&run)?;
        let output = run.output_or_default();
        let Run { hooks, positions, stop_at_layer, logits_at, bos, padding_side, budget, sink, .. } = run;
        let input = input.into();
        if bos == Bos::Yes && !matches!(input, Input::Texts(_)) {
            let why = "the input is token ids, which are used unchanged: put the id of the BOS token first";
            return Err(refused("prepend_bos", why));
        }
        let tokens = self.to_tokens_with(input, TokenOptions::new().prepend_bos(bos).padding_side(padding_side))?;
        tokens.check(self.config())?;
        let rows = (0..tokens.ids.size()[0]).collect();
        let kept = KeptPositions::new(&positions, &logits_at, &PositionAxis::new(&tokens, 0, rows)?)?;
        let tokens = tokens.to_device(self.device())?;
        let sink = match self.budget(&plan, budget, &tokens)? {
            Some(budget) => Some(Box::new(budget) as Box<dyn Sink>),
            None => sink,
        };
        let mut tap = Tap::new(&plan, hooks, (&tokens, 0), &kept, sink)?;
        let end = match self.forward_pass(&tokens, &plan, stop_at_layer.is_some(), &kept, &mut tap) {
            Ok(end) => Some(end),
            Err(Halt::Done) => None,
            Err(Halt::Failed(error)) => return Err(error),
        };
        let recording = tap.finish()?;
        let cache = ActivationCache::new(recording, self.model.clone(), self.tokenizer.clone(), tokens.clone(), kept);
        let mut outcome = Outcome { logits: None, loss: None, resid: None, cache };
        match (end, stop_at_layer, output) {
            (None, ..) | (_, _, Output::None) => {}
            (Some(resid), Some(_), _) => outcome.resid = Some(resid),
            (Some(logits), None, Output::Logits) => outcome.logits = Some(logits),
            (Some(logits), None, Output::Loss) => outcome.loss = Some(loss::next_token(&logits, &tokens, false)?),
            (Some(logits), None, Output::LossPerToken) => {
                outcome.loss = Some(loss::next_token(&logits, &tokens, true)?)
            }
            (Some(logits), None, Output::Both) => {
                outcome.loss = Some(loss::next_token(&logits, &tokens, false)?);
                outcome.logits = Some(logits);
            }
        }
        Ok(outcome)
    }

    /// The plan of a run: what it would compute and keep. The model is not run.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`] for settings and patches; [`Error::Unsupported`] for a loss of a model whose outputs are not its
    /// vocabulary.
    pub fn plan(&self, run: &Run<'_>) -> Result<Plan> {
        run.check()?;
        let (config, output) = (self.config(), run.output_or_default());
        let wants_loss = matches!(output, Output::Loss | Output::LossPerToken | Output::Both);
        if wants_loss && config.d_vocab_out != config.d_vocab {
            let (d_vocab, d_vocab_out) = (config.d_vocab, config.d_vocab_out);
            return Err(Error::unsupported(format!(
                "a loss needs one logit for each of {d_vocab} tokens, but this model has {d_vocab_out} outputs"
            )));
        }
        let stop = match run.stop_at_layer {
            // The number of layers is allowed: it means the stream after the last layer.
            Some(layer) if layer == config.n_layers.into() => Some(config.n_layers),
            Some(layer) => Some(config.layer(layer)?),
            None => None,
        };
        let whole = output != Output::None;
        let positions = [run.positions.clone(), run.logits_at.clone()];
        let model = (self.shared_config(), self.kind());
        let plan = Plan::new(model, positions, &run.hooks, run.cache.as_ref(), stop, whole)?;
        if !whole && !run.logits_at.is_all() && !plan.reaches_logits() {
            let why = "the run ends before it computes logits, at the last hook point that is used";
            return Err(refused("logits_at", why));
        }
        Ok(plan)
    }

    /// The memory budget of a run.
    ///
    /// # Errors
    ///
    /// [`Error::Budget`] if a single entry exceeds it.
    fn budget(&self, plan: &Plan, bytes: Option<u64>, tokens: &Tokens) -> Result<Option<Budget>> {
        let Some(budget) = bytes else { return Ok(None) };
        let size = tokens.ids.size();
        match plan.largest(size[0] as usize, size[1] as usize)? {
            Some((point, bytes)) if bytes > budget => Err(Error::Budget { budget, name: point.to_string(), bytes }),
            _ => Ok(Some(Budget::new(budget))),
        }
    }

    /// The logits of an input: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn forward(&self, input: impl Into<Input>) -> Result<Tensor> {
        self.run_with_hooks(input, Hooks::new())
    }

    /// The mean next-token cross entropy of an input, in nats.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn loss(&self, input: impl Into<Input>) -> Result<f64> {
        self.loss_with_hooks(input, Hooks::new())
    }

    /// The mean next-token cross entropy of an input, in nats, in a run with hooks.
    ///
    /// ```
    /// use tch_lens::{hook, Hooks, HookedTransformer, Patch};
    /// let model = HookedTransformer::toy()?;
    /// let prompt = "When Mary and John went to the shop, John gave a bag to Mary";
    /// let without = model.loss_with_hooks(prompt, Hooks::new().patch(hook::attn_out(0), Patch::zero()))?;
    /// assert!(without > model.loss(prompt)?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn loss_with_hooks(&self, input: impl Into<Input>, hooks: Hooks<'_>) -> Result<f64> {
        self.run(input, Run::new().hooks(hooks).output(Output::Loss))?.loss()
    }

    /// The logits, `[batch, pos, d_vocab_out]`, and a cache of every activation that fires by default.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_cache(&self, input: impl Into<Input>) -> Result<(Tensor, ActivationCache)> {
        self.run_with_cache_of(input, HookFilter::All)
    }

    /// The logits, `[batch, pos, d_vocab_out]`, and a cache of the selected activations: TransformerLens' `names_filter`.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_cache_of<'a>(
        &self,
        input: impl Into<Input>,
        select: impl Into<HookFilter<'a>>,
    ) -> Result<(Tensor, ActivationCache)> {
        let mut outcome = self.run(input, Run::new().cache(select))?;
        let logits = outcome.take_logits()?;
        Ok((logits, outcome.cache))
    }

    /// The logits of a run with hooks: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_hooks(&self, input: impl Into<Input>, hooks: Hooks<'_>) -> Result<Tensor> {
        self.run(input, Run::new().hooks(hooks))?.take_logits()
    }
}
