//! [`Base`]: the run that is patched, and the values that patches take, as large as its own.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::config::AttentionDir;
use crate::hook::HookPoint;
use crate::hooked_transformer::{HookedTransformer, RunOptions};
use crate::metric::Metric;
use crate::model::KeyValueStore;
use crate::text::input::Tokens;
use crate::{Error, Result};

/// The run that is patched.
pub(super) struct Base {
    pub(super) cache: ActivationCache,
    /// At the metric's positions: `[batch, pos, d_vocab_out]`.
    pub(super) logits: Tensor,
    /// What runs that start behind some positions continue; absent where they cannot.
    pub(super) store: Option<KeyValueStore>,
}

impl Base {
    pub(super) fn run(
        model: &HookedTransformer,
        tokens: &Tokens,
        metric: &Metric<'_>,
        kept: Vec<HookPoint>,
        shares_prefix: bool,
    ) -> Result<Self> {
        let causal = model.config().attention_dir() == AttentionDir::Causal;
        let (batch, pos) = shape(tokens);
        let mut store = match causal && tokens.mask.is_none() && shares_prefix && pos > 1 {
            true => Some(KeyValueStore::with_all_positions(model, batch as usize, pos as usize)?),
            false => None,
        };
        let run = RunOptions::new().cache(kept).logits_at(metric.positions().clone());
        let run = match &mut store {
            Some(store) => run.past(store),
            None => run,
        };
        let mut output = model.run(tokens.clone(), run)?;
        let logits = output.take_logits()?;
        Ok(Base { cache: output.cache, logits, store })
    }
}

/// The rows and positions of tokens.
pub(super) fn shape(tokens: &Tokens) -> (i64, i64) {
    let size = tokens.ids.size();
    (size.first().copied().unwrap_or(0), size.get(1).copied().unwrap_or(0))
}

/// The clean activation of each point, as large as that of the base run.
pub(super) fn aligned(
    clean: &ActivationCache,
    base: &Base,
    points: &[HookPoint],
) -> Result<BTreeMap<HookPoint, Tensor>> {
    let mut values = BTreeMap::new();
    if !clean.has_batch_dim() {
        return Err(Error::no_axis("batch", "a clean cache needs its batch dimension, which was removed"));
    }
    for point in points.iter().copied() {
        if values.contains_key(&point) {
            continue;
        }
        let (found, corrupted) = (clean.get(point)?, base.cache.get(point)?);
        let (held, wanted) = (clean.positions_of(point)?, base.cache.positions_of(point)?);
        let differs = || Error::Shape {
            what: format!("the clean `{point}`, at positions {held},"),
            found: found.size(),
            expected: format!("{:?} at positions {wanted}, as in the corrupted run", corrupted.size()),
        };
        let mut size = found.size();
        let batch = corrupted.size()[0];
        if size.len() != corrupted.dim() || (size[0] != 1 && size[0] != batch) {
            return Err(differs());
        }
        size[0] = batch;
        let mut found = found.f_expand(&size, false)?;
        if let Some(axis) = point.axes().position {
            found = held.places(wanted).map_err(|_| differs())?.select(&found, axis as i64)?;
        }
        if found.size() != corrupted.size() {
            return Err(differs());
        }
        let found = found.f_to_device(corrupted.device())?.f_to_kind(corrupted.f_kind()?)?;
        values.insert(point, found);
    }
    Ok(values)
}
