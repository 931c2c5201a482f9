//! [`Indexer`]: which keys each query sees, as a small network beside attention chooses them.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::context::{Context, KeySource, AT_ONCE};
use super::linear::Linear;
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use crate::config;
use crate::tensor::scalar::{full, Scalar};
use crate::Result;

/// A layer's indexer (DeepSeek-AI 2025, "DeepSeek-V3.2-Exp"): each query sees the keys `s` for which `Σ_h w_h relu(q_h · k_s)` is largest.
///
/// The choice is a constant for gradients.
#[derive(Clone, Debug)]
pub(crate) struct Indexer {
    /// From the latent of attention's queries: `[index_heads · width, query_rank]`; without a bias.
    pub(crate) q: Linear,
    /// From the stream to keys that all heads of the indexer share: `[width, d_model]`.
    pub(crate) k: Linear,
    pub(crate) k_norm: Norm,
    /// From the stream to the weights of the heads: `[index_heads, d_model]`.
    pub(crate) weights: Linear,
    heads: i64,
    keep: i64,
    adjacent_pairs: bool,
    layer: usize,
}

module!(Indexer, () => (), {
    // The part of the bias, which it has not, is that of the weight.
    q: (Part::IndexQ, Part::IndexQ),
    k: (Part::IndexK, Part::IndexKB),
    k_norm: (Part::IndexKNormW, Part::IndexKNormB),
    weights: (Part::IndexWeights, Part::IndexWeightsB),
} plain { heads, keep, adjacent_pairs, layer });

/// What an indexer makes of the new positions.
pub(crate) struct IndexReads {
    /// Rotated: `[batch, pos, index_head, width]`.
    q: Tensor,
    /// Of each head: `[batch, pos, index_head]`.
    weights: Tensor,
    /// Rotated: `[batch, pos, width]`.
    pub(crate) keys: Tensor,
}

/// The keys that each query sees.
#[derive(Debug)]
pub(crate) struct Choice {
    /// `[batch, query, keep]`; where a query can look at fewer, some of them are of keys that other masks hide.
    indices: Tensor,
    n_keys: i64,
}

impl Indexer {
    /// The parts are `q`, `k`, the norm of `k`, and `weights`.
    pub(crate) fn new(
        of: &config::Indexer,
        layer: usize,
        (q, k, k_norm, weights): (Linear, Linear, Norm, Linear),
    ) -> Self {
        let (heads, keep) = (of.n_heads as i64, of.keep as i64);
        Indexer { q, k, k_norm, weights, heads, keep, adjacent_pairs: of.adjacent_pairs, layer }
    }

    /// Whether it hides any of so many keys.
    pub(crate) fn chooses_among(&self, n_keys: usize) -> bool {
        n_keys as i64 > self.keep
    }

    /// What it makes of the stream that attention reads, `[batch, pos, d_model]`, and of the latent of the queries,
    /// `[batch, pos, query_rank]`.
    pub(crate) fn read(&self, x: &Tensor, latent: &Tensor, context: &Context) -> Result<IndexReads> {
        let (x, latent) = (x.f_detach()?, latent.f_detach()?);
        let size = x.size();
        let q = self.q.forward(&latent)?.f_view([size[0], size[1], self.heads, -1])?; // [batch, pos, index_head, width]
        let k = self.k_norm.apply(&self.k.forward(&x)?)?.f_unsqueeze(2)?; // [batch, pos, 1, width]
        let rotated = |x| context.rotated_in_pairs(self.layer, x, self.adjacent_pairs);
        Ok(IndexReads { q: rotated(q)?, keys: rotated(k)?.f_squeeze_dim(2)?, weights: self.weights.forward(&x)? })
    }

