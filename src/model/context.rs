//! [`Context`]: what all blocks of a run share: masks, rotary tables, padding.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::mask::{Mask, MaskKind};
use super::rotary::RotaryTable;
use crate::config::AttnType;
use crate::tensor::scalar::Scalar;
use crate::{Config, Result};

/// Masks and rotary tables by length, made once and kept: the last few lengths of a study recur.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    masks: Kept<(MaskKind, i64), Mask>,
    rotary: Kept<(bool, i64), RotaryTable>,
}

/// Tables by what they are of.
type Kept<K, V> = Mutex<HashMap<K, Arc<V>>>;

/// A table for longer sequences than this is not kept past its run.
const KEPT_LEN: i64 = 4096;
/// No mask, and no scores that nobody looks at, of more entries than this is made at once: 64 MB in fp32. Longer
/// sequences go through attention some queries at a time, so that memory grows with their length and not its square.
pub(crate) const AT_ONCE: i64 = 1 << 24;
/// No more tables than these are kept.
const KEPT: usize = 16;

impl Tables {
    fn mask(&self, kind: MaskKind, config: &Config, len: i64, of: (Kind, Device)) -> Result<Arc<Mask>> {
        kept(&self.masks, (kind, len), len, || kind.build(config, len, of.0, of.1))
    }

    fn rotary(&self, config: &Config, layer: usize, len: i64, of: (Kind, Device)) -> Result<Option<Arc<RotaryTable>>> {
        let Some(rotary) = config.rotation(layer) else { return Ok(None) };
        let local = config.attn_type(layer) == AttnType::Local;
        kept(&self.rotary, (local, len), len, || RotaryTable::new(rotary, len, of.0, of.1)).map(Some)
    }
}

fn kept<K: std::hash::Hash + Eq, V>(
    tables: &Kept<K, V>,
    key: K,
    len: i64,
    make: impl FnOnce() -> Result<V>,
) -> Result<Arc<V>> {
    let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(table) = tables.get(&key) {
        return Ok(table.clone());
    }
    let table = Arc::new(make()?);
    if len <= KEPT_LEN {
        if tables.len() >= KEPT {
            tables.clear();
        }
        tables.insert(key, table.clone());
    }
    Ok(table)
}

/// What all blocks of a run share.
pub(crate) struct Context {
    masks: HashMap<MaskKind, LayerMask>,
    of_layer: Vec<MaskKind>,
    rotary: [Option<Rotation>; 2],
    rotary_of: Vec<usize>,
    shortformer: Option<Tensor>,
    part: Part,
}

enum LayerMask {
    /// The mask of every run of this length; and the same as a tensor, once a layer needs that.
    Kept(Arc<Mask>, OnceCell<Tensor>),
    /// This run's own, with rows that see nothing opened; and as it is.
    Own(Mask, Tensor),
    /// Made in parts.
    TooLarge(Mask),
}

enum Rotation {
    Kept(Arc<RotaryTable>),
    Own(RotaryTable),
}

/// The padding of a batch: which tokens are real, and each one's position.
pub(crate) struct Padding<'t> {
    pub(crate) mask: &'t Tensor,      // [batch, pos], bool
    pub(crate) positions: &'t Tensor, // [batch, pos]
}

/// What it takes to make any part of any mask.
struct Part {
    /// Which tokens are real: `[batch, pos]`; absent where all are.
    real: Option<Tensor>,
    config: Arc<Config>,
    len: i64,
    of: (Kind, Device),
}

impl Part {
    /// What is added to the scores of some queries and keys: `[batch or 1, head or 1, query, key]`.
    fn additive(&self, kind: MaskKind, queries: &Range<i64>, keys: &Range<i64>) -> Result<Tensor> {
        let added = kind.additive(&self.config, queries, keys, self.of.0, self.of.1)?;
        let Some(real) = &self.real else { return Ok(added) };
        let hidden = real.f_narrow(1, keys.start, keys.end - keys.start)?.f_logical_not()?;
        let hidden = hidden.f_unsqueeze(1)?.f_unsqueeze(1)?; // [batch, 1, 1, key]
        Ok(added.fill_where(&hidden, f64::NEG_INFINITY)?)
    }

    /// How many entries a whole mask has.
    fn entries(&self, kind: MaskKind) -> i64 {
        let rows = self.real.as_ref().map_or(1, |real| real.size()[0]);
        rows * kind.heads(&self.config) * self.len * self.len
    }
}

/// A row of nothing but −∞ has no softmax: it sees everything, and what it saw is dropped.
fn opened(added: &Tensor) -> Result<Tensor> {
    let blind = added.eq_number(f64::NEG_INFINITY)?.f_all_dim(-1, true)?; // [batch, head or 1, query, 1]
    Ok(added.fill_where(&blind, 0.0)?)
}

