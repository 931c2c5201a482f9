//! [`Plan`]: what a run must compute, known before its first matrix product.

use std::sync::Arc;

use tch::Kind;

use super::hooks::Hooks;
use crate::config::NormPosition;
use crate::hook::{ExpertSite, HookFilter, HookPoint, Site, OUTSIDE, SITES};
use crate::tensor::slice::Slice;
use crate::{Config, Result};

/// A set of hook points: a word of bits a block, and one for what is outside the blocks. An empty one takes no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PointSet {
    outside: u32,
    blocks: Vec<u64>,
    experts: Vec<HookPoint>,
}

/// The bit of a block's word that says that some place within one of its experts is in the set.
const EXPERTS: u32 = 63;

impl PointSet {
    pub(crate) fn insert(&mut self, point: HookPoint) {
        if let Some(layer) = point.layer().filter(|layer| *layer >= self.blocks.len()) {
            self.blocks.resize(layer + 1, 0);
        }
        match point {
            HookPoint::Block(layer, site) => self.blocks[layer] |= 1 << site as u32,
            HookPoint::Expert { layer, .. } => {
                self.blocks[layer] |= 1 << EXPERTS;
                if !self.experts.contains(&point) {
                    self.experts.push(point);
                }
            }
            outside => self.outside |= 1 << bit(outside),
        }
    }

    #[inline]
    pub(crate) fn contains(&self, point: HookPoint) -> bool {
        match point {
            HookPoint::Block(layer, site) => self.block(layer) >> site as u32 & 1 == 1,
            HookPoint::Expert { layer, .. } => self.block(layer) >> EXPERTS & 1 == 1 && self.experts.contains(&point),
            outside => self.outside >> bit(outside) & 1 == 1,
        }
    }

    #[inline]
    fn block(&self, layer: usize) -> u64 {
        self.blocks.get(layer).copied().unwrap_or(0)
    }

    pub(crate) fn len(&self) -> usize {
        let blocks: u32 = self.blocks.iter().map(|word| (word & !(1 << EXPERTS)).count_ones()).sum();
        (self.outside.count_ones() + blocks) as usize + self.experts.len()
    }
}

#[inline]
fn bit(outside: HookPoint) -> u32 {
    match outside {
        HookPoint::Tokens => 0,
        HookPoint::EmbedLnScale => 1,
        HookPoint::EmbedLnNormalized => 2,
        HookPoint::Embed => 3,
        HookPoint::PosEmbed => 4,
        HookPoint::LnFinalScale => 5,
        HookPoint::LnFinalNormalized => 6,
        HookPoint::UnembedIn => 7,
        HookPoint::UnembedOut => 8,
        HookPoint::Block(..) | HookPoint::Expert { .. } => 31,
    }
}

/// What a run must compute: which hook points somebody looks at, how far it has to go, what is made of its end.
///
/// Made by [`HookedTransformer::plan`](crate::HookedTransformer::plan) from a [`Run`](crate::Run), before the first matrix product.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Points that somebody looks at.
    pub(crate) live: PointSet,
    /// Points at which a hook stands that may replace what is there.
    pub(crate) hooked: PointSet,
    /// Points that the cache keeps.
    pub(crate) cached: PointSet,
    /// Blocks to run: all but those from `stop_at_layer` on.
    pub(crate) n_layers: usize,
    /// Whether the run goes on past the last live point.
    pub(crate) whole: bool,
    /// The live points that fire in this run.
    pub(crate) n_live: usize,
    /// Each hook's points.
    pub(crate) of_hook: Vec<PointSet>,
    /// Of the model: its shape, and the kind of its weights.
    pub(crate) of: (Arc<Config>, Kind),
    /// The positions that the cache keeps, and those at which logits are formed.
    pub(crate) positions: [Slice; 2],
}

impl Plan {
    /// Plans a run: `stop` is the layer before which it stops, `whole` whether what comes after the last live
    /// point is wanted (logits, or the stream at `stop`).
    pub(crate) fn new(
        of: (&Arc<Config>, Kind),
        positions: [Slice; 2],
        hooks: &Hooks<'_>,
        cache: Option<&HookFilter<'_>>,
        stop: Option<usize>,
        whole: bool,
    ) -> Result<Plan> {
        let config = of.0;
        let n_layers = stop.unwrap_or(config.n_layers);
        let (mut live, mut hooked, mut cached) = (PointSet::default(), PointSet::default(), PointSet::default());
        let mut of_hook = Vec::with_capacity(hooks.entries.len());
        for entry in &hooks.entries {
            let mut points = PointSet::default();
            for point in entry.at.reached(config, stop)? {
                points.insert(point);
                live.insert(point);
                if entry.replaces {
                    hooked.insert(point);
                }
            }
            of_hook.push(points);
        }
        if let Some(select) = cache {
            for point in select.reached(config, stop)? {
                cached.insert(point);
                live.insert(point);
            }
        }
        let n_live = live.len();
        let of = (Arc::clone(config), of.1);
        Ok(Plan { live, hooked, cached, n_layers, whole, n_live, of_hook, of, positions })
    }

