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
    expert: u32,
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
        HookPoint { site, stack: Stack::Blocks, expert: 0, layer: Layer::FIRST }
    }

    #[inline]
    pub(crate) const fn in_layer(layer: Layer, site: Site) -> Self {
        HookPoint { site, stack: Stack::Blocks, expert: 0, layer }
    }

    #[inline]
    pub(crate) fn in_expert(layer: Layer, expert: usize, site: Site) -> Self {
        HookPoint { site, stack: Stack::Blocks, expert: u32::try_from(expert).unwrap_or(u32::MAX), layer }
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
        (self.site.place() == Place::Expert).then_some(self.expert as usize)
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
        matches!(self.site.place(), Place::Layer | Place::Expert)
    }

    /// Which dimension of the activation means what, in every model: norms of queries and keys have a head axis only in models
    /// that norm each head by itself, so here they have none.
    pub fn axes(self) -> Axes {
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
    fn rank(self) -> (Place, Stack, Layer, Site, u32, Site) {
        match self.site.place() {
            // The experts of a layer follow each other; within one, its sites do.
            Place::Expert => (Place::Layer, self.stack, self.layer, Site::ExpertGate, self.expert, self.site),
            place => (place, self.stack, self.layer, self.site, 0, self.site),
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
            Place::Expert => write!(f, "{stack}.{layer}.mlp.experts.{}.{name}", self.expert),
        }
    }
}

impl fmt::Debug for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
