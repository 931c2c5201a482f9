//! [`StepOptions`]: what is done and kept while a text is generated.

use std::ops::Range;

use super::draft::Draft;
use crate::hook::HookFilter;
use crate::hooked_transformer::HookedTransformer;
use crate::model::KeyValueStore;
use crate::run::Hooks;
use crate::{Error, Result};

/// What is done and kept while a text is generated, step by step: hooks, activations, logits, the past, drafts.
///
/// ```
/// use tch_lens::{hook, GenerateOptions, Hooks, HookedTransformer, Patch, StepOptions};
/// let model = HookedTransformer::toy()?;
/// let options = GenerateOptions::new().do_sample(false).max_new_tokens(3);
/// // The direction from one token to another, added to all positions from the second on.
/// let direction = model.w_e()?.get(model.to_single_token(" Mary")?) - model.w_e()?.get(model.to_single_token(" John")?);
/// let hooks = Hooks::new().patch(hook::resid_pre(1), Patch::add(direction * 2.0).pos(1..));
/// let steps = StepOptions::new().hooks(hooks).cache("resid_post");
/// let generated = model.generate_with("When Mary and John went to the shop", &options, steps)?;
/// // Eight words after BOS and three more: of each position, the activations of the run that computed it.
/// assert_eq!(generated.cache.unwrap()[("resid_post", 0)].size()[1], 9 + 3);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Positions
///
/// Each position is computed once, in the step in which it comes. A patch acts at the positions that it selects whenever these are
/// computed. Positions are columns of prompt and continuation together. Negative ones count from the end of the prompt: `-1` is its last
/// token, and `-1..` means this and everything after it. A hook that is a function gets what a step computes: the prompt's positions first,
/// and then one position at a time.
#[derive(Default)]
pub struct StepOptions<'a> {
    pub(super) hooks: Hooks<'a>,
    pub(super) hooks_at: Option<Box<HooksAt<'a>>>,
    pub(super) cache: Option<HookFilter<'a>>,
    pub(super) logits: bool,
    pub(super) entropies: bool,
    pub(super) past: Option<KeyValueStore>,
    pub(super) draft: Option<Draft>,
}

/// Makes the hooks of a step.
pub(super) type HooksAt<'a> = dyn FnMut(&StepInfo) -> Hooks<'a> + 'a;

/// Which step of a generation comes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepInfo {
    /// The number of tokens that were generated before: 0 for the step that runs the prompt.
    pub step: usize,
    /// The positions that the step computes: columns of prompt and continuation together.
    pub columns: Range<usize>,
}

impl<'a> StepOptions<'a> {
    /// Nothing is done and kept.
    pub fn new() -> Self {
        StepOptions::default()
    }

    /// Hooks in every step.
    pub fn hooks(mut self, hooks: Hooks<'a>) -> Self {
        self.hooks = hooks;
        self
    }

