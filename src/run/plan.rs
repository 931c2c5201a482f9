//! [`Plan`]: what a run must compute, known before its first matrix product.

use std::collections::HashMap;
use std::sync::Arc;

use tch::Kind;

use super::backward::is_differentiable;
use super::hooks::{Action, Hooks};
use super::kept::KeptPositions;
use super::rules::BackwardRules;
use super::sink::PlannedEntry;
use crate::config::NormPosition;
use crate::error::KeyValueStoreError;
use crate::hook::{self, all_points, End, HookFilter, HookName, HookPoint, Place, PointSet, Section, Selection, Site};
use crate::sae::{Splice, Splices};
use crate::tensor::span::Span;
use crate::text::positions::{PositionAxis, Positions};
use crate::{Config, Error, HookFailure, Result};

/// What a run records for gradients.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Differentiation {
    pub(crate) order: Order,
    pub(crate) rules: BackwardRules,
}

/// How often what a run computes can be differentiated with respect to what it keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// Not at all, but for what the caller's own tensors record.
    #[default]
    None,
    Once,
    /// Twice: fused attention has no second derivative, so it is not used.
    Twice,
}

/// What a run must compute: at which hook points something is done, how far the run has to go, what is made of its end.
///
/// Made by [`HookedTransformer::plan`](crate::HookedTransformer::plan) from a [`RunOptions`](crate::RunOptions), before the first matrix product.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Points at which something is done: a hook acts there, or the cache keeps what is there.
    pub(crate) live: PointSet,
    /// Points at which a hook may put other values in place.
    pub(crate) changed: PointSet,
    /// Points that the cache keeps.
    pub(crate) cached: PointSet,
    /// Points at which the graph of gradients is cut, for hooks on gradients.
    pub(crate) cuts: PointSet,
    /// What is recorded for gradients.
    pub(crate) differentiation: Differentiation,
    /// The part of the model that the run passes through.
    pub(crate) section: Section,
    /// How many positions the run's key-value store holds before it.
    pub(crate) past: usize,
    /// How many positions the encoder's output has that a decoder reads.
    pub(crate) encoder_positions: usize,
    /// The live points that fire in this run.
    pub(crate) n_live: usize,
    /// What the hooks do where, in the order in which they were added.
    pub(crate) hooked: Vec<HookedPart>,
    /// Whether a hook is a function of the caller's.
    pub(crate) has_closures: bool,
    /// The model's shape, and the kind of its weights.
    pub(crate) of: (Arc<Config>, Kind),
    /// The dictionaries that are spliced into the run.
    pub(crate) splices: Splices,
    /// Points whose activations dictionaries read, and those whose activations they reconstruct.
    pub(crate) read: PointSet,
    pub(crate) spliced: PointSet,
    /// Points at which nothing but a dictionary does anything.
    pub(crate) dictionary_only: PointSet,
    /// The layers whose neurons nothing looks at, as a dictionary puts something else in place of what they write.
    pub(crate) replaced_neurons: Vec<usize>,
    /// The positions that the cache keeps, and those at which logits are formed.
    pub(crate) positions: [Positions; 2],
}

/// Points at which a hook acts, and the part of their activations that it is about.
#[derive(Clone, Debug)]
pub(crate) struct HookedPart {
    /// Which of the hooks.
    pub(crate) hook: usize,
    pub(crate) points: PointSet,
    pub(crate) selection: Selection,
}

