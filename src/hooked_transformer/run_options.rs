//! [`RunOptions`], the settings of a run, and [`RunOutput`], its results.

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::hook::HookFilter;
use crate::layer::Layer;
use crate::model::KeyValueStore;
#[cfg(doc)]
use crate::run::Plan;
use crate::run::{BackwardRules, Differentiation, Hooks, Order, Sink};
use crate::text::input::Tokens;
use crate::text::positions::Positions;
use crate::text::tokenizer::{Bos, PaddingSide};
use crate::{Error, Result};

/// What a run computes from the last residual stream: TransformerLens' `return_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReturnType {
    /// Logits: `[batch, pos, d_vocab_out]`.
    #[default]
    Logits,
    /// The mean next-token cross entropy, in nats: no dimensions.
    Loss,
    /// The cross entropy of each next token, in nats: `[batch, pos − 1]`; zero where the next token is padding.
    LossPerToken,
    /// The logits and the mean loss.
    Both,
    /// Nothing. The run ends at the last hook point that a hook, the cache or the sink uses.
    None,
}

impl ReturnType {
    /// Whether it needs the loss.
    pub(super) fn is_loss(self) -> bool {
        matches!(self, ReturnType::Loss | ReturnType::LossPerToken | ReturnType::Both)
    }
}

/// The settings of a run. The defaults are those of TransformerLens.
///
/// A setting that has no effect or contradicts another one gives an [`Error::Setting`]. Examples are `logits_at` in a run that computes no
/// logits, `pos`, `budget` and `sink` without `cache`, and a loss with `stop_at_layer`.
///
/// ```
/// use tch_lens::{HookedTransformer, ReturnType, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let run = RunOptions::new().cache("resid_post").pos(-1).stop_at_layer(2).return_type(ReturnType::None);
/// let outcome = model.run("When Mary and John went to the shop", run)?;
/// assert_eq!(outcome.cache.len(), 2); // layers 0 and 1
/// assert_eq!(outcome.cache["blocks.0.hook_resid_post"].size(), [1, 1, 128]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Default)]
pub struct RunOptions<'a> {
    pub(super) hooks: Hooks<'a>,
    pub(super) cache: Option<HookFilter<'a>>,
    pub(super) positions: Positions,
    pub(super) past: Option<&'a mut KeyValueStore>,
    pub(super) start: RunStart,
    /// The tokens that belong to the stream that the run starts from.
    pub(super) tokens: Option<Tokens>,
    pub(super) stop_at_layer: Option<Layer>,
    /// `None` means logits, or the stream with `stop_at_layer`.
    pub(super) return_type: Option<ReturnType>,
    pub(super) logits_at: Positions,
    pub(super) bos: Bos,
    pub(super) padding_side: PaddingSide,
    pub(super) budget: Option<u64>,
    pub(super) sink: Option<Box<dyn Sink + 'a>>,
    /// What is recorded for gradients.
    pub(super) differentiation: Differentiation,
}

/// Where a run starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RunStart {
    #[default]
    Tokens,
    Embeddings,
    Layer(Layer),
}

/// The results of a run.
///
/// The fields hold what the run computed. The methods of the same name return an error that names the missing setting where a field is
/// empty:
///
/// ```
/// use tch_lens::{hook, Hooks, HookedTransformer, ReturnType, Patch, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let hooks = Hooks::new().patch(hook::z(1), Patch::zero().head(0));
/// let outcome = model.run("When Mary and John went to the shop", RunOptions::new().hooks(hooks).return_type(ReturnType::Both))?;
/// assert_eq!(outcome.logits()?.size(), [1, 9, 1047]); // [batch, pos, d_vocab_out]
/// assert!(outcome.loss()? > 0.0);
/// let error = outcome.resid().unwrap_err();
/// assert_eq!(error.to_string(), "the run did not compute the residual stream: set `stop_at_layer`");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct RunOutput {
    /// The logits, `[batch, pos, d_vocab_out]`, with [`ReturnType::Logits`] and [`ReturnType::Both`].
    pub logits: Option<Tensor>,
    /// The mean loss, without dimensions, with [`ReturnType::Loss`] and [`ReturnType::Both`]; the loss per token, `[batch, pos − 1]`, with
    /// [`ReturnType::LossPerToken`].
    pub loss: Option<Tensor>,
    /// The stream before the layer of `stop_at_layer`, `[batch, pos, d_model]`. Empty without `stop_at_layer` and with [`ReturnType::None`].
    pub resid: Option<Tensor>,
    /// The activations that [`RunOptions::cache`] selected. Empty without that setting.
    pub cache: ActivationCache,
}

