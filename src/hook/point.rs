//! [`HookPoint`]: a place in the forward pass, as a small value that prints as TransformerLens' string.

use std::cmp::Ordering;
use std::fmt;

use super::site::{Extent, Place, Site};
use crate::config::Stack;
use crate::layer::Layer;

/// A place in the forward pass at which an activation can be read or changed: a stack, a layer, a [`Site`], an expert, as far
/// as the site is in one.
///
/// Prints as TransformerLens' name; made by the functions of [`hook`](crate::hook), or parsed from a
/// name by [`HookName::resolve`](crate::hook::HookName::resolve).
///
/// ```
/// use tch_lens::hook;
/// assert_eq!(hook::q(3).to_string(), "blocks.3.attn.hook_q");
/// assert_eq!(hook::q(3).axes().head, Some(2)); // [batch, pos, head, d_head]
/// ```
///
/// A layer may count from the end: `hook::q(-1)` means the last one of the model that it is used with. The points that a run
/// hands out (to hooks, predicates, as keys of a cache) have their layer counted from the start; the two forms compare unequal.
///
/// The order of points is that of layers and, within one, that of [`Site`]s: firing order where norms stand before their
/// sublayer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HookPoint {
    site: Site,
    stack: Stack,
    /// The expert, or the site that a dictionary reconstructs.
    within: u32,
    layer: Layer,
}

/// Which dimension of an activation means what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes {
    /// The batch.
    pub batch: Option<usize>,
    /// The position (the query's, of scores and patterns).
    pub position: Option<usize>,
    /// The head: the key-value head of keys, values and what they read, the query head of everything else.
    pub head: Option<usize>,
}

impl HookPoint {
    #[inline]
    pub(crate) const fn outside(site: Site) -> Self {
        // What a point does not have is the same for all, so that equality is that of the fields.
        HookPoint { site, stack: Stack::Blocks, within: 0, layer: Layer::FIRST }
    }

    #[inline]
    pub(crate) const fn in_layer(layer: Layer, site: Site) -> Self {
        HookPoint { site, stack: Stack::Blocks, within: 0, layer }
    }

    #[inline]
    pub(crate) fn in_expert(layer: Layer, expert: usize, site: Site) -> Self {
        HookPoint { site, stack: Stack::Blocks, within: u32::try_from(expert).unwrap_or(u32::MAX), layer }
    }

    /// A place of the dictionary that reconstructs the activation at `hook`.
    #[inline]
    pub(crate) fn of_dictionary(hook: HookPoint, site: Site) -> Self {
        let hook = hook.spliced_at().unwrap_or(hook);
        HookPoint { site, within: hook.site as u32, ..hook }
    }

    /// The activation that the dictionary of this place reconstructs; `None` for the places of the model itself.
    ///
    /// ```
    /// use tch_lens::hook;
    /// let acts = hook::sae_acts_post(hook::resid_post(4));
    /// assert_eq!(acts.to_string(), "blocks.4.hook_resid_post.hook_sae_acts_post");
    /// assert_eq!(acts.spliced_at(), Some(hook::resid_post(4)));
    /// ```
    #[inline]
    pub fn spliced_at(self) -> Option<HookPoint> {
        match self.site.place() {
            Place::Dictionary => Some(HookPoint { site: self.reconstructed(), within: 0, ..self }),
            _ => None,
        }
    }

    /// The site that the dictionary of this place reconstructs.
    #[inline]
    fn reconstructed(self) -> Site {
        Site::ALL.get(self.within as usize).copied().unwrap_or(self.site)
    }

    /// Where it is; a dictionary's place is where the activation is that it reconstructs.
    #[inline]
    pub(crate) fn place(self) -> Place {
        match self.site.place() {
            Place::Dictionary => self.reconstructed().place(),
            place => place,
        }
    }

    /// The site.
    #[inline]
    pub const fn site(self) -> Site {
        self.site
    }

    /// The stack that this place is in; `None` outside the layers.
    pub fn stack(self) -> Option<Stack> {
        self.in_a_layer().then_some(self.stack)
    }

