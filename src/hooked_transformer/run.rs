//! The methods that run the model.

use tch::Tensor;

use super::run_input::RunInput;
use super::run_options::{refused, ReturnType, RunOptions, RunOutput, RunStart};
use super::{loss, HookedTransformer};
use crate::cache::{describe_run, ActivationCache};
use crate::hook::{End, HookFilter, PointSet, Section, Stack, Start};
use crate::layer::Layer;
use crate::model::batch::Batch;
use crate::model::layout::Layout;
use crate::run::backward::BackwardPass;
use crate::run::kept::KeptPositions;
use crate::run::sink::Budget;
use crate::run::{Halt, Hooks, Plan, Sink, Tap};
use crate::text::input::{Input, Tokens};
use crate::text::positions::PositionAxis;
use crate::{Error, Result};

impl HookedTransformer {
    /// Runs the model with all settings of [`RunOptions`]. The other methods here are short forms of it.
    ///
    /// # Errors
    ///
    /// - for the input: those of [`to_tokens`](HookedTransformer::to_tokens), [`Error::PromptTooLong`], [`Error::TokenOutOfRange`];
    /// - for settings: [`Error::Setting`] if one has no effect or contradicts another, and those of hook names and filters, such as
    ///   [`Error::UnknownHook`], [`Error::HookNotInModel`], [`Error::LayerOutOfRange`] and [`Error::NothingSelected`];
    /// - for positions: [`Error::SliceOutOfRange`], [`Error::PaddingChosen`];
    /// - for hooks: [`Error::Hook`], [`Error::Patch`], [`Error::Sink`];
    /// - for memory: [`Error::Budget`] if one entry exceeds the budget, [`Error::Torch`] if memory runs out.
    pub fn run<'a>(&self, input: impl Into<Input>, run: RunOptions<'a>) -> Result<RunOutput> {
        Ok(self.run_recorded(input.into(), run)?.0)
    }

    /// [`HookedTransformer::run`], with what a backward pass through the run needs.
    pub(crate) fn run_recorded<'a>(
        &self,
        input: Input,
        mut run: RunOptions<'a>,
    ) -> Result<(RunOutput, BackwardPass<'a>)> {
        let plan = self.plan(&run)?;
        let input = match plan.section.start {
            Start::Tokens => self.token_input(input, run.bos, run.padding_side, plan.past)?,
            _ => self.stream_input(input, run.tokens.take(), plan.past)?,
        };
        self.run_planned(input, &plan, run)
    }

    /// Runs the model on an input that was checked.
    pub(super) fn run_planned<'a>(
        &self,
        input: RunInput,
        plan: &Plan,
        run: RunOptions<'a>,
    ) -> Result<(RunOutput, BackwardPass<'a>)> {
        let output = run.return_type_or_default();
        let RunOptions { hooks, positions, past: mut store, logits_at, budget, sink, .. } = run;
        let RunInput { tokens, stream } = input;
        let [batch, pos] = [tokens.ids.size()[0], tokens.ids.size()[1]].map(|n| n as usize);
        let section = &plan.section;
        if let Some(store) = &store {
            store.check(self, batch, pos, &section.layers)?;
        }
        let past = plan.past as i64;
        let axis = PositionAxis::new(&tokens, past, (0..batch as i64).collect())?;
        let kept = KeptPositions::new(&positions, &logits_at, &axis)?;
        let tokens = tokens.to_device(self.device())?;
        let padding = store.as_ref().and_then(|store| store.padding());
        let layout = Layout::new(batch, plan.span(pos), padding, tokens.mask.as_ref())?;
        let addition = store.as_ref().map(|store| store.addition(&layout, section.layers.clone())).transpose()?;
        if let Some(store) = &mut store {
            store.make_room(pos, &section.layers, |layer| plan.changes_keys(layer))?;
            plan.check_keys(|layer| store.first(layer))?;
        }

        let sink = match self.budget(plan, budget, &tokens)? {
            Some(budget) => Some(Box::new(budget) as Box<dyn Sink>),
            None => sink,
        };
        let describe = |changed: &PointSet| describe_run(&self.model, &tokens, &kept, changed);
        let mut tap = Tap::new(plan, hooks, (&tokens, past), &kept, sink, describe)?;
        let encoder = self.encoder_output.as_ref().map(|output| output.for_batch(layout.batch as usize)).transpose()?;
        let batch = Batch {
            ids: &tokens.ids,
            token_types: tokens.types.as_ref(),
            stream: stream.as_ref(),
            layout: &layout,
            store: store.as_deref(),
            encoder: encoder.as_ref(),
        };
        let end = match self.forward_pass(&batch, plan, &kept, &mut tap) {
            Ok(end) => Some(end),
            Err(Halt::Done) => None,
            Err(Halt::Failed(error)) => return Err(error),
        };
        let (recording, backward) = tap.finish(describe)?;
        if let (Some(store), Some(addition)) = (&mut store, addition) {
            store.commit(addition, &tokens.ids)?;
        }
        let cache = ActivationCache::new(recording, self.model.clone(), self.tokenizer.clone(), tokens.clone(), kept);
        let mut outcome = RunOutput { logits: None, loss: None, resid: None, cache };
        match (end, run.stop_at_layer, output) {
            (None, ..) | (_, _, ReturnType::None) => {}
            (Some(resid), Some(_), _) => outcome.resid = Some(resid),
            (Some(logits), None, ReturnType::Logits) => outcome.logits = Some(logits),
            (Some(logits), None, ReturnType::Loss) => outcome.loss = Some(loss::next_token(&logits, &tokens, false)?),
            (Some(logits), None, ReturnType::LossPerToken) => {
                outcome.loss = Some(loss::next_token(&logits, &tokens, true)?)
            }
            (Some(logits), None, ReturnType::Both) => {
                outcome.loss = Some(loss::next_token(&logits, &tokens, false)?);
                outcome.logits = Some(logits);
            }
        }
        Ok((outcome, backward))
    }

    /// The plan of a run: what it would compute and keep. The model is not run.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`] for settings and patches; [`Error::Unsupported`] for a loss of a model whose outputs are not its
    /// vocabulary.
    pub fn plan(&self, run: &RunOptions<'_>) -> Result<Plan> {
        run.check()?;
        let (config, output) = (self.config(), run.return_type_or_default());
        if config.attention.cross.is_some() && self.encoder_output.is_none() {
            return Err(Error::unsupported(
                "a decoder reads the output of an encoder, which is not given: use `with_encoder_output`",
            ));
        }
        if output.is_loss() && config.stack == Stack::Encoder {
            return Err(Error::unsupported("an encoder has no logits, of which a loss is made"));
        }
        if output.is_loss() && config.d_vocab_out != config.d_vocab {
            let (d_vocab, d_vocab_out) = (config.d_vocab, config.d_vocab_out);
            return Err(Error::unsupported(format!(
                "a loss needs one logit for each of {d_vocab} tokens, but this model has {d_vocab_out} outputs"
            )));
        }
        let section = self.section(run)?;
        let positions = [run.positions.clone(), run.logits_at.clone()];
        let model = (self.shared_config(), self.kind(), self.splices());
        let past = run.past.as_ref().map(|store| store.len());
        let mut plan = Plan::new(model, positions, &run.hooks, run.cache.as_ref(), section, past, run.differentiation)?;
        plan.encoder_positions = self.encoder_output.as_ref().map_or(0, |output| output.positions() as usize);
        if plan.section.end != End::Logits && !run.logits_at.is_all() && !plan.reaches_logits() {
            let why = "the run ends before it computes logits, at the last hook point that is used";
            return Err(refused("logits_at", why));
        }
        Ok(plan)
    }

    /// The section of the model that a run computes.
    fn section(&self, run: &RunOptions<'_>) -> Result<Section> {
        let n_layers = self.config().n_layers;
        // The number of layers is allowed: it means the stream after the last layer.
        let index = |layer: Layer| if layer == n_layers.into() { Ok(n_layers) } else { self.config().layer(layer) };
        let stop = run.stop_at_layer.map(index).transpose()?;
        let (start, first) = match run.start {
            RunStart::Tokens => (Start::Tokens, 0),
            RunStart::Embeddings => (Start::Embeddings, 0),
            RunStart::Layer(layer) => (Start::Stream, index(layer)?),
        };
        let layers = first..stop.unwrap_or(n_layers);
        if layers.start > layers.end {
            let why = format!("the run starts at layer {} and would stop before layer {}", layers.start, layers.end);
            return Err(refused("stop_at_layer", &why));
        }
        let mut sources = layers.clone().filter_map(|layer| Some((layer, self.config().needs_layer(layer)?)));
        if let Some((layer, source)) = sources.find(|(_, source)| *source < first) {
            let needed = match self.config().shares_keys_of(layer) {
                Some(_) => format!("looks at the keys and values of layer {source}"),
                None => format!("sees the keys that layer {source} chooses"),
            };
            let why = format!("layer {layer} {needed}: start at layer {} or before", self.config().start_for(first));
            return Err(refused("start_at_layer", &why));
        }
        let end = match (run.return_type_or_default(), stop) {
            (ReturnType::None, _) => End::LastPoint,
            (_, Some(_)) => End::Stream,
            (_, None) => End::Logits,
        };
        Ok(Section { start, layers, has_logits: stop.is_none(), end })
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
        self.run(input, RunOptions::new().hooks(hooks).return_type(ReturnType::Loss))?.loss()
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
        let mut outcome = self.run(input, RunOptions::new().cache(select))?;
        let logits = outcome.take_logits()?;
        Ok((logits, outcome.cache))
    }

    /// The logits of a run with hooks: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_hooks(&self, input: impl Into<Input>, hooks: Hooks<'_>) -> Result<Tensor> {
        self.run(input, RunOptions::new().hooks(hooks))?.take_logits()
    }
}
