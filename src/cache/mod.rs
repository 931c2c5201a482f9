//! [`ActivationCache`]: what a run kept, by hook point.

mod saved;
mod values;

use std::ops::Index;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use indexmap::IndexMap;
use tch::{Device, Tensor};

use crate::hook::{self, presence, HookName, HookPoint, PointSet, Presence};
use crate::model::Transformer;
use crate::run::kept::KeptPositions;
use crate::run::{Entry, Recording};
use crate::sae::SparseFeatures;
use crate::tensor::columns::Columns;
use crate::tensor::routed::rows_at;
use crate::tensor::slice::Slice;
use crate::text::input::Tokens;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result, TokenizerError};

pub(crate) use self::saved::describe_run;

/// The activations that a run kept: TransformerLens' `ActivationCache`.
///
/// A value: it owns its tensors (without having copied them) and a cheap handle on the model, so that it can be stored,
/// returned and sent to another thread. Clones are handles on the same tensors. Entries are in the order in which they fired. The
/// methods of [`analysis`](crate::analysis) ask which parts of the model did what.
///
/// ```
/// use tch_lens::{hook, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
/// let q = &cache["blocks.0.attn.hook_q"]; // TransformerLens' names, and
/// assert_eq!(q, cache.get(("q", 0))?); // its short hand, and
/// assert_eq!(q, cache.get(hook::q(0))?); // the typed name that cannot be mistyped
/// assert_eq!(cache.get(("resid_post", -1))?, cache.get(hook::resid_post(3))?);
/// assert_eq!(cache.keys().next().unwrap().to_string(), "hook_embed");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ActivationCache {
    entries: Arc<IndexMap<HookPoint, Entry>>,
    /// Where the run put something else in place of what the model computed.
    changed: Arc<PointSet>,
    /// Which run it is of, whatever was sliced since.
    run: u64,
    /// The rows of the run's batch that the entries have.
    rows: Columns,
    model: Transformer,
    tokenizer: Option<Tokenizer>,
    tokens: Tokens,
    /// Which positions the entries hold.
    kept: KeptPositions,
    has_batch_dim: bool,
}

impl ActivationCache {
    pub(crate) fn new(
        recording: Recording,
        model: Transformer,
        tokenizer: Option<Tokenizer>,
        tokens: Tokens,
        kept: KeptPositions,
    ) -> Self {
        let Recording { entries, changed } = recording;
        ActivationCache {
            entries: Arc::new(entries),
            changed: Arc::new(changed),
            run: ActivationCache::next_run(),
            rows: Columns::range(0, tokens.ids.size().first().copied().unwrap_or(0)),
            model,
            tokenizer,
            tokens,
            kept,
            has_batch_dim: true,
        }
    }

    /// The number of a run that no other cache of this process has.
    fn next_run() -> u64 {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        RUNS.fetch_add(1, Ordering::Relaxed)
    }