impl Context {
    pub(crate) fn new(
        config: &Arc<Config>,
        tables: &Tables,
        len: i64,
        padding: Option<Padding<'_>>,
        shortformer: Option<Tensor>,
        of: (Kind, Device),
    ) -> Result<Self> {
        let real = padding.as_ref().map(|padding| padding.mask.shallow_clone());
        let part = Part { real, config: config.clone(), len, of };
        let of_layer: Vec<_> = (0..config.n_layers).map(|layer| MaskKind::of(config, layer, len)).collect();
        let mut masks = HashMap::new();
        for kind in &of_layer {
            if masks.contains_key(kind) {
                continue;
            }
            let mask = if part.real.is_none() && kind.is_plain() {
                LayerMask::Kept(tables.mask(*kind, config, len, of)?, OnceCell::new())
            } else if part.entries(*kind) > AT_ONCE {
                LayerMask::TooLarge(Mask::TooLarge)
            } else if part.real.is_none() {
                LayerMask::Kept(tables.mask(*kind, config, len, of)?, OnceCell::new())
            } else {
                let added = part.additive(*kind, &(0..len), &(0..len))?;
                LayerMask::Own(Mask::Additive(opened(&added)?.into()), added)
            };
            masks.insert(*kind, mask);
        }
        let mut rotary = [None, None];
        let mut rotary_of = Vec::with_capacity(config.n_layers);
        for layer in 0..config.n_layers {
            let index = usize::from(config.attn_type(layer) == AttnType::Local);
            rotary_of.push(index);
            if rotary[index].is_none() {
                if let Some(table) = tables.rotary(config, layer, len, of)? {
                    rotary[index] = Some(match &padding {
                        None => Rotation::Kept(table),
                        Some(padding) => Rotation::Own(table.at(padding.positions)?),
                    });
                }
            }
        }
        Ok(Context { masks, of_layer, rotary, rotary_of, shortformer, part })
    }

    /// What a layer's fused attention may see.
    pub(crate) fn mask(&self, layer: usize) -> &Mask {
        match &self.masks[&self.of_layer[layer]] {
            LayerMask::Kept(mask, _) => mask,
            LayerMask::Own(opened, _) => opened,
            LayerMask::TooLarge(mask) => mask,
        }
    }

    /// What is added to a layer's scores where these are formed: `[batch or 1, head or 1, query, key]`.
    pub(crate) fn additive_mask(&self, layer: usize) -> Result<Option<Tensor>> {
        let kind = self.of_layer[layer];
        let all = 0..self.part.len;
        match &self.masks[&kind] {
            LayerMask::Own(_, added) => Ok(Some(added.shallow_clone())),
            LayerMask::TooLarge(_) => self.part.additive(kind, &all, &all).map(Some),
            LayerMask::Kept(mask, made) => match (mask.as_ref(), made.get()) {
                (Mask::None, _) => Ok(None),
                (Mask::Additive(added), _) => Ok(Some(added.shallow_clone())),
                (_, Some(added)) => Ok(Some(added.shallow_clone())),
                (Mask::Causal | Mask::TooLarge, None) => {
                    let added = self.part.additive(kind, &all, &all)?;
                    Ok(Some(made.get_or_init(|| added).shallow_clone()))
                }
            },
        }
    }

    /// The keys that some queries of a layer can see, and what is added to those scores, with rows that see nothing opened.
    pub(crate) fn block(&self, layer: usize, queries: &Range<i64>) -> Result<(Range<i64>, Tensor)> {
        let kind = self.of_layer[layer];
        let keys = kind.keys(queries, self.part.len);
        let added = self.part.additive(kind, queries, &keys)?;
        let added = if self.part.real.is_some() { opened(&added)? } else { added };
        Ok((keys, added))
    }

    /// `[batch, pos, head, …]` with zeros for queries that see nothing.
    pub(crate) fn without_padding(&self, x: Tensor) -> Result<Tensor> {
        match &self.part.real {
            // Not a product: what a blind query saw may be NaN.
            Some(real) => {
                let blind = real.f_logical_not()?.f_unsqueeze(-1)?.f_unsqueeze(-1)?; // [batch, pos, 1, 1]
                Ok(x.fill_where(&blind, 0.0)?)
            }
            None => Ok(x),
        }
    }

    /// The rotation of a layer's queries and keys.
    pub(crate) fn rotary(&self, layer: usize) -> Option<&RotaryTable> {
        self.rotary[self.rotary_of[layer]].as_ref().map(|rotation| match rotation {
            Rotation::Kept(table) => table,
            Rotation::Own(table) => table,
        })
    }

    /// What short-former attention adds to the input of its queries and keys: `[batch, pos, d_model]`.
    pub(crate) fn shortformer_pos_embed(&self) -> Option<&Tensor> {
        self.shortformer.as_ref()
    }
}