    /// Hooks of single steps, beside those of every step: `hooks` is called before each step.
    ///
    /// ```
    /// use tch_lens::{hook, GenerateOptions, Hooks, HookedTransformer, Patch, StepInfo, StepOptions};
    /// let model = HookedTransformer::toy()?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(4);
    /// let steps = StepOptions::new().hooks_at(|info: &StepInfo| match info.step {
    ///     2 => Hooks::new().patch(hook::z(1), Patch::zero()), // the third step only
    ///     _ => Hooks::new(),
    /// });
    /// model.generate_with("When Mary and John", &options, steps)?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn hooks_at(mut self, hooks: impl FnMut(&StepInfo) -> Hooks<'a> + 'a) -> Self {
        self.hooks_at = Some(Box::new(hooks));
        self
    }

    /// Keeps the selected activations of all positions, as one forward pass over prompt and continuation would. The tokens that came last
    /// are then run as well.
    pub fn cache(mut self, select: impl Into<HookFilter<'a>>) -> Self {
        self.cache = Some(select.into());
        self
    }

    /// Whether each step's logits are kept; no by default.
    pub fn logits(mut self, keep: bool) -> Self {
        self.logits = keep;
        self
    }

    /// Whether the entropy of the model's distribution is computed in each step, in nats; no by default. Sampling options do not count.
    pub fn entropies(mut self, keep: bool) -> Self {
        self.entropies = keep;
        self
    }

    /// Continues behind a key-value store. Its tokens come before the prompt's, and count as part of the prompt.
    ///
    /// A store with one row serves any number of prompts. A clone is cheap, so a prefix can be run once and kept:
    ///
    /// ```
    /// use tch_lens::{Bos, GenerateOptions, HookedTransformer, KeyValueStore, RunOptions, StepOptions};
    /// let model = HookedTransformer::toy()?;
    /// let mut prefix = KeyValueStore::new(&model, 1, 32)?;
    /// model.run("When Mary and John went to the shop,", RunOptions::new().past(&mut prefix))?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(2);
    /// for rest in [" John gave a bag", " Mary gave a bag"] {
    ///     let generated = model.generate_with(rest, &options, StepOptions::new().past(prefix.clone()))?;
    ///     assert!(generated.text(0)?.starts_with("<|endoftext|>When Mary"));
    /// }
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn past(mut self, store: KeyValueStore) -> Self {
        self.past = Some(store);
        self
    }

    /// Lets a smaller model with the same vocabulary propose up to `tokens` tokens (1 to 64) at a time, which one run of this model checks
    /// (Leviathan et al. 2023).
    ///
    /// The tokens are those that come without a draft, greedily and by sampling alike: each is chosen from this model's logits with the
    /// row's own random numbers, and a proposal only decides whether the next position is known already. The draft uses the same random
    /// numbers, so it is right about as often as its distribution agrees.
    ///
    /// Patches act with drafts too: they are data, and act at their positions however many of these a run computes. A hook that is a function
    /// is refused. It would get several positions at once, rejected ones among them, so that what it remembers, and what it makes of the
    /// whole tensor, would differ from what it gets without a draft.
    pub fn draft(mut self, model: &HookedTransformer, tokens: usize) -> Self {
        self.draft = Some(Draft::model(model, tokens));
        self
    }

    /// Proposes the up to `tokens` tokens (1 to 64) that followed the last `ngram` tokens where they occurred before in the row, for one run of
    /// the model to check (prompt-lookup decoding). The tokens are those that come without it.
    ///
    /// ```
    /// use tch_lens::{GenerateOptions, HookedTransformer, StepOptions};
    /// let model = HookedTransformer::toy()?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(12);
    /// let prompt = "Mary and John went. Mary and John went. Mary and";
    /// let plain = model.generate(prompt, &options)?;
    /// let looked_up = model.generate_with(prompt, &options, StepOptions::new().prompt_lookup(2, 4))?;
    /// assert_eq!(looked_up.rows[0].ids(), plain.rows[0].ids());
    /// assert!(looked_up.runs <= plain.runs);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn prompt_lookup(mut self, ngram: usize, tokens: usize) -> Self {
        self.draft = Some(Draft::prompt_lookup(ngram, tokens));
        self
    }

    /// Checks that the settings fit together, and to whether keys and values are kept.
    pub(super) fn check(&self, keeps_keys: bool) -> Result<()> {
        let refuse = |setting, why: &str| Err(Error::setting(setting, format!("`{setting}` cannot be used: {why}")));
        if !keeps_keys {
            let unusable = [
                ("past", self.past.is_some(), "`use_past_kv_cache` is off, so nothing is continued"),
                (
                    "hooks_at",
                    self.hooks_at.is_some(),
                    "without `use_past_kv_cache` every step computes all positions again",
                ),
                ("draft", self.draft.is_some(), "without `use_past_kv_cache` every step computes all positions again"),
            ];
            if let Some((setting, _, why)) = unusable.into_iter().find(|(_, set, _)| *set) {
                return refuse(setting, why);
            }
        }
        if self.draft.is_some() {
            if self.hooks_at.is_some() {
                return refuse("hooks_at", "with a draft, one run computes several steps");
            }
            if self.hooks.has_closures() {
                return refuse("hooks", "a function would see the draft's tokens that are rejected: use patches");
            }
        }
        Ok(())
    }
}