impl RunOutput {
    /// The logits: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// [`Error::NotComputed`] if the run computed no logits.
    pub fn logits(&self) -> Result<&Tensor> {
        self.logits.as_ref().ok_or_else(no_logits)
    }

    /// Moves the logits out of the output: `[batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of [`RunOutput::logits`].
    pub fn take_logits(&mut self) -> Result<Tensor> {
        self.logits.take().ok_or_else(no_logits)
    }

    /// The mean next-token cross entropy, in nats, as a number.
    ///
    /// # Errors
    ///
    /// [`Error::NotComputed`] if the run computed no loss, or the loss per token.
    pub fn loss(&self) -> Result<f64> {
        let loss = self.loss_tensor()?;
        match loss.dim() {
            0 => Ok(loss.f_double_value(&[])?),
            _ => Err(not_computed(
                "the mean loss",
                "it computed the loss per token, so use `loss_tensor`, or `return_type(ReturnType::Loss)`",
            )),
        }
    }

    /// The loss as a tensor, for example to call `backward`: the mean, without dimensions, or with [`ReturnType::LossPerToken`] the loss per
    /// token, `[batch, pos − 1]`.
    ///
    /// # Errors
    ///
    /// [`Error::NotComputed`] if the run computed no loss.
    pub fn loss_tensor(&self) -> Result<&Tensor> {
        let hint = "set `return_type` to `ReturnType::Loss`, `ReturnType::LossPerToken` or `ReturnType::Both`";
        self.loss.as_ref().ok_or_else(|| not_computed("a loss", hint))
    }

    /// The stream before the layer of `stop_at_layer`: `[batch, pos, d_model]`.
    ///
    /// # Errors
    ///
    /// [`Error::NotComputed`] without `stop_at_layer`, and with [`ReturnType::None`].
    pub fn resid(&self) -> Result<&Tensor> {
        self.resid.as_ref().ok_or_else(|| not_computed("the residual stream", "set `stop_at_layer`"))
    }
}

fn no_logits() -> Error {
    not_computed(
        "logits",
        "set `return_type` to `ReturnType::Logits` or `ReturnType::Both`, and leave out `stop_at_layer`",
    )
}

fn not_computed(output: &'static str, hint: &'static str) -> Error {
    Error::NotComputed { output, hint }
}

impl<'a> RunOptions<'a> {
    /// The default settings: the run computes logits, without hooks, and keeps no activations.
    pub fn new() -> Self {
        RunOptions::default()
    }

    /// Keeps the selected activations in the cache of the output.
    pub fn cache(mut self, select: impl Into<HookFilter<'a>>) -> Self {
        self.cache = Some(select.into());
        self
    }

    /// Adds hooks.
    pub fn hooks(mut self, hooks: Hooks<'a>) -> Self {
        self.hooks = hooks;
        self
    }

    /// Keeps only these positions of the activations. In attention scores and patterns, the positions are those of the query. An index
    /// keeps the axis with length one, like TransformerLens' `pos_slice`. For experts, the rows of the tokens at these positions are kept.
    ///
    /// For the last norm and the unembedding, the run keeps the positions that are also in [`logits_at`](RunOptions::logits_at). If there are none,
    /// the cache has no entry for them.
    pub fn pos(mut self, positions: impl Into<Positions>) -> Self {
        self.positions = positions.into();
        self
    }

