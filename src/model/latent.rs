//! [`Latent`]: queries, keys and values from latents of a few dimensions.

use tch::Tensor;

use super::attention::Projected;
use super::attention_input::AttentionInput;
use super::linear::Linear;
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use crate::{Config, Result};

/// How heads make queries, keys and values of the latents that the stream is projected onto (DeepSeek-AI 2024, "DeepSeek-V2").
#[derive(Clone, Debug)]
pub(crate) struct Latent {
    /// Absent where queries are projected from the stream.
    pub(crate) q: Option<Up>,
    pub(crate) kv: Up,
    n_heads: i64,
    d_head: i64,
    /// The dimensions of a head's queries and keys that do not rotate. They come first.
    unrotated: i64,
    d_value: i64,
}

module!(Latent, () => (), {
    q: (Part::QLatentW, Part::QUp),
    kv: (Part::KvLatentW, Part::KvUp),
} plain { n_heads, d_head, unrotated, d_value });

/// A latent's norm, and what each head reads of it.
#[derive(Clone, Debug)]
pub(crate) struct Up {
    pub(crate) norm: Norm,
    /// `[n_heads · width, rank]`; without a bias.
    pub(crate) up: Linear,
}

// The parts of the biases, which neither has, are those of the weights.
module!(Up, (gain, matrix) => (Part, Part), { norm: (gain, gain), up: (matrix, matrix) } plain {});

impl Latent {
    pub(crate) fn new(config: &Config, q: Option<Up>, kv: Up) -> Self {
        Latent {
            q,
            kv,
            n_heads: config.n_heads as i64,
            d_head: config.d_head as i64,
            unrotated: config.rotation_start() as i64,
            d_value: config.d_value() as i64,
        }
    }

    /// Queries and keys, `[batch, pos, head, d_head]`, and values, `[batch, pos, head, d_value]`.
    ///
    /// `reader` projects the stream onto the queries or their latent, then onto the latent of keys and values, then onto the part of
    /// the keys that rotates and that all heads share.
    pub(crate) fn project(&self, reader: &Linear, input: AttentionInput) -> Result<Projected> {
        let rows = reader.weight.size()[0];
        let q_rows = self.q.as_ref().map_or(self.n_heads * self.d_head, Up::rank);
        let (of_q, of_kv) = (reader.narrow(0, q_rows)?, reader.narrow(q_rows, rows - q_rows)?);
        Ok(match input {
            AttentionInput::Shared(x) => {
                let down = reader.forward(&x)?; // [batch, pos, q_rows + key_value_rank + rotated]
                let kv = down.f_narrow(-1, q_rows, rows - q_rows)?;
                let latent = self.latent(&kv)?;
                let expanded = self.expand(&latent)?;
                let q = down.f_narrow(-1, 0, q_rows)?;
                let q = match &self.q {
                    Some(up) => up.forward(&q, self.n_heads)?,
                    None => heads(q, self.n_heads)?,
                };
                let (k, v) = (self.keys(&expanded, &kv)?, self.values(&expanded)?);
                Projected { q, k, v, latent: Some(latent), index: None }
            }
            AttentionInput::Split { q, k, v, .. } => {
                let q = match &self.q {
                    Some(up) => up.forward(&of_q.forward(&q)?, self.n_heads)?,
                    None => per_head(&q, &of_q, self.n_heads)?,
                };
                let (k, v) = (of_kv.forward(&k)?, of_kv.forward(&v)?);
                let latent = self.latent(&v)?;
                let keys = self.keys(&self.expand(&self.latent(&k)?)?, &k)?;
                let values = self.values(&self.expand(&latent)?)?;
                // Of the first head, where each has its own. They are the same unless a hook changes what heads read.
                let latent = if latent.dim() == 3 { latent } else { latent.f_select(2, 0)? };
                Projected { q, k: keys, v: values, latent: Some(latent), index: None }
            }
        })
    }

