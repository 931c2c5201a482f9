//! [`MaskKind`]: what a query may see, and what ALiBi adds to its scores.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::layout::Layout;
use crate::config::{AttentionDir, Positions, Reach};
use crate::tensor::scalar::{arange, Scalar};
use crate::{Config, Result};

/// Which mask a layer needs. Layers that need the same share one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MaskKind {
    causal: bool,
    /// Only where the window is shorter than the sequence.
    window: Option<i64>,
    /// Only where the sequence is longer than a chunk.
    chunk: Option<i64>,
    alibi: Option<Alibi>,
}

/// ALiBi's penalties.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Alibi {
    bias_max: f64,
    heads: usize,
    /// Falcon's: computed in bfloat16 from the key's position, and divided by this.
    rounded: Option<f64>,
}

impl MaskKind {
    /// The mask of a layer for queries that can look at `n_keys` keys.
    pub(crate) fn of(config: &Config, layer: usize, n_keys: usize) -> Self {
        MaskKind {
            causal: config.attention_dir() == AttentionDir::Causal,
            window: config.window(layer).filter(|window| *window < n_keys).map(|window| window as i64),
            chunk: match config.reach(layer) {
                Reach::Chunk(chunk) if chunk < n_keys => Some(chunk as i64),
                _ => None,
            },
            alibi: match config.positions {
                Positions::Alibi { bias_max, rounded } => {
                    let rounded = rounded.then(|| config.score_divisor(layer) / 2.0);
                    Some(Alibi { bias_max, heads: config.n_heads, rounded })
                }
                _ => None,
            },
        }
    }

    pub(crate) fn is_causal(self) -> bool {
        self.causal
    }

    /// Whether what a query sees of a key depends on the distance between them alone, and no key comes after it.
    pub(crate) fn is_of_distance(self) -> bool {
        self.causal && self.chunk.is_none() && self.alibi.is_none_or(|alibi| alibi.rounded.is_none())
    }

    /// Whether the distance between query and key counts for nothing but the direction.
    pub(crate) fn is_plain(self) -> bool {
        self.window.is_none() && self.chunk.is_none() && self.alibi.is_none()
    }

    /// Whether every key that these queries can see is seen by all of them alike, where nothing is padded.
    pub(crate) fn is_trivial(self, queries: &Range<i64>) -> bool {
        self.alibi.is_none()
            && (queries.end - queries.start == 1 || (self.window.is_none() && self.chunk.is_none() && !self.causal))
    }

    /// How many heads see differently: the mask's second axis.
    pub(crate) fn heads(self) -> i64 {
        self.alibi.map_or(1, |alibi| alibi.heads as i64)
    }

    /// The keys that any of these queries can see, out of `0..n_keys`, where nothing is padded.
    pub(crate) fn keys(self, queries: &Range<i64>, n_keys: i64) -> Range<i64> {
        let reach = self.window.map_or(n_keys, |window| window - 1);
        let end = if self.causal { queries.end } else { (queries.end + reach).min(n_keys) };
        let (first, last) = match self.chunk {
            Some(chunk) => (queries.start / chunk * chunk, (queries.end - 1) / chunk * chunk + chunk),
            None => (0, n_keys),
        };
        (queries.start - reach).max(first)..end.min(last)
    }