    /// Continues the sequences in a key-value store. The input's tokens follow the tokens in the store, and the run adds the input's positions
    /// to the store. After an error the store is unchanged.
    ///
    /// The logits, the loss and the cache are those of the input's positions. Scores and patterns also have the keys in the store. Positions
    /// count from the start of the store, so `pos(5)` is the sixth token of the whole sequence. The loss excludes the input's first token, whose
    /// predecessor is not in the input. All layers run, also with [`ReturnType::None`].
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, KeyValueStore, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let mut store = KeyValueStore::new(&model, 1, 8)?;
    /// model.run([5, 17, 3], RunOptions::new().past(&mut store))?;
    /// let cache = model.run([60, 9], RunOptions::new().past(&mut store).cache("pattern"))?.cache;
    /// assert_eq!(cache[("pattern", 0)].size(), [1, 4, 2, 5]); // [batch, head, query, key]
    /// assert_eq!(cache.positions().of_row(0), [3, 4]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn past(mut self, store: &'a mut KeyValueStore) -> Self {
        self.past = Some(store);
        self
    }

    /// Starts the run at this layer. The input is the residual stream before it, a tensor `[batch, pos, d_model]` or `[pos, d_model]` with the
    /// model's kind.
    ///
    /// A negative layer counts from the end. The number of layers means the stream after the last layer. Hook points before the start are
    /// not reached. [`tokens`](RunOptions::tokens) sets the tokens that belong to the stream.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let (logits, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let resid = &cache[hook::resid_pre(2)];
    /// let late = model.run(resid, RunOptions::new().start_at_layer(2))?.logits.unwrap();
    /// assert!(late.allclose(&logits, 1e-4, 1e-4, false));
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn start_at_layer(mut self, layer: impl Into<Layer>) -> Self {
        self.start = RunStart::Layer(layer.into());
        self
    }

    /// Starts the run from token embeddings. The input is a tensor `[batch, pos, d_model]` or `[pos, d_model]`, like the activation of
    /// `hook_embed`. Position embeddings are added to it.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let mixed = (model.w_e()?.get(5) + model.w_e()?.get(17)) / 2.0; // no token's embedding
    /// let logits = model.run(mixed.unsqueeze(0), RunOptions::new().start_from_embeddings())?.logits.unwrap();
    /// assert_eq!(logits.size()[..2], [1, 1]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn start_from_embeddings(mut self) -> Self {
        self.start = RunStart::Embeddings;
        self
    }

    /// Sets the tokens that belong to the stream or the embeddings that the run starts from. Their mask marks padding, and a loss uses their
    /// ids.
    pub fn tokens(mut self, tokens: &Tokens) -> Self {
        self.tokens = Some(tokens.clone());
        self
    }

    /// Runs only the layers before this one. The output has the stream before this layer in place of logits.
    ///
    /// A negative layer counts from the end. The number of layers means the stream after the last layer.
    pub fn stop_at_layer(mut self, layer: impl Into<Layer>) -> Self {
        self.stop_at_layer = Some(layer.into());
        self
    }

    /// What the run computes from the last residual stream.
    pub fn return_type(mut self, return_type: ReturnType) -> Self {
        self.return_type = Some(return_type);
        self
    }

    /// Computes logits only at these positions. The product with `W_U` is a large part of the run of a small model. An index keeps the axis
    /// with length one.
    pub fn logits_at(mut self, positions: impl Into<Positions>) -> Self {
        self.logits_at = positions.into();
        self
    }

    /// Whether the BOS token is prepended to texts. Token ids are used unchanged, so `Bos::Yes` is an error with ids.
    pub fn prepend_bos(mut self, bos: Bos) -> Self {
        self.bos = bos;
        self
    }

    /// The side on which shorter texts of a batch are padded.
    pub fn padding_side(mut self, side: PaddingSide) -> Self {
        self.padding_side = side;
        self
    }

    /// Limits the memory of the cache on the model's device, in bytes.
    ///
    /// Further entries are moved to CPU memory if the model is on another device. On the CPU they are moved to a file in the temporary
    /// folder (`TMPDIR`), which is mapped into memory and deleted with its tensor. Entries are counted as in [`Plan::estimate`], which gives
    /// the memory of a run in advance.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let run = || RunOptions::new().cache("resid_post");
    /// let (free, tight) = (model.run([1, 2, 3], run())?, model.run([1, 2, 3], run().budget(2000))?);
    /// assert_eq!(free.cache["blocks.3.hook_resid_post"], tight.cache["blocks.3.hook_resid_post"]); // the second is in a file
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Sends the activations that [`cache`](RunOptions::cache) selects to a sink instead of the output's cache: to a file
    /// ([`FileSink`](crate::FileSink)), or to a closure that receives each activation as it is computed ([`Sink`]).
    pub fn sink(mut self, sink: impl Sink + 'a) -> Self {
        self.sink = Some(Box::new(sink));
        self
    }

    /// Rules that change what a backward pass through the run computes: frozen norms and patterns, and those of relevance patching. No value
    /// of the run changes.
    pub fn backward_rules(mut self, rules: BackwardRules) -> Self {
        self.differentiation.rules = rules;
        self
    }

    /// Whether activations to keep were selected.
    /// Takes the hooks and the cache's filter out.
    pub(crate) fn take_hooks_and_cache(&mut self) -> (Hooks<'a>, Option<HookFilter<'a>>) {
        (std::mem::take(&mut self.hooks), self.cache.take())
    }

    pub(crate) fn keeps_activations(&self) -> bool {
        self.cache.is_some()
    }

    /// Records gradients of what the run keeps: of everything that fires by default, if nothing was selected.
    pub(crate) fn differentiable(mut self, order: Order) -> Self {
        self.differentiation.order = order;
        self.cache.get_or_insert_default();
        self
    }

    /// What the run returns; logits by default.
    pub(super) fn return_type_or_default(&self) -> ReturnType {
        self.return_type.unwrap_or_default()
    }

    /// Checks that every setting has an effect, as far as this does not depend on the model.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a setting that has no effect or contradicts another one.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |setting, why: &str| Err(refused(setting, why));
        if self.cache.is_none() {
            let unused =
                [("pos", !self.positions.is_all()), ("budget", self.budget.is_some()), ("sink", self.sink.is_some())];
            if let Some((setting, _)) = unused.into_iter().find(|(_, given)| *given) {
                return refuse(setting, "the run keeps no activations, so select some with `cache`");
            }
        }
        if self.differentiation.order != Order::None && (self.sink.is_some() || self.budget.is_some()) {
            let setting = if self.sink.is_some() { "sink" } else { "budget" };
            return refuse(setting, "gradients need the activations in memory");
        }
        if self.sink.is_some() && self.budget.is_some() {
            return refuse("budget", "the run has a `sink`, so its cache stays empty: use one of the two");
        }
        let wants_loss = self.return_type_or_default().is_loss();
        if self.start == RunStart::Tokens && self.tokens.is_some() {
            return refuse("tokens", "the run starts from its input's tokens");
        }
        if self.start != RunStart::Tokens {
            if self.tokens.is_none() && wants_loss {
                return refuse(
                    "return_type",
                    "a loss compares with tokens, and the run starts from a stream: give them with `tokens`",
                );
            }
            if self.bos != Bos::Default {
                return refuse("prepend_bos", "the run starts from a stream");
            }
        }
        if self.stop_at_layer.is_some() {
            match self.return_type {
                Some(ReturnType::Logits) => {
                    return refuse(
                        "stop_at_layer",
                        "`return_type` asks for logits, which are computed after all layers",
                    )
                }
                Some(_) if wants_loss => {
                    return refuse("stop_at_layer", "`return_type` asks for a loss, which is computed after all layers")
                }
                _ if !self.logits_at.is_all() => return refuse("logits_at", "the run stops before it computes logits"),
                _ => {}
            }
        }
        if wants_loss && !self.logits_at.is_all() {
            return refuse("logits_at", "a loss needs the logits at all positions");
        }
        Ok(())
    }
}

/// The error for a setting of a run that has no effect or contradicts another one.
pub(super) fn refused(setting: &'static str, why: &str) -> Error {
    Error::setting(setting, format!("the run's `{setting}` cannot be used: {why}"))
}