    /// The latent of the queries after its norm, `[batch, pos, query_rank]`, of `[batch, pos, d_model]`.
    pub(crate) fn of_queries(&self, reader: &Linear, x: &Tensor) -> Result<Tensor> {
        let q = self.q.as_ref().ok_or(crate::Error::Internal("queries have no latent"))?;
        q.norm.apply(&reader.narrow(0, q.rank())?.forward(x)?)
    }

    /// The two maps that make the values, and the norm between them: from the stream to the latent, and from the normalised latent to
    /// the values of all heads, `[head · d_value, rank]`.
    pub(crate) fn value_maps(&self, reader: &Linear) -> Result<(Linear, &Norm, Tensor)> {
        let q_rows = self.q.as_ref().map_or(self.n_heads * self.d_head, Up::rank);
        let down = reader.narrow(q_rows, self.kv.rank())?;
        let up = self.kv.up.weight.f_view([self.n_heads, -1, self.kv.rank()])?; // [head, unrotated + d_value, rank]
        let up = up.f_narrow(1, self.unrotated, self.d_value)?.f_reshape([self.n_heads * self.d_value, -1])?;
        Ok((down, &self.kv.norm, up))
    }

    /// The latent of keys and values after its norm: `[batch, pos, rank]`, or `[batch, pos, head, rank]` where heads read different streams.
    fn latent(&self, kv: &Tensor) -> Result<Tensor> {
        self.kv.norm.apply(&kv.f_narrow(-1, 0, self.kv.rank())?)
    }

    /// The unrotated part of each head's keys and its values: `[batch, pos, head, unrotated + d_value]`.
    fn expand(&self, latent: &Tensor) -> Result<Tensor> {
        per_head(latent, &self.kv.up, self.n_heads)
    }

    /// `[batch, pos, head, d_head]`
    fn keys(&self, expanded: &Tensor, kv: &Tensor) -> Result<Tensor> {
        let rotated = kv.f_narrow(-1, self.kv.rank(), self.d_head - self.unrotated)?;
        let mut size = expanded.size();
        size[3] = self.d_head - self.unrotated;
        let rotated = match rotated.dim() {
            3 => rotated.f_unsqueeze(2)?.f_expand(size, false)?,
            _ => rotated,
        }; // [batch, pos, head, rotated]
        Ok(Tensor::f_cat(&[expanded.f_narrow(-1, 0, self.unrotated)?, rotated], -1)?)
    }

    /// `[batch, pos, head, d_value]`
    fn values(&self, expanded: &Tensor) -> Result<Tensor> {
        Ok(expanded.f_narrow(-1, self.unrotated, self.d_value)?)
    }
}

/// What a key-value store does with latents.
impl Latent {
    /// The width of what is held of a position: the latent and the rotated part of the keys.
    pub(crate) fn held_width(&self) -> i64 {
        self.kv.rank() + self.d_head - self.unrotated
    }

    /// What is held of new positions, `[batch, pos, rank + rotated]`: the latent, `[batch, pos, rank]`, and the rotated part of the keys,
    /// `[batch, pos, head, d_head]`, that all heads share.
    pub(crate) fn held(&self, latent: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let rotated = keys.f_select(2, 0)?.f_narrow(-1, self.unrotated, self.d_head - self.unrotated)?;
        Ok(Tensor::f_cat(&[latent, &rotated], -1)?)
    }

    /// Keys, `[row, head, key, d_head]`, and values, `[row, head, key, d_value]`, of what is held: `[row, 1, key, rank + rotated]`.
    pub(crate) fn keys_and_values(&self, held: &Tensor) -> Result<(Tensor, Tensor)> {
        let held = held.f_squeeze_dim(1)?;
        let expanded = self.expand(&held.f_narrow(-1, 0, self.kv.rank())?)?; // [row, key, head, unrotated + d_value]
        let (keys, values) = (self.keys(&expanded, &held)?, self.values(&expanded)?);
        Ok((keys.f_transpose(1, 2)?, values.f_transpose(1, 2)?))
    }

