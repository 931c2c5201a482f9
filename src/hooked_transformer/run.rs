//! [`Run`]: what is wanted of a run; and the methods that run the model.

use tch::Tensor;

use super::{loss, HookedTransformer};
use crate::cache::ActivationCache;
use crate::hook::HookFilter;
use crate::run::kept::KeptPositions;
use crate::run::sink::Budget;
use crate::run::{Halt, Hooks, Plan, Tap};
use crate::text::input::{Input, Tokens};
use crate::text::positions::{PositionAxis, Positions};
use crate::text::tokenizer::{Bos, PaddingSide};
use crate::{Error, Result};

/// What a run makes of the last residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Logits: `[batch, pos, d_vocab_out]`.
    #[default]
    Logits,
    /// The mean next-token cross entropy, in nats: no dimensions.
    Loss,
    /// Each token's: `[batch, pos − 1]`; zero where the next token is padding.
    LossPerToken,
    /// Logits and mean loss.
    Both,
    /// Nothing: the run ends with the last hook point that somebody looks at.
    None,
}

/// What is wanted of a run. All settings have TransformerLens' defaults.
///
/// ```
/// use tch_lens::{HookedTransformer, Output, Run};
/// let model = HookedTransformer::toy()?;
/// let run = Run::new().cache("resid_post").pos(-1).stop_at_layer(2).output(Output::None);
/// let outcome = model.run("When Mary and John went to the shop", run)?;
/// assert_eq!(outcome.cache.len(), 2); // of layers 0 and 1
/// assert_eq!(outcome.cache["blocks.0.hook_resid_post"].size(), [1, 1, 128]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Default)]
pub struct Run<'a> {
    hooks: Hooks<'a>,
    cache: Option<HookFilter<'a>>,
    positions: Positions,
    stop_at_layer: Option<i64>,
    output: Output,
    logits_at: Positions,
    bos: Bos,
    padding_side: PaddingSide,
    budget: Option<u64>,
}

/// What a run gave.
#[derive(Debug)]
pub struct Outcome {
    /// Logits, where asked for.
    pub logits: Option<Tensor>,
    /// The loss, where asked for.
    pub loss: Option<Tensor>,
    /// With `stop_at_layer`: the stream before that layer, `[batch, pos, d_model]`.
    pub resid: Option<Tensor>,
    /// What was asked to be kept.
    pub cache: ActivationCache,
}

impl<'a> Run<'a> {
    /// Logits, no hooks, no cache.
    pub fn new() -> Self {
        Run::default()
    }

    /// Keeps these activations.
    pub fn cache(mut self, select: impl Into<HookFilter<'a>>) -> Self {
        self.cache = Some(select.into());
        self
    }

    /// Does this at hook points.
    pub fn hooks(mut self, hooks: Hooks<'a>) -> Self {
        self.hooks = hooks;
        self
    }

    /// Keeps only these positions of the activations, on the axis that each hook point has for them (the query's,
    /// of patterns). An index keeps its axis, of length one, as TransformerLens' `pos_slice`. Of an expert's rows, those of the tokens
    /// at these positions are kept.
    ///
    /// Of the last norm and the unembedding, the positions that [`logits_at`](Run::logits_at) has as well are kept; where there are
    /// none, the cache has no such entry.
    pub fn pos(mut self, positions: impl Into<Positions>) -> Self {
        self.positions = positions.into();
        self
    }

    /// Runs only the blocks before this one (negative: counted from the end); the outcome has the stream there.
    pub fn stop_at_layer(mut self, layer: i64) -> Self {
        self.stop_at_layer = Some(layer);
        self
    }

    /// What is made of the last residual stream.
    pub fn output(mut self, output: Output) -> Self {
        self.output = output;
        self
    }

    /// Forms logits at these positions only: the product with `W_U` is a large part of a small model's run.
    /// An index keeps its axis, of length one.
    pub fn logits_at(mut self, positions: impl Into<Positions>) -> Self {
        self.logits_at = positions.into();
        self
    }

    /// Whether texts get the BOS token first.
    pub fn prepend_bos(mut self, bos: Bos) -> Self {
        self.bos = bos;
        self
    }

    /// On which side texts of different lengths are padded.
    pub fn padding_side(mut self, side: PaddingSide) -> Self {
        self.padding_side = side;
        self
    }

    /// The bytes that the cache may take in the memory of the model's device. What comes after it is full goes to the CPU's memory
    /// from another device, and from the CPU to a file in the temporary folder (`TMPDIR`), mapped into memory and gone
    /// with its tensor. Entries are counted as in [`Plan::estimate`], which says beforehand what a run will take.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, Run};
    /// let model = HookedTransformer::toy()?;
    /// let run = || Run::new().cache("resid_post");
    /// let (free, tight) = (model.run([1, 2, 3], run())?, model.run([1, 2, 3], run().budget(2000))?);
    /// assert_eq!(free.cache["blocks.3.hook_resid_post"], tight.cache["blocks.3.hook_resid_post"]); // the latter in a file
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }
}