impl Plan {
    /// Plans a run through a section of the model, after `past` positions of a key-value store, if it has one.
    pub(crate) fn new(
        of: (&Arc<Config>, Kind, &Splices),
        positions: [Positions; 2],
        hooks: &Hooks<'_>,
        cache: Option<&HookFilter<'_>>,
        section: Section,
        past: Option<usize>,
        differentiation: Differentiation,
    ) -> Result<Plan> {
        let (config, weights, splices) = of;
        let mut plan = Plan {
            live: PointSet::default(),
            changed: PointSet::default(),
            cached: PointSet::default(),
            cuts: PointSet::default(),
            differentiation,
            section,
            past: past.unwrap_or(0),
            encoder_positions: 0,
            n_live: 0,
            hooked: Vec::with_capacity(hooks.entries.len()),
            has_closures: hooks.has_closures(),
            of: (Arc::clone(config), weights),
            splices: splices.clone(),
            read: PointSet::default(),
            spliced: PointSet::default(),
            dictionary_only: PointSet::default(),
            replaced_neurons: Vec::new(),
            positions,
        };
        for (hook, entry) in hooks.entries.iter().enumerate() {
            if entry.target.entries.is_empty() {
                return Err(Error::NothingSelected { what: "an empty list of parts".into(), hint: String::new() });
            }
            for (filter, selection) in &entry.target.entries {
                let mut points = PointSet::default();
                let mut of_hook = selection.clone();
                for point in filter.reached(config, &plan.section)? {
                    of_hook = plan.add(point, selection, &entry.action)?;
                    points.insert(point);
                }
                plan.hooked.push(HookedPart { hook, points, selection: of_hook });
            }
        }
        if let Some(select) = cache {
            for point in select.reached(config, &plan.section)? {
                plan.cached.insert(point);
                plan.live.insert(point);
            }
        }
        plan.cut_layers();
        plan.n_live = plan.live.len();
        plan.splice()?;
        if past.is_some() && plan.section.end == End::LastPoint {
            // The store gets the keys and values of every block.
            plan.section.end = if plan.reaches_logits() { End::Logits } else { End::Stream };
        }
        Ok(plan)
    }

    /// Adds what a hook does at a part of a point, and gives what it selects there.
    fn add(&mut self, point: HookPoint, selection: &Selection, action: &Action<'_>) -> Result<Selection> {
        let (config, weights) = &self.of;
        let failed = |what| match action {
            Action::Patch(_) => Error::Patch { name: point.to_string(), what },
            _ => Error::hook(point, HookFailure::Part { why: what }),
        };
        let selection = match action {
            Action::Patch(patch) => selection.and(patch.selection()).map_err(failed)?,
            _ => selection.clone(),
        };
        selection.check(point, config).map_err(failed)?;
        if let Action::Patch(patch) = action {
            patch.check(point, *weights)?;
        }
        if action.is_backward() {
            if self.differentiation.order == Order::None {
                let why = format!(
                    "the hook on the gradient at `{point}` cannot act: the run computes no gradients, so use `run_with_grad`"
                );
                return Err(Error::setting("hooks", why));
            }
            if !is_differentiable(point.kind(*weights)) {
                let why = format!("the hook on the gradient at `{point}` cannot act: whole numbers have no gradient");
                return Err(Error::setting("hooks", why));
            }
            self.cuts.insert(point);
        }
        self.live.insert(point);
        if action.changes() {
            // Heads of a group share keys and values, so a stream for each query head does not say what these read.
            if point.site() == Site::AttnIn && config.heads(point.layer().unwrap_or(0)).is_grouped() {
                return Err(Error::unsupported(GROUPED_ATTN_IN));
            }
            self.changed.insert(point);
        }
        Ok(selection)
    }

    /// Marks what dictionaries read and reconstruct, as far as the run reaches it.
    fn splice(&mut self) -> Result<()> {
        let splices = self.splices.clone();
        let config = Arc::clone(&self.of.0);
        for splice in splices.iter() {
            if !splice.outputs.iter().any(|hook| self.section.reaches(*hook, &config)) {
                continue;
            }
            if let Some(why) = self.section.why_unreached(splice.hook_in, &config) {
                let why = format!("{why}, and the dictionary at `{}` reads it", splice.hook_out());
                return Err(Error::NeverReached { name: splice.hook_in.to_string(), why });
            }
            if splice.hook_in != splice.hook_out() {
                self.read.insert(splice.hook_in);
            }
            self.spliced.insert(splice.hook_out());
            for hook in [splice.hook_in, splice.hook_out()] {
                if !self.live.contains(hook) {
                    self.dictionary_only.insert(hook);
                    self.live.insert(hook);
                }
            }
            self.changed.insert(splice.hook_out());
        }
        self.replaced_neurons = splices.iter().filter_map(|splice| self.replaces_neurons(splice, &config)).collect();
        Ok(())
    }

    /// The layer whose neurons need not be computed, as nothing looks at them or at what they write: not a hook, not the cache, not an error term,
    /// not tokens that are left out.
    fn replaces_neurons(&self, splice: &Splice, config: &Config) -> Option<usize> {
        let out = splice.hook_out();
        let layer = out.layer().filter(|_| matches!(out.site(), Site::MlpOut | Site::MlpHookOut))?;
        let is_seen = splice.uses_original() || self.live.contains(HookPoint::of_dictionary(out, Site::SaeError));
        if !self.spliced.contains(out) || splice.hook_in == out || is_seen {
            return None;
        }
        let reads = hook::mlp_hook_in(layer).with_stack(config.stack);
        let within = all_points(config).skip_while(|point| *point != reads).skip(1).take_while(|point| *point != out);
        let is_seen = |point: HookPoint| point.spliced_at() != Some(out) && self.live.contains(point);
        (!within.into_iter().any(is_seen)).then_some(layer)
    }