    /// Whether attention of layer `layer` must form its scores and pattern.
    pub(crate) fn forms_pattern(&self, layer: usize) -> bool {
        [Site::AttnScores, Site::Pattern].iter().any(|site| self.live.contains(HookPoint::Block(layer, *site)))
    }

    /// Whether somebody looks at `point`.
    pub fn is_live(&self, point: HookPoint) -> bool {
        self.live.contains(point)
    }

    /// The points that the run's cache will hold, in firing order.
    pub fn cached(&self) -> impl Iterator<Item = HookPoint> + '_ {
        let outside = |range: std::ops::Range<usize>| OUTSIDE[range].iter().map(|(point, _)| *point);
        let blocks =
            (0..self.n_layers).flat_map(move |layer| SITES.iter().map(move |(site, _)| HookPoint::Block(layer, *site)));
        let experts = self.cached.experts.iter().copied();
        outside(0..5).chain(blocks).chain(experts).chain(outside(5..9)).filter(|point| self.cached.contains(*point))
    }

    /// The bytes that the cache of a run of `batch` rows of `pos` positions will take, known before it runs.
    ///
    /// Each entry counts with its own shape and kind. In memory entries may take less: queries, keys and values are views
    /// of one tensor, and points such as `attn_in` show one stream once for each head. Of experts, as many rows
    /// are counted as can be routed to those that are kept: exactly those that are, where all experts are kept.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, Run};
    /// let model = HookedTransformer::toy()?;
    /// let plan = model.plan(&Run::new().cache("resid_post"))?;
    /// assert_eq!(plan.estimate(8, 100)?, 4 * 8 * 100 * 128 * 4); // layers, batch, positions, d_model, bytes of an f32
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`](crate::Error::SliceOutOfRange) where the run asks for positions that there are not. A name that does not exist is an error of
    /// [`HookedTransformer::plan`](crate::HookedTransformer::plan) already.
    pub fn estimate(&self, batch: usize, pos: usize) -> Result<u64> {
        let mut sum = 0u64;
        let mut experts = 0;
        for point in self.cached() {
            experts += u64::from(matches!(point, HookPoint::Expert { .. }));
            sum = sum.saturating_add(self.bytes_at(point, batch, pos)?);
        }
        // A token is routed to some experts only, whichever they are.
        let (Some(moe), [HookPoint::Expert { .. }, ..]) = (self.of.0.experts(), &self.cached.experts[..]) else {
            return Ok(sum);
        };
        let one = self.bytes_at(self.cached.experts[0], batch, pos)?;
        let kept_of =
            |of: HookPoint| self.cached.experts.iter().filter(|point| together(**point) == together(of)).count();
        let mut groups: Vec<HookPoint> = Vec::new();
        for point in &self.cached.experts {
            if !groups.iter().any(|of| together(*of) == together(*point)) {
                groups.push(*point);
            }
        }
        let routed: u64 = groups.iter().map(|of| kept_of(*of).min(moe.experts_per_token) as u64 * one).sum();
        Ok(sum - experts * one + routed)
    }

    /// The bytes of one entry of the cache; of an expert's, at most.
    pub(crate) fn bytes_at(&self, point: HookPoint, batch: usize, pos: usize) -> Result<u64> {
        let (config, weights) = &self.of;
        let mut shape = point.shape(config, batch, pos);
        let [kept, at_logits] = &self.positions;
        if let Some(axis) = point.axes().position {
            let length = |slice: &Slice, len: i64| -> Result<i64> {
                Ok(match slice {
                    Slice::All => len,
                    slice => slice.indices(len, "position")?.len() as i64,
                })
            };
            if point >= HookPoint::LnFinalScale {
                shape[axis] = length(at_logits, shape[axis])?;
            }
            shape[axis] = length(kept, shape[axis])?;
        }
        // Where heads read different streams, each goes through the norm.
        if let HookPoint::Block(layer, Site::Ln1Scale | Site::Ln1Normalized) = point {
            let hooked = |site| self.hooked.contains(HookPoint::Block(layer, site));
            if config.norm_position() != NormPosition::After && (hooked(Site::AttnIn) || hooked(Site::VInput)) {
                shape.push(config.n_key_value_heads as i64);
            }
        }
        let bytes =
            shape.iter().map(|n| *n as u64).fold(point.kind(*weights).elt_size_in_bytes() as u64, u64::saturating_mul);
        Ok(bytes)
    }

    /// The largest entry of the cache, with its bytes.
    pub(crate) fn largest(&self, batch: usize, pos: usize) -> Result<Option<(HookPoint, u64)>> {
        let mut largest = None;
        for point in self.cached() {
            let bytes = self.bytes_at(point, batch, pos)?;
            if largest.is_none_or(|(_, most)| bytes > most) {
                largest = Some((point, bytes));
            }
        }
        Ok(largest)
    }
}

/// What the experts of a layer share: their rows add up.
fn together(point: HookPoint) -> Option<(usize, ExpertSite)> {
    match point {
        HookPoint::Expert { layer, site, .. } => Some((layer, site)),
        _ => None,
    }
}