    /// What is added to the scores of these queries and keys: −∞ where a query may not look, ALiBi's penalty elsewhere.
    /// `[batch or 1, head or 1, query, key]`.
    ///
    /// Distances are between positions, so that padding within a row counts for nothing.
    pub(crate) fn additive(
        self,
        layout: &Layout,
        queries: &Range<i64>,
        keys: &Range<i64>,
        (kind, device): (Kind, Device),
    ) -> Result<Tensor> {
        let shape = [queries.end - queries.start, keys.end - keys.start];
        let mut visible = Tensor::f_ones(shape, (Kind::Bool, device))?; // [query, key]
        if self.causal {
            visible = visible.f_tril(queries.start - keys.start)?; // the diagonal of keys that are their query
        }
        if let Some(padding) = &layout.padding {
            let real = padding.real.f_narrow(1, keys.start, keys.end - keys.start)?;
            visible = visible.f_logical_and(&real.f_unsqueeze(1)?)?; // [batch, query, key]
        }
        let by_position = self.alibi.is_some() || (self.window.is_some() && layout.padding.is_some());
        let distance = match by_position {
            true => Some(distance(layout, queries, keys, device)?), // [batch or 1, query, key]
            false => None,
        };
        // The query's own position and the `window - 1` before it (and after it, where it may look there).
        match (self.window, &distance) {
            (None, _) => {}
            (Some(window), Some(distance)) => {
                let far = distance.f_abs()?.gt_number(window as f64 - 1.0)?;
                visible = visible.f_logical_and(&far.f_logical_not()?)?;
            }
            (Some(window), None) => {
                let same = queries.start - keys.start;
                visible = visible.f_triu(same + 1 - window)?.f_tril(same + window - 1)?;
            }
        }
        if let Some(chunk) = self.chunk {
            let chunk = Tensor::f_from_slice(&[chunk])?.f_to_device(device)?;
            let chunk_of = |range| -> Result<Tensor> { Ok(positions(layout, range, device)?.f_floor_divide(&chunk)?) };
            let (of_queries, of_keys) = (chunk_of(queries)?.f_unsqueeze(2)?, chunk_of(keys)?.f_unsqueeze(1)?);
            visible = visible.f_logical_and(&of_queries.f_eq_tensor(&of_keys)?)?;
            // [batch or 1, query, key]
        }
        while visible.dim() < 4 {
            visible = visible.f_unsqueeze(-3)?; // [batch or 1, 1, query, key]
        }
        let hidden = visible.f_logical_not()?;
        let slopes = |device| -> Result<Tensor> {
            let slopes = self.alibi.map(|alibi| alibi_slopes(alibi.heads, alibi.bias_max)).unwrap_or_default();
            let slopes = Tensor::f_from_slice(&slopes)?.f_to_kind(Kind::Float)?.f_to_device(device)?;
            Ok(slopes.f_reshape([1, -1, 1, 1])?)
        };
        let added = match (self.alibi, distance) {
            (Some(Alibi { rounded: Some(divisor), .. }), Some(_)) => {
                // The key's own position, in place of the distance: a row's softmax is the same but for the rounding.
                let positions = positions(layout, keys, device)?.f_to_kind(Kind::BFloat16)?; // [batch or 1, key]
                let positions = positions.f_unsqueeze(1)?.f_unsqueeze(1)?; // [batch or 1, 1, 1, key]
                let bias = slopes(device)?.f_to_kind(Kind::BFloat16)?.f_mul(&positions)?.f_to_kind(Kind::Float)?;
                let mut size = hidden.size();
                size[1] = self.heads();
                bias.div_number(divisor)?.f_expand(&size, false)?.f_contiguous()?
                // [batch or 1, head, query, key]
            }
            (Some(_), Some(distance)) => {
                let slopes = slopes(device)?;
                // Keys after the query, where they may be seen, are as far as those before it.
                slopes.f_mul(&distance.f_abs()?.f_unsqueeze(1)?)?.f_neg()? // [batch or 1, head, query, key]
            }
            _ => Tensor::f_zeros(hidden.size(), (Kind::Float, device))?,
        };
        Ok(added.fill_where(&hidden, f64::NEG_INFINITY)?.f_to_kind(kind)?)
    }
}

/// How far each key lies behind its query, in positions: `[batch or 1, query, key]`, negative before it.
pub(super) fn distance(layout: &Layout, queries: &Range<i64>, keys: &Range<i64>, device: Device) -> Result<Tensor> {
    let positions = |range| -> Result<Tensor> { Ok(positions(layout, range, device)?.f_to_kind(Kind::Float)?) };
    Ok(positions(keys)?.f_unsqueeze(1)?.f_sub(&positions(queries)?.f_unsqueeze(2)?)?)
}

/// The positions of these columns: `[batch or 1, column]`, whole numbers.
fn positions(layout: &Layout, range: &Range<i64>, device: Device) -> Result<Tensor> {
    Ok(match &layout.padding {
        Some(padding) => padding.positions.f_narrow(1, range.start, range.end - range.start)?,
        None => arange(range.clone(), device)?.f_unsqueeze(0)?,
    })
}

/// ALiBi's slopes: powers of `2^(-bias_max / n)` for a power of two, and for other numbers of heads those of the next smaller
/// power followed by every second one of the next larger.
fn alibi_slopes(n_heads: usize, bias_max: f64) -> Vec<f64> {
    let powers = |n: usize, count: usize, every: usize| {
        (0..count).map(move |i| 2f64.powf(-bias_max * (i * every + 1) as f64 / n as f64))
    };
    let floor = 1 << n_heads.ilog2();
    if floor == n_heads {
        return powers(n_heads, n_heads, 1).collect();
    }
    powers(floor, floor, 1).chain(powers(2 * floor, n_heads - floor, 2)).collect()
}