    /// Cuts the graph before each layer where it is cut anywhere, so that no segment of the backward pass is longer than a layer.
    fn cut_layers(&mut self) {
        if self.cuts.len() == 0 {
            return;
        }
        for layer in self.section.layers.clone() {
            self.cuts.insert(hook::resid_pre(layer));
            self.live.insert(hook::resid_pre(layer));
        }
    }

    /// Whether what `point` shows has a gradient in this run.
    #[inline]
    pub(crate) fn records(&self, point: HookPoint) -> bool {
        self.differentiation.order != Order::None && (self.cached.contains(point) || self.cuts.contains(point))
    }

    /// What a backward pass takes for constant.
    #[inline]
    pub(crate) fn rules(&self) -> BackwardRules {
        self.differentiation.rules
    }

    /// That no hook changes attention to keys which a layer does not hold any more. `first` is the first position that it holds.
    pub(crate) fn check_keys(&self, first: impl Fn(usize) -> usize) -> Result<()> {
        for layer in self.section.layers.clone() {
            let changes = [hook::attn_scores(layer), hook::pattern(layer)].map(|point| self.changed.contains(point));
            if changes.contains(&true) && first(layer) > 0 {
                return Err(KeyValueStoreError::PatternChanged { layer, first: first(layer) }.into());
            }
        }
        Ok(())
    }

    /// Whether a hook may put other keys or values in place in a layer, or change what single heads make theirs of.
    pub(crate) fn changes_keys(&self, layer: usize) -> bool {
        let of_heads = [hook::attn_in(layer), hook::k_input(layer), hook::v_input(layer)];
        let made = [hook::k(layer), hook::v(layer), hook::rot_k(layer)];
        of_heads.into_iter().chain(made).any(|point| self.changed.contains(point))
    }

    /// Whether something is done at a point after the last layer.
    pub(crate) fn reaches_logits(&self) -> bool {
        Site::at(Place::After).any(|site| self.live.contains(HookPoint::outside(site)))
    }

    /// The model's shape.
    pub(crate) fn config(&self) -> &Config {
        &self.of.0
    }

    /// Whether a layer's neurons are not computed.
    #[inline]
    pub(crate) fn skips_neurons(&self, layer: usize) -> bool {
        self.replaced_neurons.contains(&layer)
    }

    /// Whether an attention must form its scores and pattern, which these two points show.
    pub(crate) fn forms_pattern(&self, points: [HookPoint; 2]) -> bool {
        self.live.contains(points[0]) || self.live.contains(points[1]) || self.differentiation.order == Order::Twice
    }

    /// Whether something is done at `point`: a hook acts there, or the cache keeps what is there.
    pub fn is_live(&self, point: impl HookName) -> bool {
        point.resolve(&self.of.0).is_ok_and(|point| self.live.contains(point))
    }

    /// Whether a hook may put other values in place at `point`.
    pub fn is_changed(&self, point: impl HookName) -> bool {
        point.resolve(&self.of.0).is_ok_and(|point| self.changed.contains(point))
    }

