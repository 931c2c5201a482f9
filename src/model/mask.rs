//! What a query may see, and what ALiBi adds to its scores.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::config::{AttentionDir, Positions};
use crate::tensor::scalar::{arange, Scalar};
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Result};

/// What is added to a layer's scores: −∞ where a query may not look, ALiBi's penalty elsewhere.
#[derive(Debug)]
pub(crate) enum Mask {
    /// Nothing.
    None,
    /// −∞ on the keys after each query, and nothing else.
    Causal,
    /// This, `[batch or 1, head or 1, query, key]`.
    Additive(SharedTensor),
    /// More than is made at once: [`Context::block`](super::context::Context::block) makes it for some queries at a time.
    TooLarge,
}

/// Which mask a layer needs; layers that need the same share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MaskKind {
    causal: bool,
    /// Only where the window is shorter than the sequence.
    window: Option<usize>,
    alibi: bool,
}

impl MaskKind {
    pub(crate) fn of(config: &Config, layer: usize, len: i64) -> Self {
        MaskKind {
            causal: config.attention_dir() == AttentionDir::Causal,
            window: config.window(layer).filter(|window| (*window as i64) < len),
            alibi: matches!(config.positions, Positions::Alibi { .. }),
        }
    }

    /// The mask for sequences of `len`, without padding.
    pub(crate) fn build(self, config: &Config, len: i64, kind: Kind, device: Device) -> Result<Mask> {
        if self.is_plain() {
            return Ok(if self.causal { Mask::Causal } else { Mask::None });
        }
        Ok(Mask::Additive(self.additive(config, &(0..len), &(0..len), kind, device)?.into()))
    }

    /// Whether libtorch's kernel needs no tensor to know what each query sees, where nothing is padded.
    pub(crate) fn is_plain(self) -> bool {
        self.window.is_none() && !self.alibi
    }

    /// How many heads see differently: the mask's second axis.
    pub(crate) fn heads(self, config: &Config) -> i64 {
        if self.alibi {
            config.n_heads as i64
        } else {
            1
        }
    }

    /// The keys that any of these queries can see.
    pub(crate) fn keys(self, queries: &Range<i64>, len: i64) -> Range<i64> {
        let reach = self.window.map_or(len, |window| window as i64 - 1);
        let end = if self.causal { queries.end } else { (queries.end + reach).min(len) };
        (queries.start - reach).max(0)..end
    }

    /// What is added to the scores of these queries and keys: `[1, head or 1, query, key]`.
    pub(crate) fn additive(
        self,
        config: &Config,
        queries: &Range<i64>,
        keys: &Range<i64>,
        kind: Kind,
        device: Device,
    ) -> Result<Tensor> {
        let (n_queries, n_keys) = (queries.end - queries.start, keys.end - keys.start);
        let mut allowed = Tensor::f_ones([n_queries, n_keys], (Kind::Bool, device))?; // [query, key]
        let same = queries.start - keys.start; // the diagonal of keys that are their query
        if self.causal {
            allowed = allowed.f_tril(same)?;
        }
        if let Some(window) = self.window {
            // The query's own position and the `window - 1` before it (and after it, where it may look there).
            allowed = allowed.f_triu(same + 1 - window as i64)?;
            if !self.causal {
                allowed = allowed.f_tril(same + window as i64 - 1)?;
            }
        }
        let zeros = Tensor::f_zeros([1, 1, n_queries, n_keys], (Kind::Float, device))?;
        let mut added = zeros.fill_where(&allowed.f_logical_not()?, f64::NEG_INFINITY)?;
        if let Positions::Alibi { bias_max } = config.positions {
            let positions =
                |range: &Range<i64>| -> Result<Tensor> { Ok(arange(range.clone(), device)?.f_to_kind(Kind::Float)?) };
            let distance = positions(keys)?.f_unsqueeze(0)?.f_sub(&positions(queries)?.f_unsqueeze(1)?)?; // [query, key]
            let slopes = Tensor::f_from_slice(&alibi_slopes(config.n_heads, bias_max))?
                .f_to_kind(Kind::Float)?
                .f_to_device(device)?
                .f_reshape([1, config.n_heads as i64, 1, 1])?;
            // Keys after the query, where they may be seen, are as far as those before it.
            added = added.f_sub(&slopes.f_mul(&distance.f_abs()?)?)?; // [1, head, query, key]
        }
        Ok(added.f_to_kind(kind)?)
    }
}

/// ALiBi's slopes: powers of `2^(-bias_max / n)` for a power of two, and for other numbers of heads
/// those of the next smaller power followed by every second one of the next larger.
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
