//! [`AttentionPatterns`]: where each head looks, and how the numbers are kept in a page.

use tch::{Device, Kind, Tensor};

use super::heat_map::refuse_length;
use super::results::{floats, token_labels};
use crate::cache::ActivationCache;
use crate::hook;
use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

/// The attention patterns of heads: for each query the weights of the keys.
///
/// ```
/// use tch_lens::view::{AttentionPatterns, Draw};
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache_of("When Mary and John went to the shop", "pattern")?;
/// let patterns = AttentionPatterns::of(&cache, 0)?; // the first row of the batch, all layers that the cache holds
/// let one = patterns.head(1, 2)?; // layer 1, head 2
/// assert!(one.figure()?.to_svg()?.contains("Mary"));
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct AttentionPatterns {
    pub(super) queries: Vec<String>,
    pub(super) keys: Vec<String>,
    layers: Vec<LayerPatterns>,
    precision: Precision,
}

/// The patterns of a layer.
#[derive(Debug)]
struct LayerPatterns {
    layer: usize,
    heads: Vec<usize>,
    /// `[head, query, key]`
    patterns: Tensor,
}

/// How exact the numbers of attention patterns are in a page. What a page shows of one says how far it may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// [`Half`](Precision::Half) for up to four million numbers, [`Byte`](Precision::Byte) for more.
    #[default]
    Auto,
    /// 16 bits: off by up to 0.05 % of the value.
    Half,
    /// 8 bits for the square root of the value, which must be from 0 to 1: off by up to 0.004 at 1 and 0.0002 at 0.002.
    Byte,
}

/// The most numbers that are kept in half precision unless asked for.
const MANY: usize = 1 << 22;

/// The patterns of all heads as bytes.
#[derive(Debug)]
pub(super) struct EncodedPatterns {
    /// Panel by panel; each begins at a multiple of `stride`.
    pub(super) bytes: Vec<u8>,
    pub(super) stride: usize,
    /// In 8 bits; else in 16.
    pub(super) is_byte: bool,
    /// Keys after the query are left out, row by row: they are zero in all panels.
    pub(super) is_causal: bool,
}

impl Clone for AttentionPatterns {
    fn clone(&self) -> Self {
        let layer = |LayerPatterns { layer, heads, patterns }: &LayerPatterns| LayerPatterns {
            layer: *layer,
            heads: heads.clone(),
            patterns: patterns.shallow_clone(),
        };
        AttentionPatterns {
            queries: self.queries.clone(),
            keys: self.keys.clone(),
            layers: self.layers.iter().map(layer).collect(),
            precision: self.precision,
        }
    }
}

impl AttentionPatterns {
    /// The patterns that a cache holds, of one row of the batch.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] where the cache holds none; [`Error::NoBatchRow`].
    pub fn of(cache: &ActivationCache, row: usize) -> Result<Self> {
        let n_layers = cache.model().config().n_layers;
        let held: Vec<usize> = (0..n_layers).filter(|layer| cache.contains(hook::pattern(*layer))).collect();
        let Some(first) = held.first() else {
            cache.get(hook::pattern(0))?;
            return Err(Error::NothingSelected { what: "the request for patterns".into(), hint: String::new() });
        };
        let columns = cache.positions_of(hook::pattern(*first))?.of_row(row);
        let mut layers = Vec::new();
        for layer in held {
            let patterns = cache.get(hook::pattern(layer))?;
            let patterns = match cache.has_batch_dim() {
                true => {
                    if row as i64 >= patterns.size()[0] {
                        let held = format!("0 to {}", patterns.size()[0] - 1);
                        return Err(Error::NoBatchRow { row: row as i64, held });
                    }
                    patterns.f_select(0, row as i64)?
                }
                false => patterns.shallow_clone(),
            }; // [head, query, key]
            layers.push((layer, patterns));
        }
        let n_keys = layers.iter().map(|(_, patterns)| patterns.size()[2]).max().unwrap_or(0);
        let queries = token_labels(cache, row, &columns);
        let keys = token_labels(cache, row, &(0..n_keys).collect::<Vec<_>>());
        AttentionPatterns::new(queries, keys, layers)
    }

    /// Patterns of shape `[head, query, key]` by layer, with the tokens of the queries and of the keys.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for patterns of other shapes.
    pub fn new(
        queries: impl IntoIterator<Item = impl Into<String>>,
        keys: impl IntoIterator<Item = impl Into<String>>,
        layers: impl IntoIterator<Item = (usize, Tensor)>,
    ) -> Result<Self> {
        let queries: Vec<String> = queries.into_iter().map(Into::into).collect();
        let keys: Vec<String> = keys.into_iter().map(Into::into).collect();
        let layer = |(layer, patterns): (usize, Tensor)| {
            let size = patterns.size();
            if size.len() != 3 || size[1..] != [queries.len() as i64, keys.len() as i64] {
                let expected = format!("[head, query, key], [_, {}, {}]", queries.len(), keys.len());
                return Err(Error::Shape { what: format!("the patterns of layer {layer}"), found: size, expected });
            }
            Ok(LayerPatterns { layer, heads: (0..size[0] as usize).collect(), patterns: patterns.f_detach()? })
        };
        let layers = layers.into_iter().map(layer).collect::<Result<_>>()?;
        Ok(AttentionPatterns { queries, keys, layers, precision: Precision::Auto })
    }

