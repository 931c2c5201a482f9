//! [`Context`]: what all blocks of a run share: masks, rotary angles, padding.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::batch::Batch;
use super::block::Block;
use super::embed::Embed;
use super::encoder_context::EncoderContext;
use super::indexer::Choice;
use super::key_value_store::held::{Held, HeldKeys, KeyValueBlock, NewKeys};
use super::key_value_store::KeyValueStore;
use super::layout::Layout;
use super::linear::Linear;
use super::mask::{distance, MaskKind};
use super::rotary::RotaryTable;
use super::tables::Tables;
use super::Transformer;
use crate::config::{Rotary, Temperature, TemperatureGrowth};
use crate::tensor::scalar::{arange, Scalar};
use crate::{Config, Result};

/// No mask, and no scores that nothing observes, of more entries than this are made at once: 64 MB in fp32. Longer sequences go
/// through attention some queries at a time, so that memory grows with their length and not its square.
pub(crate) const AT_ONCE: i64 = 1 << 24;

/// Whose keys and values an attention's queries see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// The stream's own: self-attention.
    Stream,
    /// Those of an encoder's output: cross-attention.
    Encoder,
}

/// What all blocks of a run share.
pub(crate) struct Context<'r> {
    config: &'r Config,
    blocks: &'r [Block],
    embed: &'r Embed,
    distance_embeddings: OnceCell<Tensor>,
    tables: &'r Tables,
    pub(super) layout: &'r Layout,
    /// The kind and device of the activations.
    pub(super) options: (Kind, Device),
    masks: Vec<Masks>,
    /// The angles of each rotation that a layer has.
    rotary: Vec<(&'r Rotary, RotaryTable)>,
    /// Which of the new tokens are padding: `[batch, new]`, bool.
    pub(super) padding: Option<Tensor>,
    shortformer: Option<Tensor>,
    layer_inputs: Option<Tensor>,
    store: Option<&'r KeyValueStore>,
    encoder: Option<EncoderContext<'r>>,
    /// The keys and values of the layers at whose keys later ones look.
    shared: RefCell<BTreeMap<usize, Vec<KeyValueBlock>>>,
    /// The keys that each query sees, as the last indexer has chosen; `None` where it sees all.
    choice: RefCell<Option<Rc<Choice>>>,
}

/// What layers of one kind may see, made when the first of them asks.
struct Masks {
    kind: MaskKind,
    /// The layer that has their table of relative biases.
    owner: Option<usize>,
    fused: OnceCell<FusedMask>,
    scores: OnceCell<Tensor>,
}

/// How libtorch's kernel learns what each query sees.
pub(crate) enum FusedMask {
    /// Each query sees all of these keys.
    All(Range<i64>),
    /// There are as many keys as queries, and each query sees its own and those before it.
    Causal,
    /// This is added to the scores of these keys: `[batch or 1, head or 1, query, key]`. Rows of padding are zero.
    Additive(Range<i64>, Tensor),
    /// The mask is larger than what is made at once: [`Context::block`] makes it for some queries at a time.
    InBlocks,
}

impl FusedMask {
    /// Whether gradients of the mask are recorded, which libtorch's kernel does not compute.
    pub(crate) fn requires_grad(&self) -> bool {
        matches!(self, FusedMask::Additive(_, added) if added.requires_grad())
    }
}

impl<'r> Context<'r> {
    /// The context of a run of a batch through `layers`. `shortformer` is what short-former attention adds to the input of its
    /// queries and keys: `[batch, pos, d_model]`. `layer_inputs` are those of per-layer embeddings: `[batch, pos, layer, width]`.
    pub(crate) fn new(
        model: &'r Transformer,
        batch: &Batch<'r>,
        layers: &Range<usize>,
        shortformer: Option<Tensor>,
        layer_inputs: Option<Tensor>,
    ) -> Result<Self> {
        let (config, tables, layout) = (model.config(), model.tables(), batch.layout);
        let options = (model.kind(), model.device());
        let mut masks: Vec<Masks> = Vec::new();
        let mut rotary: Vec<(&Rotary, RotaryTable)> = Vec::new();
        for layer in layers.clone() {
            let kind = MaskKind::of(config, layer, layout.span.keys());
            let owner = config.relative_bias_owner(layer);
            if !masks.iter().any(|masks| masks.kind == kind && masks.owner == owner) {
                masks.push(Masks { kind, owner, fused: OnceCell::new(), scores: OnceCell::new() });
            }
            if let Some(rotation) = config.rotation(layer)
                && !rotary.iter().any(|(known, _)| *known == rotation)
            {
                rotary.push((rotation, tables.rotary(rotation, layout, config.n_ctx, options)?));
            }
        }
        let padding = layout.new_padding()?;
        let encoder = batch.encoder.map(EncoderContext::new);
        let (store, shared, choice) = (batch.store, RefCell::default(), RefCell::default());
        let weights = model.weights()?;
        let (blocks, embed) = (&weights.blocks, &weights.embed);
        Ok(Context {
            config,
            blocks,
            embed,
            distance_embeddings: OnceCell::new(),
            tables,
            layout,
            options,
            masks,
            rotary,
            padding,
            shortformer,
            layer_inputs,
            store,
            encoder,
            shared,
            choice,
        })
    }