    /// The layer that this place is in; `None` outside the layers, and where the layer counts from the end of a model that is
    /// not known yet. Points that a run hands out have it.
    #[inline]
    pub fn layer(self) -> Option<usize> {
        self.signed_layer().and_then(Layer::index)
    }

    /// The layer as it was given, which may count from the end; `None` outside the layers.
    #[inline]
    pub fn signed_layer(self) -> Option<Layer> {
        self.in_a_layer().then_some(self.layer)
    }

    /// The expert that this place is in.
    #[inline]
    pub fn expert(self) -> Option<usize> {
        (self.site.place() == Place::Expert).then_some(self.within as usize)
    }

    /// The same place in another stack.
    ///
    /// ```
    /// use tch_lens::hook::{self, Stack};
    /// assert_eq!(hook::q(3).with_stack(Stack::Encoder).to_string(), "encoder.3.attn.hook_q");
    /// assert_eq!(hook::embed().with_stack(Stack::Decoder).to_string(), "decoder.hook_embed");
    /// ```
    #[inline]
    pub fn with_stack(self, stack: Stack) -> Self {
        HookPoint { stack, ..self }
    }

    /// The point in a model of this stack, if it names no other one.
    pub(crate) fn in_stack(self, stack: Stack) -> Option<Self> {
        (self.stack == Stack::Blocks || self.stack == stack).then_some(HookPoint { stack, ..self })
    }

    /// The same place in another layer; outside the layers, the same place.
    pub(crate) fn with_layer(self, layer: impl Into<Layer>) -> Self {
        if self.in_a_layer() {
            HookPoint { layer: layer.into(), ..self }
        } else {
            self
        }
    }

    #[inline]
    fn in_a_layer(self) -> bool {
        matches!(self.place(), Place::Layer | Place::Expert)
    }

    /// Which dimension of the activation means what, in every model: norms of queries and keys have a head axis only in models
    /// that norm each head by itself, so here they have none.
    pub fn axes(self) -> Axes {
        if let (Some(hook), true) = (self.spliced_at(), self.site.row().extents.is_empty()) {
            return hook.axes();
        }
        let row = self.site.row();
        let axis = |extents: &[Extent]| {
            let merged = row.merged.iter().position(|extent| extents.contains(extent));
            let apart = row.extents.iter().position(|extent| extents.contains(extent));
            apart.filter(|_| apart == merged)
        };
        Axes {
            batch: axis(&[Extent::Batch]),
            position: axis(&[Extent::Pos]),
            head: axis(&[Extent::Head, Extent::KvHead]),
        }
    }

    /// What points are ordered by.
    fn rank(self) -> (Place, Stack, Layer, Site, u32, u8) {
        match self.site.place() {
            // The experts of a layer follow each other; within one, its sites do.
            Place::Expert => (Place::Layer, self.stack, self.layer, Site::ExpertGate, self.within, self.site as u8),
            // The places of a dictionary come before the activation that it reconstructs.
            Place::Dictionary => (self.place(), self.stack, self.layer, self.reconstructed(), 0, self.site as u8),
            place => (place, self.stack, self.layer, self.site, 0, u8::MAX),
        }
    }
}

impl Ord for HookPoint {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for HookPoint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stack, layer, name) = (self.stack.name(), self.layer, self.site.name_in(self.stack));
        match self.site.place() {
            Place::Before | Place::After => match (self.stack, self.site, name.strip_prefix("ln_final.")) {
                // TransformerLens' names. It has none for what else is outside the layers of an encoder or decoder.
                (Stack::Blocks, ..) | (Stack::Encoder, Site::Embed, _) => f.write_str(name),
                (Stack::Decoder, Site::UnembedIn | Site::UnembedOut, _) => f.write_str(name),
                (_, _, Some(of_norm)) => write!(f, "{stack}_final_ln.{of_norm}"),
                _ => write!(f, "{stack}.{name}"),
            },
            Place::Layer => write!(f, "{stack}.{layer}.{name}"),
            Place::Expert => write!(f, "{stack}.{layer}.mlp.experts.{}.{name}", self.within),
            Place::Dictionary => match self.spliced_at() {
                Some(hook) => write!(f, "{hook}.{name}"),
                None => f.write_str(name),
            },
        }
    }
}

impl fmt::Debug for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