    /// One head alone.
    ///
    /// # Errors
    ///
    /// [`Error::NoRow`].
    pub fn head(&self, layer: usize, head: usize) -> Result<Self> {
        let place = |of: &LayerPatterns| of.heads.iter().position(|held| *held == head).filter(|_| of.layer == layer);
        let found = self.layers.iter().find_map(|of| place(of).map(|place| (of, place)));
        let Some((of, place)) = found else {
            let labels: Vec<String> = self.panels().map(|(layer, head)| format!("`L{layer}H{head}`")).collect();
            let rows =
                format!("{}{}", labels[..labels.len().min(4)].join(", "), if labels.len() > 4 { ", …" } else { "" });
            return Err(Error::NoRow { label: format!("L{layer}H{head}"), count: labels.len(), rows });
        };
        let patterns = of.patterns.f_narrow(0, place as i64, 1)?;
        let layers = vec![LayerPatterns { layer, heads: vec![head], patterns }];
        Ok(AttentionPatterns { layers, ..self.clone() })
    }

    /// How exact the numbers are in a page.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Layer and head of each panel.
    pub(super) fn panels(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.layers.iter().flat_map(|of| of.heads.iter().map(|head| (of.layer, *head)))
    }

    /// The numbers of a panel: `[query, key]`, row by row.
    pub(super) fn values(&self, panel: usize) -> Result<Vec<f32>> {
        let mut before = 0;
        for of in &self.layers {
            if panel < before + of.heads.len() {
                return floats(&of.patterns.f_select(0, (panel - before) as i64)?);
            }
            before += of.heads.len();
        }
        refuse_length("the panels before this one", panel, before)?;
        Ok(Vec::new())
    }

    /// All numbers as bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for [`Precision::Byte`] where numbers are not from 0 to 1.
    pub(super) fn encoded(&self) -> Result<EncodedPatterns> {
        let count = self.panels().count() * self.queries.len() * self.keys.len();
        let is_weight = self.is_from_zero_to_one()?;
        let is_byte = match self.precision {
            Precision::Auto => count > MANY && is_weight,
            Precision::Half => false,
            Precision::Byte if is_weight => true,
            Precision::Byte => {
                let rule = "numbers outside 0 to 1 do not fit into 8 bits: use `Precision::Half`";
                return Err(Error::option_value("precision", "Byte", rule));
            }
        };
        let is_causal = self.is_causal()?;
        let n = self.queries.len();
        let per_panel = if is_causal { n * (n + 1) / 2 } else { n * self.keys.len() };
        // Every panel begins where base64 begins a group of four letters, and at a whole number.
        let stride = (per_panel * if is_byte { 1 } else { 2 }).next_multiple_of(12);
        let mut bytes = Vec::with_capacity(stride * self.panels().count());
        for of in &self.layers {
            let mut patterns = of.patterns.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?; // [head, query, key]
            if is_byte {
                patterns = patterns.f_sqrt()?.mul_number(255.0)?.f_round()?.f_to_kind(Kind::Uint8)?;
            } else {
                patterns = patterns.f_to_kind(Kind::Half)?.f_contiguous()?.f_view_dtype(Kind::Int16)?;
            }
            let seen = Tensor::f_ones([n as i64, self.keys.len() as i64], (Kind::Bool, Device::Cpu))?.f_tril(0)?;
            for head in 0..of.heads.len() {
                let panel = patterns.f_select(0, head as i64)?; // [query, key]
                let panel = if is_causal { panel.f_masked_select(&seen)? } else { panel.f_reshape(-1)? };
                let start = bytes.len();
                match is_byte {
                    true => bytes.extend(Vec::<u8>::try_from(panel)?),
                    false => bytes.extend(Vec::<i16>::try_from(panel)?.into_iter().flat_map(i16::to_le_bytes)),
                }
                bytes.resize(start + stride, 0);
            }
        }
        Ok(EncodedPatterns { bytes, stride, is_byte, is_causal })
    }

    fn is_from_zero_to_one(&self) -> Result<bool> {
        for of in self.layers.iter().filter(|of| of.patterns.numel() > 0) {
            let (low, high) = (of.patterns.f_min()?.f_double_value(&[])?, of.patterns.f_max()?.f_double_value(&[])?);
            // Also false where a number is NaN. A softmax may be above 1 by rounding.
            if !(low >= 0.0 && high <= 1.001) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether no query looks at a key after it.
    fn is_causal(&self) -> Result<bool> {
        if self.queries != self.keys {
            return Ok(false);
        }
        for of in &self.layers {
            if of.patterns.f_triu(1)?.f_count_nonzero(None::<i64>)?.f_int64_value(&[])? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
