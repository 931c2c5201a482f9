//! Activation patching: which activations of a clean run, put into a corrupted run, bring back the clean answer.
//!
//! The functions have the names and shapes of TransformerLens' module `patching`. Each returns a [`MetricMap`], which holds the metric of
//! every patch under named axes. [`activation_patch`] is the generic one: a [`PatchIndex`] says what is patched.
//!
//! ```
//! use tch_lens::{patching, HookedTransformer, Metric};
//! let model = HookedTransformer::toy()?;
//! let clean = "When Mary and John went to the shop, John gave a bag to";
//! let corrupted = "When Mary and John went to the shop, Mary gave a bag to";
//! let (_, cache) = model.run_with_cache(clean)?;
//! let metric = Metric::logit_diff(" Mary", " John");
//! let map = patching::get_act_patch_resid_pre(&model, corrupted, &cache, &metric)?; // [layer, pos]
//! println!("{map}");
//! assert_eq!(map.tensor().size(), [4, 15]);
//! # Ok::<(), tch_lens::Error>(())
//! ```
//!
//! [`path_patch`] patches the paths from one part of the model to another.
//!
//! # What a sweep computes
//!
//! Each figure is that of a run of the corrupted prompt in which one activation is the clean one. The runs of a sweep share what they
//! have in common: a patch in layer `l` starts from the corrupted stream there; positions before the first one that a patch changes are
//! the corrupted run's, where the model is causal; a patch that changes nothing is not run; and many patches run as one batch, as
//! large as the memory budget allows ([`PatchingOptions::budget`]). Keys and values are patched by key-value head.

mod axes;
mod base;
mod batch;
mod groups;
mod index;
mod map;
mod path;
mod sweep;
mod transformer_lens;

pub use axes::{MapAxis, PatchAxis};
pub use index::PatchIndex;
pub use map::MetricMap;
pub use path::{path_patch, path_patch_together, PathOptions};
pub use transformer_lens::*;

use crate::cache::ActivationCache;
use crate::hooked_transformer::HookedTransformer;
use crate::metric::Metric;
use crate::text::input::Input;
use crate::Result;

/// How a sweep runs.
#[derive(Clone, Debug)]
pub struct PatchingOptions {
    budget: u64,
}

impl Default for PatchingOptions {
    fn default() -> Self {
        PatchingOptions { budget: 1 << 28 }
    }
}

impl PatchingOptions {
    /// The default: batches of up to 256 MiB.
    pub fn new() -> Self {
        PatchingOptions::default()
    }

    /// The memory, in bytes, that the activations of one batch of patches may take beside the model, the corrupted run and the clean
    /// cache.
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = bytes;
        self
    }
}

/// The metric of the corrupted run with each patch of an index: TransformerLens' `generic_activation_patch`.
///
/// Each patch sets the part that the index names to what it is in the clean cache, at the same rows and positions. The clean cache is of
/// as many rows and positions as the corrupted input, or of one row.
///
/// ```
/// use tch_lens::patching::{self, PatchAxis, PatchIndex, PatchingOptions};
/// use tch_lens::{HookedTransformer, Metric};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let corrupted = "When Mary and John went to the shop, Mary gave a bag to";
/// let index = PatchIndex::new("v", [PatchAxis::Layer, PatchAxis::Pos, PatchAxis::Head]).layers(1..3).pos([2, 4]);
/// let metric = Metric::logit_diff(" Mary", " John");
/// let map = patching::activation_patch(&model, corrupted, &cache, &metric, &index, PatchingOptions::new())?;
/// assert_eq!(map.tensor().size(), [2, 2, 4]); // [layer, pos, head]
/// println!("{:?}", map.top(1)?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`HookedTransformer::run`] and of the metric; [`Error::NoEntry`](crate::Error::NoEntry) where the clean cache does not hold a
/// point; [`Error::Shape`](crate::Error::Shape) where it holds it for another batch; [`Error::Setting`](crate::Error::Setting) for a
/// budget that does not suffice for one patch.
pub fn activation_patch(
    model: &HookedTransformer,
    corrupted: impl Into<Input>,
    clean_cache: &ActivationCache,
    metric: &Metric<'_>,
    index: &PatchIndex,
    options: PatchingOptions,
) -> Result<MetricMap> {
    let tokens = model.to_tokens(corrupted)?;
    let (axes, parts) = index.resolve(model.config(), tokens.ids.size()[1])?;
    let swept = sweep::sweep(model, &tokens, clean_cache, metric, &parts, &options)?;
    MetricMap::new(axes, swept)
}