    /// What a layer's fused attention may see.
    pub(crate) fn fused_mask(&self, source: KeySource, layer: usize) -> Result<&FusedMask> {
        if source == KeySource::Encoder {
            return self.encoder()?.fused_mask(self);
        }
        let masks = self.masks(layer)?;
        get_or_make(&masks.fused, || self.make_fused(masks, self.first(source, layer)))
    }

    /// What is added to a layer's scores where these are formed: `[batch or 1, head or 1, query, key]`.
    pub(crate) fn scores_mask(&self, source: KeySource, layer: usize) -> Result<Option<&Tensor>> {
        if source == KeySource::Encoder {
            return self.encoder()?.scores_mask(self.options.0);
        }
        let masks = self.masks(layer)?;
        let queries = self.layout.span.columns();
        let adds_nothing = masks.owner.is_none() && masks.kind.is_plain() && masks.kind.is_trivial(&queries);
        if self.padding.is_none() && adds_nothing {
            return Ok(None);
        }
        let keys = self.first(source, layer)..queries.end;
        get_or_make(&masks.scores, || self.additive(masks, &queries, &keys)).map(Some)
    }

    /// The keys that some of the new queries of a layer can see, and what is added to those scores, with rows of padding zero.
    pub(crate) fn block(&self, source: KeySource, layer: usize, queries: &Range<i64>) -> Result<(Range<i64>, Tensor)> {
        if source == KeySource::Encoder {
            return self.encoder()?.block(self, queries);
        }
        let masks = self.masks(layer)?;
        let past = self.layout.span.past as i64;
        let columns = past + queries.start..past + queries.end;
        let keys = self.visible(masks.kind, &columns, self.first(source, layer));
        let added = self.additive(masks, &columns, &keys)?;
        Ok((keys, self.opened(added, queries)?))
    }

    /// Scores in which queries that are padding see everything alike: a row of nothing but −∞ has no softmax, and its gradient
    /// would be NaN.
    pub(crate) fn open_padding(&self, scores: Tensor) -> Result<Tensor> {
        self.opened(scores, &(0..self.layout.span.new as i64))
    }

    /// `[batch, pos, head, …]` with zeros for queries that are padding.
    pub(crate) fn without_padding(&self, x: Tensor) -> Result<Tensor> {
        match &self.padding {
            Some(padding) => x.fill_where(&padding.f_unsqueeze(-1)?.f_unsqueeze(-1)?, 0.0),
            None => Ok(x),
        }
    }

    /// A layer's queries or keys, rotated: as they are in a layer that is blind to positions. `[batch, pos, head, d_head]`
    pub(crate) fn rotated(&self, layer: usize, x: Tensor, start: i64) -> Result<Tensor> {
        match self.config.rotation(layer) {
            Some(rotation) => self.angles(rotation)?.rotate(&x, start),
            None => Ok(x),
        }
    }

    /// The first dimensions of an indexer's queries or keys, `[batch, pos, head, width]`, rotated by the angles of the layer: in pairs of
    /// neighbours, or of one from each half.
    pub(crate) fn rotated_in_pairs(&self, layer: usize, x: Tensor, adjacent: bool) -> Result<Tensor> {
        match self.config.rotation(layer) {
            Some(rotation) => self.angles(rotation)?.in_pairs(adjacent).rotate(&x, 0),
            None => Ok(x),
        }
    }

    fn angles(&self, rotation: &Rotary) -> Result<&RotaryTable> {
        let found = self.rotary.iter().find(|(known, _)| std::ptr::eq(*known, rotation) || *known == rotation);
        found.map(|(_, table)| table).ok_or_else(|| crate::Error::Internal("a layer has no angles"))
    }