    /// The choice of the new queries among the keys of all positions, `[row, 1, key, width]` of blocks of them. `None` where each query sees
    /// all that it can look at.
    ///
    /// Factors that all scores of a query share change no choice, and are left out.
    pub(crate) fn choose(&self, reads: &IndexReads, blocks: &[Tensor], context: &Context) -> Result<Option<Choice>> {
        let n_keys = blocks.iter().map(|block| block.size()[2]).sum::<i64>();
        if n_keys <= self.keep {
            return Ok(None);
        }
        let kind = match reads.q.f_kind()? {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let size = reads.q.size(); // [batch, pos, index_head, width]
        let of_rows = |block: &Tensor| Ok(block.f_squeeze_dim(1)?.f_repeat([size[0] / block.size()[0], 1, 1])?);
        let keys = Tensor::f_cat(&blocks.iter().map(of_rows).collect::<Result<Vec<_>>>()?, 1)?; // [batch, key, width]
        let keys = keys.f_to_kind(kind)?.f_transpose(1, 2)?;
        let step = (AT_ONCE / (size[0] * self.heads * n_keys)).clamp(16, 1024);
        let mut chosen = Vec::new();
        for start in (0..size[1]).step_by(step as usize) {
            let queries = start..(start + step).min(size[1]);
            let part = |x: &Tensor| Ok::<_, crate::Error>(x.f_narrow(1, start, queries.end - start)?.f_to_kind(kind)?);
            let products = part(&reads.q)?.f_flatten(1, 2)?.f_bmm(&keys)?.f_relu()?; // [batch, query · index_head, key]
            let products = products.f_view([size[0], -1, self.heads, n_keys])?;
            let scores = part(&reads.weights)?.f_unsqueeze(2)?.f_matmul(&products)?.f_squeeze_dim(2)?; // [batch, query, key]
            let scores = visible(scores, &queries, self.layer, context)?;
            // Scores of nothing but negative products are equal. Of keys that are alike, the earlier ones are seen, however many others there are.
            let (_, order) = scores.f_sort_stable(true, -1, true)?;
            chosen.push(order.f_narrow(2, 0, self.keep)?.f_contiguous()?);
        }
        Ok(Some(Choice { indices: Tensor::f_cat(&chosen, 1)?, n_keys }))
    }
}

/// Scores with −∞ for the keys that a query cannot look at: `[batch, query, key]`.
fn visible(scores: Tensor, queries: &Range<i64>, layer: usize, context: &Context) -> Result<Tensor> {
    let (keys, added) = context.block(KeySource::Stream, layer, queries)?;
    let size = scores.size();
    let added = added.f_squeeze_dim(1)?.f_to_kind(scores.f_kind()?)?; // [batch or 1, query, visible key]
    let seen = scores.f_narrow(2, keys.start, keys.end - keys.start)?.f_add(&added)?;
    let hidden = |n| full(&[size[0], size[1], n], f64::NEG_INFINITY, (scores.f_kind()?, scores.device()));
    Ok(Tensor::f_cat(&[hidden(keys.start)?, seen, hidden(size[2] - keys.end)?], 2)?)
}

impl Choice {
    /// What is added to the scores of some of the new queries and some keys: −∞ where a key is not chosen. `[batch, 1, query, key]`.
    pub(crate) fn added(&self, queries: &Range<i64>, keys: &Range<i64>, kind: Kind) -> Result<Tensor> {
        let chosen = self.indices.f_narrow(1, queries.start, queries.end - queries.start)?;
        let (size, device) = (chosen.size(), chosen.device());
        let hidden = Tensor::f_ones([size[0], size[1], self.n_keys], (Kind::Bool, device))?;
        let hidden = hidden.f_scatter(-1, &chosen, &Tensor::f_zeros(&size, (Kind::Bool, device))?)?;
        let hidden = hidden.f_narrow(2, keys.start, keys.end - keys.start)?.f_unsqueeze(1)?;
        Tensor::f_zeros(hidden.size(), (kind, device))?.fill_where(&hidden, f64::NEG_INFINITY)
    }
}