    /// Whether attention of so many queries to so many keys costs less on latents than on keys and values that are made of them: per
    /// head, `queries · (keys · (2 rank − unrotated − d_value) + rank · (unrotated + d_value))` products against
    /// `keys · rank · (unrotated + d_value)`.
    pub(crate) fn attends_to_latents(&self, queries: i64, keys: i64) -> bool {
        let (rank, expanded) = (self.kv.rank() as f64, (self.unrotated + self.d_value) as f64);
        let (queries, keys) = (queries as f64, keys as f64);
        queries * (keys * (2.0 * rank - expanded) + rank * expanded) < keys * rank * expanded
    }

    /// Queries for latents as keys: a head's scores are the products of `qᵀ W_K` with the latents (DeepSeek-AI 2024, section 2.1.2).
    /// `[batch, head, query, d_head]` to `[batch, head, query, rank + rotated]`.
    pub(crate) fn queries_for_latents(&self, q: &Tensor) -> Result<Tensor> {
        let w_k = self.up()?.f_narrow(1, 0, self.unrotated)?; // [head, unrotated, rank]
        let unrotated = by_head(&q.f_narrow(-1, 0, self.unrotated)?, &w_k)?;
        Ok(Tensor::f_cat(&[unrotated, q.f_narrow(-1, self.unrotated, self.d_head - self.unrotated)?], -1)?)
    }

    /// The rank of the latents: their first dimensions serve as values.
    pub(crate) fn rank(&self) -> i64 {
        self.kv.rank()
    }

    /// Mixed values of mixed latents: `[batch, head, query, rank]` to `[batch, head, query, d_value]`.
    pub(crate) fn values_of_latents(&self, mixed: &Tensor) -> Result<Tensor> {
        let w_v = self.up()?.f_narrow(1, self.unrotated, self.d_value)?; // [head, d_value, rank]
        by_head(mixed, &w_v.f_transpose(1, 2)?)
    }

    /// From the latent to each head: `[head, unrotated + d_value, rank]`, a view.
    fn up(&self) -> Result<Tensor> {
        Ok(self.kv.up.weight.f_view([self.n_heads, self.unrotated + self.d_value, self.kv.rank()])?)
    }
}

/// Each head's own product: `[batch, head, query, in]` and `[head, in, out]` to `[batch, head, query, out]`. The weights are read once for
/// all rows.
fn by_head(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let [batch, heads, queries] = [0, 1, 2].map(|axis| x.size()[axis]);
    let x = x.f_transpose(0, 1)?.f_reshape([heads, batch * queries, -1])?; // [head, batch · query, in]
    Ok(x.f_bmm(w)?.f_view([heads, batch, queries, -1])?.f_transpose(0, 1)?)
}

impl Up {
    fn rank(&self) -> i64 {
        self.up.weight.size()[1]
    }

    /// `[batch, pos, rank]`, or `[batch, pos, head, rank]` where heads read different streams, to `[batch, pos, head, width]`.
    fn forward(&self, latent: &Tensor, n_heads: i64) -> Result<Tensor> {
        per_head(&self.norm.apply(latent)?, &self.up, n_heads)
    }
}

/// What each head reads: of `[batch, pos, in]`, or of its own `[batch, pos, head, in]`.
pub(crate) fn per_head(x: &Tensor, linear: &Linear, n_heads: i64) -> Result<Tensor> {
    if x.dim() == 3 {
        return heads(linear.forward(x)?, n_heads);
    }
    let weight = linear.weight.f_view([n_heads, -1, x.size()[3]])?; // [head, width, in]
    let y = Tensor::f_einsum("bphm,hem->bphe", &[x, &weight], None::<&[i64]>)?;
    match &linear.bias {
        Some(bias) => Ok(y.f_add(&bias.f_view([n_heads, -1])?)?),
        None => Ok(y),
    }
}

/// `[batch, pos, head · width]` to `[batch, pos, head, width]`.
fn heads(x: Tensor, n_heads: i64) -> Result<Tensor> {
    let size = x.size();
    Ok(x.f_reshape([size[0], size[1], n_heads, -1])?)
}