    /// A layer's queries, times what their position says: `[batch, pos, head, d_head]`.
    pub(crate) fn tempered(&self, layer: usize, q: Tensor) -> Result<Tensor> {
        let Some(Some(temperature)) = self.config.attention.temperature.get(layer) else { return Ok(q) };
        let Temperature { beta, period, offset, growth } = temperature;
        let positions = match self.layout.new_positions()? {
            Some(positions) => positions, // [batch, pos]
            None => arange(self.layout.span.columns(), self.options.1)?.f_unsqueeze(0)?,
        };
        let periods = positions.f_to_kind(Kind::Double)?.add_number(*offset as f64)?.div_number(*period)?;
        let factor = match growth {
            TemperatureGrowth::Logarithmic => periods.f_floor()?.f_log1p()?.mul_number(*beta)?.add_number(1.0)?,
            TemperatureGrowth::Power => periods.f_log1p()?.mul_number(*beta)?.f_exp()?,
        };
        let factor = factor.f_to_kind(q.f_kind()?)?; // [batch or 1, pos]
        Ok(q.f_mul(&factor.f_unsqueeze(-1)?.f_unsqueeze(-1)?)?)
    }

    /// The position of the first key of a layer: not 0 where a layer with a window has forgotten those that it cannot see.
    pub(crate) fn first(&self, source: KeySource, layer: usize) -> i64 {
        self.store.filter(|_| source == KeySource::Stream).map_or(0, |store| store.first(layer) as i64)
    }

    /// The encoder's output times the weights of a layer's keys and values: `[batch, encoder_pos, …]`. With a store of keys and values,
    /// it is computed once.
    pub(crate) fn encoder_product(&self, layer: usize, kv: &Linear) -> Result<Tensor> {
        self.encoder()?.output.product(layer, kv, self.store.is_some())
    }

    /// Whether the run has a key-value store.
    pub(crate) fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// What attention of a layer looks at: the past, from [`Context::first`] on, and the new positions.
    pub(crate) fn held(&self, source: KeySource, layer: usize, new: &NewKeys<'_>) -> Result<Held> {
        let held = match self.store.filter(|_| source == KeySource::Stream) {
            Some(store) => store.extend(layer, new)?,
            None => Held {
                keys: HeldKeys::KeysAndValues(vec![new.block()?]),
                index: new.index_keys()?.into_iter().collect(),
            },
        };
        if let HeldKeys::KeysAndValues(blocks) = &held.keys
            && self.config.attention.shared_keys.values().contains(&Some(layer))
        {
            self.shared.borrow_mut().insert(layer, blocks.iter().map(KeyValueBlock::handle).collect());
        }
        Ok(held)
    }

    /// The keys and values that an earlier layer of the run has.
    pub(crate) fn shared_blocks(&self, layer: Option<usize>) -> Result<Vec<KeyValueBlock>> {
        let shared = self.shared.borrow();
        match layer.and_then(|layer| shared.get(&layer)) {
            Some(blocks) => Ok(blocks.iter().map(KeyValueBlock::handle).collect()),
            None => Err(crate::Error::Internal("a run does not pass the layer whose keys another one looks at")),
        }
    }

    /// Keeps what an indexer has chosen, for the layers after it that see the same keys.
    pub(crate) fn choose(&self, choice: Option<Choice>) {
        *self.choice.borrow_mut() = choice.map(Rc::new);
    }

    /// The keys that the queries of a layer see, where an indexer has chosen some.
    pub(crate) fn choice(&self) -> Option<Rc<Choice>> {
        self.choice.borrow().clone()
    }

    /// What per-layer embeddings have for all layers: `[batch, pos, layer, width]`.
    pub(crate) fn layer_inputs(&self) -> Result<&Tensor> {
        self.layer_inputs.as_ref().ok_or(crate::Error::Internal("a run lacks the inputs of per-layer embeddings"))
    }

    /// What short-former attention adds to the input of its queries and keys: `[batch, pos, d_model]`.
    pub(crate) fn shortformer_pos_embed(&self) -> Option<&Tensor> {
        self.shortformer.as_ref()
    }