    /// The model that ran. It has no weights where a file was [opened](ActivationCache::open) without it.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`].
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| TokenizerError::Missing.into())
    }

    /// The tokens that it ran on: `[batch, pos]`, whatever has been sliced since.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Which token columns the entries hold, but for those of the last norm and the unembedding where the run formed logits elsewhere
    /// ([`positions_of`](ActivationCache::positions_of)): the run's [`pos`](crate::RunOptions::pos).
    pub fn positions(&self) -> &Columns {
        self.kept.kept()
    }

    /// Which token columns the activation of this name holds.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let cache = model.run("When Mary and John went", RunOptions::new().cache(["resid_post", "unembed.hook_out"]).logits_at(-1))?.cache;
    /// assert_eq!(cache.positions_of(("resid_post", 0))?.to_string(), "0 to 5");
    /// assert_eq!(cache.positions_of("unembed.hook_out")?.to_string(), "5");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::get`].
    pub fn positions_of(&self, name: impl HookName) -> Result<&Columns> {
        let point = name.resolve(self.model.config())?;
        self.get(point)?;
        self.kept.at(point).ok_or_else(|| self.no_entry(point))
    }

    /// The token columns at which the run formed logits.
    pub(crate) fn logit_positions(&self) -> &Columns {
        self.kept.logits()
    }

    /// Whether the entries still have their batch dimension.
    pub fn has_batch_dim(&self) -> bool {
        self.has_batch_dim
    }

    // --- access -------------------------------------------------------------------------------

    /// An activation, by any of its names.
    ///
    /// # Errors
    ///
    /// The name's own ([`Error::UnknownHook`] with the nearest, [`Error::HookNotInModel`],
    /// [`Error::LayerOutOfRange`]); [`Error::NoEntry`] where the run did not keep it.
    pub fn get(&self, name: impl HookName) -> Result<&Tensor> {
        let point = name.resolve(self.model.config())?;
        self.entry(point)?.dense()
    }

    /// The features of a dictionary that are active, as sparse rows.
    ///
    /// The cache holds the features of dictionaries (`hook_sae_acts_post`) as sparse rows, unless these would take more memory than the
    /// activation itself, a gradient is recorded, or the run had a [`Sink`](crate::Sink) or a budget. [`get`](ActivationCache::get) and the other
    /// methods that give tensors form the dense activation once, and the cache holds it from then on. Their pre-activations
    /// (`hook_sae_acts_pre`) are formed then too, from what the dictionary encoded. Of any other activation, the entries that are not 0
    /// are given.
    ///
    /// ```
    /// # use tch_lens::sae::{DictionarySet, SaeOptions};
    /// # use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?.with_saes(DictionarySet::toy()?.dictionaries().to_vec(), SaeOptions::new())?;
    /// let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let active = cache.sparse("blocks.3.hook_mlp_out.hook_sae_acts_post")?;
    /// assert_eq!(active.size(), [1, 9, 512]); // [batch, pos, feature], of which few are active
    /// assert!(active.len() < 9 * 100);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::get`].
    pub fn sparse(&self, name: impl HookName) -> Result<SparseFeatures> {
        let point = name.resolve(self.model.config())?;
        self.entry(point)?.sparse()
    }

    /// What the cache holds of an activation.
    pub(crate) fn entry(&self, point: HookPoint) -> Result<&Entry> {
        self.entries.get(&point).ok_or_else(|| self.no_entry(point))
    }

    /// Why an activation is not here, and how to get it.
    fn no_entry(&self, point: HookPoint) -> Error {
        let how = match presence(point, self.model.config()) {
            _ if self.kept.at(point).is_none() => format!(
                "the run kept positions {} and formed logits at {}, which have none in common for every row",
                self.kept.kept(),
                self.kept.logits()
            ),
            Presence::OnRequest => "it is computed on request only, so run again with it in the cache's filter".into(),
            _ => "run again with it in the cache's filter".into(),
        };
        Error::NoEntry { name: point.to_string(), how }
    }

    /// Whether the cache holds an activation; an unknown name gives `false`.
    pub fn contains(&self, name: impl HookName) -> bool {
        name.resolve(self.model.config()).is_ok_and(|point| self.entries.contains_key(&point))
    }

    /// Whether the run put something else at a hook point in place of what the model computed there, by a replacement, an edit or
    /// a patch. It is known of every point of the run, kept or not.
    ///
    /// ```
    /// use tch_lens::{hook, Hooks, HookedTransformer, Patch, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let hooks = Hooks::new().patch(hook::z(1), Patch::zero().head(2));
    /// let cache = model.run("When Mary", RunOptions::new().hooks(hooks).cache("resid_post"))?.cache;
    /// assert!(cache.is_changed(hook::z(1)) && !cache.is_changed(hook::resid_post(1)));
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn is_changed(&self, name: impl HookName) -> bool {
        name.resolve(self.model.config()).is_ok_and(|point| self.changed.contains(point))
    }

    /// The points at which the run put something else in place, in firing order.
    pub fn changed(&self) -> impl Iterator<Item = HookPoint> + '_ {
        self.changed.iter(self.model.config())
    }

    /// Whether another cache is of the same run, whatever was sliced since.
    pub(crate) fn is_of_run(&self, other: &ActivationCache) -> bool {
        self.run == other.run
    }

    /// The rows of the run's batch that lie at these places of the batch axis.
    pub(crate) fn rows_of_run(&self, places: &Columns) -> Vec<i64> {
        let rows = self.rows.of_row(0);
        places.of_row(0).into_iter().filter_map(|place| rows.get(place as usize).copied()).collect()
    }

    /// The first token column of the run.
    pub(crate) fn past(&self) -> i64 {
        self.kept.past()
    }

    /// The hook points kept, in the order in which they fired.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = HookPoint> + '_ {
        self.entries.keys().copied()
    }

    /// The activations kept, in the order in which they fired.
    ///
    /// # Panics
    ///
    /// Where memory runs out for features that are held as [sparse rows](ActivationCache::sparse).
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Tensor> + '_ {
        self.entries.values().map(dense)
    }

    /// Both.
    ///
    /// # Panics
    ///
    /// As [`ActivationCache::values`].
    pub fn items(&self) -> impl ExactSizeIterator<Item = (HookPoint, &Tensor)> + '_ {
        self.entries.iter().map(|(point, entry)| (*point, dense(entry)))
    }

    /// How many activations there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the cache holds no activation.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A cache of the same run, its tokens and positions, with other tensors.
    pub(crate) fn with_entries(&self, entries: impl IntoIterator<Item = (HookPoint, Tensor)>) -> Self {
        let entries = entries.into_iter().map(|(point, tensor)| (point, Entry::from(tensor))).collect();
        ActivationCache { entries: Arc::new(entries), ..self.clone() }
    }

    /// Adds an activation behind another one, in its place among the entries.
    pub(crate) fn insert_after(&mut self, before: HookPoint, point: HookPoint, tensor: Tensor) {
        let entries = Arc::make_mut(&mut self.entries);
        let index = entries.get_index_of(&before).map_or(entries.len(), |i| i + 1);
        entries.shift_insert(index, point, tensor.into());
    }

    /// Switches libtorch's record of operations on or off until the guard is dropped: [`autodiff`](crate::autodiff), under
    /// TransformerLens' name.
    pub fn toggle_autodiff(&self, enabled: bool) -> crate::AutodiffGuard {
        crate::autodiff(enabled)
    }

    // --- axes ---------------------------------------------------------------------------------

    /// The batch dimension of the activation at `point`, if it has one here.
    pub fn batch_axis(&self, point: HookPoint) -> Option<usize> {
        point.axes().batch.filter(|_| self.has_batch_dim)
    }

    /// The position dimension of the activation at `point`, if it has one.
    pub fn position_axis(&self, point: HookPoint) -> Option<usize> {
        point.axes().position.map(|axis| axis - usize::from(!self.has_batch_dim))
    }

    /// Drops the batch dimension of every entry.
    ///
    /// # Errors
    ///
    /// Where the batch has more than one row: choose one with
    /// [`apply_slice_to_batch_dim`](ActivationCache::apply_slice_to_batch_dim).
    pub fn remove_batch_dim(self) -> Result<Self> {
        let rows = self.tokens.ids.size()[0];
        if self.has_batch_dim && rows != 1 {
            return Err(Error::no_axis(
                "batch",
                format!("the batch dimension can go only where it has one row, not {rows}: choose one with apply_slice_to_batch_dim"),
            ));
        }
        if !self.has_batch_dim {
            return Ok(self);
        }
        self.apply_slice_to_batch_dim(0)
    }

    /// The rows of the batch that `slice` means; an index drops the dimension.
    ///
    /// # Errors
    ///
    /// Where there is no batch dimension; [`Error::SliceOutOfRange`].
    pub fn apply_slice_to_batch_dim(self, slice: impl Into<Slice>) -> Result<Self> {
        let slice = slice.into();
        if !self.has_batch_dim {
            return Err(Error::no_axis("batch", "the cache has no batch dimension to slice: it was removed"));
        }
        let count = self.tokens.ids.size()[0];
        let rows = slice.indices(count, "batch")?;
        let chosen = Columns::list(rows.clone());
        let tokens = self.tokens.map(|tensor| chosen.select(tensor, 0))?;
        let mut entries = IndexMap::with_capacity(self.entries.len());
        for (point, entry) in self.entries.iter() {
            let sliced = match (point.axes().batch, point.layer(), point.expert()) {
                (Some(axis), ..) => entry.sliced(&slice, axis, "batch")?,
                (None, Some(layer), Some(expert)) => {
                    let indices = self.get(hook::expert_indices(layer))?; // [batch, pos, chosen]
                    let columns = Columns::range(0, indices.size()[1]);
                    rows_at(entry.dense()?, indices, expert, &chosen, &columns)?.into()
                }
                (None, ..) => entry.clone(),
            };
            entries.insert(*point, sliced);
        }
        let has_batch_dim = !slice.drops_axis();
        let kept = self.kept.of_rows(&rows);
        let rows = Columns::list(self.rows_of_run(&chosen));
        Ok(ActivationCache { entries: Arc::new(entries), tokens, kept, rows, has_batch_dim, ..self })
    }

    /// The same activations on another device; the model stays where it is.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`].
    pub fn to(self, device: Device) -> Result<Self> {
        crate::unchecked::cuda::check(device)?;
        let moved = |(point, entry): (&HookPoint, &Entry)| Ok((*point, entry.to_device(device)?));
        let entries = self.entries.iter().map(moved).collect::<Result<_>>()?;
        Ok(ActivationCache { entries: Arc::new(entries), ..self })
    }
}

impl<N: HookName> Index<N> for ActivationCache {
    type Output = Tensor;

    /// [`ActivationCache::get`], for names that are surely there.
    ///
    /// # Panics
    ///
    /// With `get`'s error where they are not.
    fn index(&self, name: N) -> &Tensor {
        match self.get(name) {
            Ok(tensor) => tensor,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The tensor of an entry.
///
/// # Panics
///
/// Where memory runs out for one that has to be formed.
fn dense(entry: &Entry) -> &Tensor {
    match entry.dense() {
        Ok(tensor) => tensor,
        Err(error) => panic!("{error}"),
    }
}

/// The activations of a cache, in the order in which they fired.
#[derive(Debug)]
pub struct Entries<'a>(indexmap::map::Iter<'a, HookPoint, Entry>);

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a HookPoint, &'a Tensor);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(point, entry)| (point, dense(entry)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Entries<'_> {}

impl<'a> IntoIterator for &'a ActivationCache {
    type Item = (&'a HookPoint, &'a Tensor);
    type IntoIter = Entries<'a>;

    fn into_iter(self) -> Self::IntoIter {
        Entries(self.entries.iter())
    }
}
