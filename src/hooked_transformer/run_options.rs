//! [`Run`]: what is wanted of a run; and [`Outcome`], what comes of it.

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::hook::HookFilter;
use crate::layer::Layer;
#[cfg(doc)]
use crate::run::Plan;
use crate::run::{Hooks, Sink};
use crate::text::positions::Positions;
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
    /// Nothing: the run ends with the last hook point at which something is done.
    None,
}

/// What is wanted of a run. All settings have TransformerLens' defaults.
///
/// A setting that would have no effect, or contradicts another, is an [`Error::Setting`]: `logits_at` where no logits are formed, `pos`, `budget` and
/// `sink` without a `cache`, a loss of a run that stops before the logits.
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
    pub(super) hooks: Hooks<'a>,
    pub(super) cache: Option<HookFilter<'a>>,
    pub(super) positions: Positions,
    pub(super) stop_at_layer: Option<Layer>,
    /// What was asked for, if something was: logits otherwise, or the stream at `stop_at_layer`.
    pub(super) output: Option<Output>,
    pub(super) logits_at: Positions,
    pub(super) bos: Bos,
    pub(super) padding_side: PaddingSide,
    pub(super) budget: Option<u64>,
    pub(super) sink: Option<Box<dyn Sink + 'a>>,
}

/// What a run gave.
#[derive(Debug)]
pub struct Outcome {
    /// Logits, where asked for.
    pub logits: Option<Tensor>,
    /// The loss, where asked for.
    pub loss: Option<Tensor>,
    /// With `stop_at_layer`: the stream before that layer, `[batch, pos, d_model]`. Absent with [`Output::None`].
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

    /// Runs only the blocks before this one (negative: counted from the end); the outcome has the stream there in place of logits.
    /// The number of layers is the end of the last block.
    pub fn stop_at_layer(mut self, layer: impl Into<Layer>) -> Self {
        self.stop_at_layer = Some(layer.into());
        self
    }

    /// What is made of the last residual stream.
    pub fn output(mut self, output: Output) -> Self {
        self.output = Some(output);
        self
    }

    /// Forms logits at these positions only: the product with `W_U` is a large part of a small model's run.
    /// An index keeps its axis, of length one.
    pub fn logits_at(mut self, positions: impl Into<Positions>) -> Self {
        self.logits_at = positions.into();
        self
    }

    /// Whether texts get the BOS token first. Token ids are taken as they are, so with them it is an error to ask for it.
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

    /// Where what [`cache`](Run::cache) selects goes, in place of the memory of the outcome's cache: to a file
    /// ([`FileSink`](crate::FileSink)), or to a closure that gets each activation as it is computed ([`Sink`]).
    pub fn sink(mut self, sink: impl Sink + 'a) -> Self {
        self.sink = Some(Box::new(sink));
        self
    }

    /// What is made of the end of the run.
    pub(super) fn made(&self) -> Output {
        self.output.unwrap_or_default()
    }

    /// That every setting has an effect, as far as that is known without a model.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`].
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |setting, why: &str| Err(refused(setting, why));
        if self.cache.is_none() {
            let unused =
                [("pos", !self.positions.is_all()), ("budget", self.budget.is_some()), ("sink", self.sink.is_some())];
            if let Some((setting, _)) = unused.into_iter().find(|(_, given)| *given) {
                return refuse(setting, "the run keeps no activations, so choose some with `cache`");
            }
        }
        if self.sink.is_some() && self.budget.is_some() {
            return refuse("budget", "it limits the cache's memory, and the run has a `sink`: use one of the two");
        }
        let wants_loss = matches!(self.made(), Output::Loss | Output::LossPerToken | Output::Both);
        if self.stop_at_layer.is_some() {
            match self.output {
                Some(Output::Logits) => {
                    return refuse("stop_at_layer", "the run is asked for logits, which come after it")
                }
                Some(_) if wants_loss => {
                    return refuse("stop_at_layer", "the run is asked for a loss, which comes after it")
                }
                _ if !self.logits_at.is_all() => return refuse("logits_at", "the run stops before logits are formed"),
                _ => {}
            }
        }
        if wants_loss && !self.logits_at.is_all() {
            return refuse("logits_at", "a loss needs the logits at all positions");
        }
        Ok(())
    }
}

/// The error for a setting of a run that would have no effect, or contradicts another.
pub(super) fn refused(setting: &'static str, why: &str) -> Error {
    Error::setting(setting, format!("the run's `{setting}` cannot be used: {why}"))
}
