//! The forward pass, from tokens to logits, in the order of the files: [`embed`], [`norm`], [`attention`] (with
//! [`mask`] and [`rotary`]), [`mlp`] or [`moe`], [`block`], [`unembed`].
//!
//! One pass serves all families, driven by [`Config`]: no file here knows a family's name. [`run`] is what a user
//! asks of it.

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod context;
pub(crate) mod embed;
pub(crate) mod init;
pub(crate) mod input;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod mask;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod rotary;
pub(crate) mod run;
pub(crate) mod state_dict;
pub(crate) mod unembed;

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::cache::ActivationCache;
use crate::hook::{all_points, Hooks, Select};
use crate::pretrained::processing::Processing;
use crate::tokenizer::{Bos, PaddingSide, Tokenizer};
use crate::unchecked::threads::Shared;
use crate::{Config, Error, Result};

pub use init::Init;
pub use input::{Input, Tokens};
pub use run::{Outcome, Output, Run};

/// A language model with hook points: TransformerLens' `HookedTransformer`.
///
/// A cheap handle: clones share the weights, and can be sent to and used from several threads.
///
/// ```
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let (logits, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let next = logits.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]);
/// assert_eq!(model.to_string(&[next])?, " Mary");
/// assert_eq!(cache[("pattern", 0)].size()[1], 4); // [batch, head, query, key]
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HookedTransformer {
    config: Arc<Config>,
    weights: Arc<Shared<Weights>>,
    tables: Arc<context::Tables>,
    tokenizer: Option<Tokenizer>,
    processing: Arc<[Processing]>,
}

/// All weights, by component.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embed: embed::Embed,
    pub(crate) blocks: Vec<block::Block>,
    pub(crate) unembed: unembed::Unembed,
}

impl HookedTransformer {
    /// A model of these parts.
    pub(crate) fn from_parts(
        config: Config,
        weights: Weights,
        tokenizer: Option<Tokenizer>,
        processing: Vec<Processing>,
    ) -> Self {
        HookedTransformer {
            config: Arc::new(config),
            weights: Arc::new(Shared::new(weights)),
            tables: Arc::default(),
            tokenizer,
            processing: processing.into(),
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn shared_config(&self) -> &Arc<Config> {
        &self.config
    }

    pub(crate) fn weights(&self) -> &Weights {
        self.weights.get()
    }

    pub(crate) fn tables(&self) -> &context::Tables {
        &self.tables
    }

    /// What was done to the weights when they were loaded, what was left out, and why.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// assert_eq!(model.processing()[0].to_string(), "fold_ln done");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn processing(&self) -> &[Processing] {
        &self.processing
    }

    /// The kind of the weights.
    pub fn kind(&self) -> Kind {
        self.weights().embed.w_e.kind()
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.weights().embed.w_e.device()
    }

    /// The names of all hook points, those computed on request included, in firing order.
    pub fn hook_names(&self) -> Vec<String> {
        all_points(&self.config).map(|point| point.to_string()).collect()
    }

    // --- running it ---------------------------------------------------------------------------

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
        self.run_with_cache_of(input, Select::All)
    }

    /// Logits, and the activations selected: TransformerLens' `names_filter`.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_cache_of<'a>(
        &self,
        input: impl Into<Input>,
        select: impl Into<Select<'a>>,
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

    // --- text ---------------------------------------------------------------------------------

    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`].
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or(Error::NoTokenizer)
    }

    pub(crate) fn maybe_tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The same model with another tokenizer.
    pub fn with_tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// Texts (or ids, as they are) to tokens, with the BOS token first where that is the model's default.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`], [`Error::EmptyPrompt`], [`Error::Tokenizer`].
    pub fn to_tokens(&self, input: impl Into<Input>) -> Result<Tokens> {
        self.to_tokens_with(input, Bos::Default, PaddingSide::default())
    }

    /// [`HookedTransformer::to_tokens`] with a word on BOS and padding.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`].
    pub fn to_tokens_with(&self, input: impl Into<Input>, bos: Bos, side: PaddingSide) -> Result<Tokens> {
        input.into().tokens(&self.config, self.tokenizer.as_ref(), bos, side)
    }

    /// Ids to text.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`], [`Error::TokenOutOfRange`].
    #[allow(clippy::inherent_to_string_shadow_display)]
    pub fn to_string(&self, ids: &[i64]) -> Result<String> {
        self.tokenizer()?.decode(ids)
    }

    /// A text's tokens as texts, with the BOS token where that is the model's default.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`].
    pub fn to_str_tokens(&self, text: &str) -> Result<Vec<String>> {
        let tokenizer = self.tokenizer()?;
        let prepend = input::prepends_bos(&self.config, tokenizer, Bos::Default);
        tokenizer.str_tokens(&tokenizer.encode(text, prepend)?)
    }

    /// The id of a text that is exactly one token.
    ///
    /// # Errors
    ///
    /// [`Error::NotOneToken`], with the tokens that it is.
    pub fn to_single_token(&self, text: &str) -> Result<i64> {
        self.tokenizer()?.single_token(text)
    }

    /// The text of one token.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`], [`Error::TokenOutOfRange`].
    pub fn to_single_str_token(&self, id: i64) -> Result<String> {
        let mut tokens = self.tokenizer()?.str_tokens(&[id])?;
        Ok(tokens.pop().unwrap_or_default())
    }
}

/// What the run was told to make, and did.
fn asked_for(output: Option<Tensor>) -> Result<Tensor> {
    output.ok_or_else(|| Error::invalid("the run was not asked for this output"))
}
