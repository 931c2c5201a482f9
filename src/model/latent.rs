//! [`Latent`]: queries, keys and values from latents of a few dimensions.

use tch::Tensor;

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
    pub(crate) fn project(&self, reader: &Linear, input: AttentionInput) -> Result<(Tensor, Tensor, Tensor)> {
        let rows = reader.weight.size()[0];
        let q_rows = self.q.as_ref().map_or(self.n_heads * self.d_head, Up::rank);
        let (of_q, of_kv) = (reader.narrow(0, q_rows)?, reader.narrow(q_rows, rows - q_rows)?);
        Ok(match input {
            AttentionInput::Shared(x) => {
                let down = reader.forward(&x)?; // [batch, pos, q_rows + key_value_rank + rotated]
                let kv = down.f_narrow(-1, q_rows, rows - q_rows)?;
                let expanded = self.expand(&kv)?;
                let q = down.f_narrow(-1, 0, q_rows)?;
                let q = match &self.q {
                    Some(up) => up.forward(&q, self.n_heads)?,
                    None => heads(q, self.n_heads)?,
                };
                (q, self.keys(&expanded, &kv)?, self.values(&expanded)?)
            }
            AttentionInput::Split { q, k, v } => {
                let q = match &self.q {
                    Some(up) => up.forward(&of_q.forward(&q)?, self.n_heads)?,
                    None => per_head(&q, &of_q, self.n_heads)?,
                };
                let (k, v) = (of_kv.forward(&k)?, of_kv.forward(&v)?);
                (q, self.keys(&self.expand(&k)?, &k)?, self.values(&self.expand(&v)?)?)
            }
        })
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

    /// The unrotated part of each head's keys and its values: `[batch, pos, head, unrotated + d_value]`.
    fn expand(&self, kv: &Tensor) -> Result<Tensor> {
        self.kv.forward(&kv.f_narrow(-1, 0, self.kv.rank())?, self.n_heads)
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