    /// The points that the run's cache will hold, in firing order.
    pub fn cached(&self) -> impl Iterator<Item = HookPoint> + '_ {
        self.cached.iter(&self.of.0)
    }

    /// The bytes that the cache of a run of `batch` rows of `pos` positions will take, known before it runs. With a key-value store,
    /// `pos` counts the new positions, and the keys that scores and patterns have besides are those of the store.
    ///
    /// Each entry counts with its own shape and kind. In memory entries may take less: queries, keys and values are views
    /// of one tensor, and points such as `attn_in` show one stream once for each head. Of experts, as many rows
    /// are counted as can be routed to those that are kept: exactly those that are, where all experts are kept. Features of dictionaries
    /// count as whole activations; a cache in memory holds them as sparse rows, which take less.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let plan = model.plan(&RunOptions::new().cache("resid_post"))?;
    /// assert_eq!(plan.estimate(8, 100)?, 4 * 8 * 100 * 128 * 4); // layers, batch, positions, d_model, bytes of an f32
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`](crate::Error::SliceOutOfRange) where the run asks for positions that there are not. A name that does not exist is an error of
    /// [`HookedTransformer::plan`](crate::HookedTransformer::plan) already.
    pub fn estimate(&self, batch: usize, pos: usize) -> Result<u64> {
        let kept = self.kept_of(batch, pos)?;
        let mut sum = 0u64;
        // A token is routed to some experts only, whichever they are: so many of those kept count, the layer and site over.
        let experts_per_token = self.of.0.experts().map_or(0, |moe| moe.experts_per_token);
        let mut counted: HashMap<(Option<usize>, Site), usize> = HashMap::new();
        for point in self.cached() {
            if point.expert().is_some() {
                let experts = counted.entry((point.layer(), point.site())).or_default();
                if *experts == experts_per_token {
                    continue;
                }
                *experts += 1;
            }
            sum = sum.saturating_add(self.bytes_at(point, batch, pos, &kept));
        }
        Ok(sum)
    }

    /// The positions that the cache keeps of an input without padding.
    fn kept_of(&self, batch: usize, pos: usize) -> Result<KeptPositions> {
        let [kept, logits_at] = &self.positions;
        KeptPositions::new(kept, logits_at, &PositionAxis::unpadded(batch, self.span(pos).columns()))
    }

    /// The positions of a run of `new` positions.
    pub(crate) fn span(&self, new: usize) -> Span {
        Span { past: self.past, new }
    }

    /// The bytes of one entry of the cache; of an expert's, at most.
    fn bytes_at(&self, point: HookPoint, batch: usize, pos: usize, kept: &KeptPositions) -> u64 {
        let shape = self.kept_shape(point, batch, pos, kept);
        let width = point.kind(self.of.1).elt_size_in_bytes() as u64;
        shape.iter().map(|n| *n as u64).fold(width, u64::saturating_mul)
    }

    /// The shape of one entry of the cache; of an expert's, with the most rows that it can get.
    fn kept_shape(&self, point: HookPoint, batch: usize, pos: usize, kept: &KeptPositions) -> Vec<i64> {
        let config = self.config();
        let mut shape = point.shape_beside(config, batch, self.span(pos), self.encoder_positions);
        let length = kept.at(point).map_or(0, |columns| columns.len() as i64);
        match (point.axes().position, point.expert()) {
            (Some(axis), _) => shape[axis] = length,
            (None, Some(_)) => shape[0] = i64::try_from(batch).unwrap_or(i64::MAX).saturating_mul(length), // an expert's rows
            (None, None) => {} // an encoder's positions, of which all are kept
        }
        // Where heads read different streams, each goes through the norm.
        if let (Site::Ln1Scale | Site::Ln1Normalized, Some(layer)) = (point.site(), point.layer()) {
            // Where a layer has no keys and values of its own, queries alone read through the norm.
            let shares = config.shares_keys_of(layer).is_some();
            let reader = if shares { hook::q_input(layer) } else { hook::v_input(layer) };
            let split = self.changed.contains(hook::attn_in(layer)) || self.changed.contains(reader);
            if !matches!(config.norm_position(), NormPosition::After | NormPosition::InStream) && split {
                let heads = config.heads(layer);
                shape.insert(2, if shares { heads.query } else { heads.key_value } as i64);
                // [batch, pos, head, …]
            }
        }
        shape
    }

    /// What the run will keep of an input, in firing order.
    pub(crate) fn planned(&self, batch: usize, pos: usize, kept: &KeptPositions) -> Vec<PlannedEntry> {
        let planned = |point: HookPoint| {
            let shape = point.expert().is_none().then(|| self.kept_shape(point, batch, pos, kept));
            PlannedEntry { point, shape, kind: point.kind(self.of.1) }
        };
        self.cached().filter(|point| kept.at(*point).is_some()).map(planned).collect()
    }

    /// The largest entry of the cache, with its bytes.
    pub(crate) fn largest(&self, batch: usize, pos: usize) -> Result<Option<(HookPoint, u64)>> {
        let kept = self.kept_of(batch, pos)?;
        let mut largest = None;
        for point in self.cached() {
            let bytes = self.bytes_at(point, batch, pos, &kept);
            if largest.is_none_or(|(_, most)| bytes > most) {
                largest = Some((point, bytes));
            }
        }
        Ok(largest)
    }
}

const GROUPED_ATTN_IN: &str =
    "a hook that changes `hook_attn_in` needs as many keys and values as heads; in this grouped-query \
                               model, hook `hook_q_input`, `hook_k_input` and `hook_v_input`";