impl HookedTransformer {
    /// Runs the model: everything that a run can do, in one call.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the input ([`Error::EmptyPrompt`], [`Error::PromptTooLong`],
    /// [`Error::TokenOutOfRange`], [`Error::NoTokenizer`]), with a name or filter
    /// ([`Error::UnknownHook`], [`Error::NothingSelected`], …), or with what a hook did
    /// ([`Error::Replacement`], [`Error::Hook`]).
    pub fn run<'a>(&self, input: impl Into<Input>, run: Run<'a>) -> Result<Outcome> {
        let plan = self.plan(&run)?;
        let Run { hooks, positions, stop_at_layer, output, logits_at, bos, padding_side, budget, .. } = run;
        let tokens = self.to_tokens_with(input, bos, padding_side)?;
        tokens.check(self.config())?;
        let rows = (0..tokens.ids.size()[0]).collect();
        let kept = KeptPositions::new(&positions, &logits_at, &PositionAxis::new(&tokens, 0, rows)?)?;
        let tokens = tokens.to_device(self.device())?;
        let wants_loss = matches!(output, Output::Loss | Output::LossPerToken | Output::Both);
        if wants_loss && !logits_at.is_all() {
            return Err(Error::invalid("a loss needs the logits at all positions: leave out `logits_at`"));
        }
        let (d_vocab, d_vocab_out) = (self.config().d_vocab, self.config().d_vocab_out);
        if wants_loss && d_vocab_out != d_vocab {
            let sentence = format!(
                "a loss needs one logit for each of {d_vocab} tokens, and this model has {d_vocab_out} outputs"
            );
            return Err(Error::invalid(sentence));
        }

        let budget = self.budget(&plan, budget, &tokens)?;
        let mut tap = Tap::new(&plan, hooks, (&tokens, 0), &kept, budget)?;
        let end = match self.forward_pass(&tokens, &plan, stop_at_layer.is_some(), &kept, &mut tap) {
            Ok(end) => Some(end),
            Err(Halt::Done) => None,
            Err(Halt::Failed(error)) => return Err(error),
        };
        let recording = tap.finish()?;
        let cache = ActivationCache::new(recording, self.model.clone(), self.tokenizer.clone(), tokens.clone(), kept);
        let mut outcome = Outcome { logits: None, loss: None, resid: None, cache };
        match (end, stop_at_layer) {
            (Some(resid), Some(_)) => outcome.resid = Some(resid),
            (Some(logits), None) if output != Output::None => {
                if wants_loss {
                    let per_token = output == Output::LossPerToken;
                    outcome.loss = Some(loss::next_token(&logits, &tokens, per_token)?);
                }
                if matches!(output, Output::Logits | Output::Both) {
                    outcome.logits = Some(logits);
                }
            }
            _ => {}
        }
        Ok(outcome)
    }

    /// What a run would compute, without running it.
    ///
    /// # Errors
    ///
    /// A name's or filter's own, and [`Error::LayerOutOfRange`] of `stop_at_layer`.
    pub fn plan(&self, run: &Run<'_>) -> Result<Plan> {
        let n_layers = self.config().n_layers;
        let stop = match run.stop_at_layer {
            // One past the last is allowed: it is where the stream ends.
            Some(layer) if layer == n_layers as i64 => Some(n_layers),
            Some(layer) => Some(self.config().layer(layer)?),
            None => None,
        };
        let whole = run.output != Output::None || stop.is_some();
        let positions = [run.positions.clone(), run.logits_at.clone()];
        Plan::new((self.shared_config(), self.kind()), positions, &run.hooks, run.cache.as_ref(), stop, whole)
    }

    /// A run's memory budget, once it is known that no single entry exceeds it.
    fn budget(&self, plan: &Plan, bytes: Option<u64>, tokens: &Tokens) -> Result<Option<Budget>> {
        let Some(budget) = bytes else { return Ok(None) };
        let size = tokens.ids.size();
        match plan.largest(size[0] as usize, size[1] as usize)? {
            Some((point, bytes)) if bytes > budget => Err(Error::Budget { budget, name: point.to_string(), bytes }),
            _ => Ok(Some(Budget::new(budget))),
        }
    }

    /// Logits: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn forward(&self, input: impl Into<Input>) -> Result<Tensor> {
        self.run_with_hooks(input, Hooks::new())
    }

    /// The mean next-token cross entropy of the input, in nats.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn loss(&self, input: impl Into<Input>) -> Result<f64> {
        let outcome = self.run(input, Run::new().output(Output::Loss))?;
        Ok(asked_for(outcome.loss)?.f_double_value(&[])?)
    }

    /// Logits, and every activation that fires by default.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_cache(&self, input: impl Into<Input>) -> Result<(Tensor, ActivationCache)> {
        self.run_with_cache_of(input, HookFilter::All)
    }

    /// Logits, and the activations selected: TransformerLens' `names_filter`.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_cache_of<'a>(
        &self,
        input: impl Into<Input>,
        select: impl Into<HookFilter<'a>>,
    ) -> Result<(Tensor, ActivationCache)> {
        let outcome = self.run(input, Run::new().cache(select))?;
        Ok((asked_for(outcome.logits)?, outcome.cache))
    }

    /// Logits, with these hooks in place.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_hooks(&self, input: impl Into<Input>, hooks: Hooks<'_>) -> Result<Tensor> {
        asked_for(self.run(input, Run::new().hooks(hooks))?.logits)
    }
}

/// What the run was told to make, and did.
fn asked_for(output: Option<Tensor>) -> Result<Tensor> {
    output.ok_or_else(|| Error::invalid("the run was not asked for this output"))
}