    fn encoder(&self) -> Result<&EncoderContext<'r>> {
        self.encoder.as_ref().ok_or(crate::Error::Internal("a decoder runs without an encoder's output"))
    }

    /// How many positions each of these keys lies before each of these new queries: `[batch or 1, query, key]`.
    pub(crate) fn distances(&self, queries: &Range<i64>, keys: &Range<i64>) -> Result<Tensor> {
        Ok(distance(self.layout, queries, keys, self.options.1)?.f_neg()?)
    }

    /// The embeddings of distances, through their norm: `[row, d_model]`.
    pub(crate) fn distance_embeddings(&self) -> Result<&Tensor> {
        get_or_make(&self.distance_embeddings, || {
            let table = self.embed.w_distance.as_ref();
            let table = table.ok_or(crate::Error::Internal("a layer has no embeddings of distances"))?;
            self.embed.distance_ln.apply(table)
        })
    }

    fn masks(&self, layer: usize) -> Result<&Masks> {
        let kind = MaskKind::of(self.config, layer, self.layout.span.keys());
        let owner = self.config.relative_bias_owner(layer);
        let found = self.masks.iter().find(|masks| masks.kind == kind && masks.owner == owner);
        found.ok_or_else(|| crate::Error::Internal("a layer has no mask"))
    }

    fn make_fused(&self, masks: &Masks, first: i64) -> Result<FusedMask> {
        let kind = masks.kind;
        let span = self.layout.span;
        let queries = span.columns();
        let keys = self.visible(kind, &queries, first);
        if self.padding.is_none() && masks.owner.is_none() {
            if kind.is_trivial(&queries) {
                return Ok(FusedMask::All(keys));
            }
            if kind.is_plain() && span.past == 0 {
                return Ok(FusedMask::Causal);
            }
        }
        let rows = if self.padding.is_some() { self.layout.batch } else { 1 };
        let heads = masks.owner.map_or(kind.heads(), |_| self.config.n_heads as i64);
        if rows * heads * span.new as i64 * (keys.end - keys.start) > AT_ONCE {
            return Ok(FusedMask::InBlocks);
        }
        let added = self.additive(masks, &queries, &keys)?;
        Ok(FusedMask::Additive(keys, self.opened(added, &(0..span.new as i64))?))
    }

    /// What is added to the scores of these columns: `[batch or 1, head or 1, query, key]`.
    fn additive(&self, masks: &Masks, queries: &Range<i64>, keys: &Range<i64>) -> Result<Tensor> {
        let mask = self.mask(masks.kind, queries, keys)?;
        let Some(bias) = self.config.attention.relative_bias else { return Ok(mask) };
        let table = masks.owner.and_then(|layer| self.blocks.get(layer)?.attn.relative_bias.as_ref());
        let table = table.ok_or_else(|| crate::Error::Internal("a layer has no table of relative biases"))?;
        let direction = self.config.attention.direction;
        Ok(mask.f_add(&bias.of_distances(
            table,
            &distance(self.layout, queries, keys, self.options.1)?,
            direction,
        )?)?)
    }

    /// What a query may see: zero, or −∞, or what ALiBi adds.
    fn mask(&self, kind: MaskKind, queries: &Range<i64>, keys: &Range<i64>) -> Result<Tensor> {
        let Some(padding) = &self.layout.padding else {
            return self.tables.mask(kind, queries, keys, self.options);
        };
        if !kind.is_plain() {
            return kind.additive(self.layout, queries, keys, self.options);
        }
        let unpadded = self.tables.mask(kind, queries, keys, self.options)?; // [1, 1, query, key]
        let hidden = padding.real.f_narrow(1, keys.start, keys.end - keys.start)?.f_logical_not()?;
        unpadded.fill_where(&hidden.f_unsqueeze(1)?.f_unsqueeze(1)?, f64::NEG_INFINITY)
    }

    /// The keys that these columns can see, of those from `first` on.
    fn visible(&self, kind: MaskKind, columns: &Range<i64>, first: i64) -> Range<i64> {
        let n_keys = self.layout.span.keys() as i64;
        match &self.layout.padding {
            None => {
                let keys = kind.keys(columns, n_keys);
                keys.start.max(first)..keys.end
            }
            // Windows are of positions, which padding holds up.
            Some(_) if kind.is_causal() => first..columns.end,
            Some(_) => first..n_keys,
        }
    }

    /// `[…, query, key]` with zeros for those of these new queries that are padding.
    pub(super) fn opened(&self, x: Tensor, queries: &Range<i64>) -> Result<Tensor> {
        let Some(padding) = &self.padding else { return Ok(x) };
        let blind = padding.f_narrow(1, queries.start, queries.end - queries.start)?;
        x.fill_where(&blind.f_unsqueeze(1)?.f_unsqueeze(-1)?, 0.0) // [batch, 1, query, 1]
    }
}

pub(super) fn get_or_make<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}
