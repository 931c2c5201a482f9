//! Rotary position embedding: the tables, made once a length, and their use.

use tch::{Device, Kind, Tensor};

use crate::config::{RopeScaling, Rotary};
use crate::tensor::scalar::{arange, Scalar};
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// Cosines and sines for each position and pair.
#[derive(Debug)]
pub(crate) struct RotaryTable {
    cos: SharedTensor,     // [pos, 1, dim / 2], or [batch, pos, 1, dim / 2]
    sin: SharedTensor,     // as cos
    neg_sin: SharedTensor, // as cos
    dim: i64,
    adjacent_pairs: bool,
}

impl RotaryTable {
    /// The table for positions `0..len`.
    pub(crate) fn new(rotary: &Rotary, len: i64, kind: Kind, device: Device) -> Result<Self> {
        let (inverse, factor) = inverse_frequencies(rotary, len as usize);
        let inverse = Tensor::f_from_slice(&inverse)?; // [dim / 2], f64
        let positions = arange(0..len, Device::Cpu)?.f_to_kind(Kind::Double)?;
        let angles = positions.f_outer(&inverse)?.f_unsqueeze(1)?; // [pos, 1, dim / 2]
        let to = |t: Tensor| -> Result<Tensor> { Ok(t.mul_number(factor)?.f_to_kind(kind)?.f_to_device(device)?) };
        let (cos, sin) = (to(angles.f_cos()?)?, to(angles.f_sin()?)?);
        let neg_sin = sin.f_neg()?;
        Ok(RotaryTable {
            cos: cos.into(),
            sin: sin.into(),
            neg_sin: neg_sin.into(),
            dim: rotary.dim as i64,
            adjacent_pairs: rotary.adjacent_pairs,
        })
    }

    /// The rows of this table for the position of each token.
    pub(crate) fn at(&self, positions: &Tensor) -> Result<Self> {
        let size = positions.size(); // [batch, pos]
        let flat = positions.f_reshape(-1)?;
        let rows = |table: &Tensor| -> Result<Tensor> {
            Ok(table.f_index_select(0, &flat)?.f_reshape([size[0], size[1], 1, self.dim / 2])?)
        };
        let (cos, sin, neg_sin) = (rows(&self.cos)?, rows(&self.sin)?, rows(&self.neg_sin)?);
        Ok(RotaryTable {
            cos: cos.into(),
            sin: sin.into(),
            neg_sin: neg_sin.into(),
            dim: self.dim,
            adjacent_pairs: self.adjacent_pairs,
        })
    }

    /// Rotates the first `dim` entries of each head: `[batch, pos, head, d_head]`.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let d_head = size[size.len() - 1];
        let turned = if self.dim == d_head { x.shallow_clone() } else { x.f_narrow(-1, 0, self.dim)? };
        let half = self.dim / 2;
        let (a, b) = if self.adjacent_pairs {
            (turned.f_slice(-1, 0, None, 2)?, turned.f_slice(-1, 1, None, 2)?)
        } else {
            (turned.f_narrow(-1, 0, half)?, turned.f_narrow(-1, half, half)?)
        }; // each [batch, pos, head, dim / 2]
        let first = a.f_mul(&self.cos)?.f_addcmul(&b, &self.neg_sin)?;
        let second = b.f_mul(&self.cos)?.f_addcmul(&a, &self.sin)?;
        let mut parts = if self.adjacent_pairs {
            let mut interleaved = size.clone();
            interleaved[size.len() - 1] = self.dim;
            vec![Tensor::f_stack(&[first, second], -1)?.f_reshape(interleaved)?]
        } else {
            vec![first, second]
        };
        if self.dim < d_head {
            parts.push(x.f_narrow(-1, self.dim, d_head - self.dim)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::f_cat(&parts, -1)? })
    }
}

/// The angle that each pair turns from one position to the next, and what cosine and sine are multiplied by.
fn inverse_frequencies(rotary: &Rotary, len: usize) -> (Vec<f64>, f64) {
    let dim = rotary.dim as f64;
    let plain = |base: f64| -> Vec<f64> { (0..rotary.dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim)).collect() };
    match &rotary.scaling {
        RopeScaling::None => (plain(rotary.base), 1.0),
        RopeScaling::Linear { factor } => (plain(rotary.base).iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Dynamic { factor, original_max_position_embeddings: trained } => {
            // As transformers: the base grows with the length once it passes the trained one.
            let trained = *trained as f64;
            let length = (len as f64).max(trained);
            let grown = factor * length / trained - (factor - 1.0);
            (plain(rotary.base * grown.powf(dim / (dim - 2.0))), 1.0)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let trained = *original_max_position_embeddings as f64;
            let scaled = plain(rotary.base).into_iter().map(|f| {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                if wavelength < trained / high_freq_factor {
                    f
                } else if wavelength > trained / low_freq_factor {
                    f / factor
                } else {
                    let smooth = (trained / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            });
            (scaled.collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate,
            original_max_position_embeddings,
        } => {
            let trained = *original_max_position_embeddings as f64;
            // The pair that turns `turns` times within the trained context.
            let pair =
                |turns: f64| dim * (trained / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * rotary.base.ln());
            let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let low = low.max(0.0);
            let mut high = high.min(dim - 1.0);
            if low == high {
                high += 0.001;
            }
            let scaled = plain(rotary.base).into_iter().enumerate().map(|(i, f)| {
                let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * stretched + f * (1.0 - stretched)
            });
            (scaled.collect(), *attention_factor)
        }
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            attention_factor,
            original_max_position_embeddings: trained,
        } => {
            let divisors = if len > *trained { long_factor } else { short_factor };
            let scaled = plain(rotary.base).into_iter().zip(divisors).map(|(f, d)| f / d);
            (scaled.collect(), *attention_factor)
        }
    }
}
