//! Rotary position embedding (Su et al. 2021, "RoFormer"): the angles of each position, and their use.

use tch::{Device, Kind, Tensor};

use crate::config::{RopeScaling, Rotary};
use crate::tensor::scalar::{arange, Scalar};
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// Cosines and sines for each position and pair.
#[derive(Clone, Debug)]
pub(crate) struct RotaryTable {
    cos: SharedTensor,     // [pos, 1, dim / 2], or [batch, pos, 1, dim / 2]
    sin: SharedTensor,     // as cos
    neg_sin: SharedTensor, // as cos
    dim: i64,
    adjacent_pairs: bool,
}

impl RotaryTable {
    /// The angles at the positions `0..len` of sequences of this class.
    pub(crate) fn new(rotary: &Rotary, class: LengthClass, len: i64, kind: Kind, device: Device) -> Result<Self> {
        let (mut inverse, factor) = inverse_frequencies(rotary, class);
        if let Some(pairs) = rotary.pairs {
            inverse.iter_mut().skip(pairs).for_each(|angle| *angle = 0.0);
        }
        if rotary.reversed {
            inverse.iter_mut().for_each(|angle| *angle = -*angle);
        }
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

    /// How many positions the table has.
    pub(crate) fn len(&self) -> i64 {
        self.cos.size()[0]
    }

    /// The rows of these positions, as views.
    pub(crate) fn narrow(&self, start: i64, len: i64) -> Result<Self> {
        self.map(|table| Ok(table.f_narrow(0, start, len)?))
    }

    /// The row of each token's position: `positions` is `[batch, pos]`.
    pub(crate) fn gather(&self, positions: &Tensor) -> Result<Self> {
        let size = positions.size(); // [batch, pos]
        let flat = positions.f_reshape(-1)?;
        self.map(|table| Ok(table.f_index_select(0, &flat)?.f_view([size[0], size[1], 1, self.dim / 2])?))
    }

    /// The rows of several tables of `[batch, pos, 1, dim / 2]`, one batch after the other.
    pub(crate) fn stack(tables: &[RotaryTable]) -> Result<Self> {
        let Some(first) = tables.first() else { return Err(crate::Error::Internal("a batch has no rows")) };
        let join = |part: fn(&RotaryTable) -> &SharedTensor| -> Result<SharedTensor> {
            let parts: Vec<&Tensor> = tables.iter().map(|table| &**part(table)).collect();
            Ok(Tensor::f_cat(&parts, 0)?.into())
        };
        let (cos, sin, neg_sin) = (join(|t| &t.cos)?, join(|t| &t.sin)?, join(|t| &t.neg_sin)?);
        Ok(RotaryTable { cos, sin, neg_sin, ..first.clone() })
    }

    /// The same angles for pairs of neighbours, or for pairs of one from each half.
    pub(crate) fn in_pairs(&self, adjacent: bool) -> Self {
        RotaryTable { adjacent_pairs: adjacent, ..self.clone() }
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let (cos, sin, neg_sin) = (f(&self.cos)?.into(), f(&self.sin)?.into(), f(&self.neg_sin)?.into());
        Ok(RotaryTable { cos, sin, neg_sin, dim: self.dim, adjacent_pairs: self.adjacent_pairs })
    }

    /// Rotates `dim` entries of each head from `start` on: `[batch, pos, head, d_head]`.
    pub(crate) fn rotate(&self, x: &Tensor, start: i64) -> Result<Tensor> {
        let size = x.size();
        let d_head = size[size.len() - 1];
        let rotated = if self.dim == d_head { x.shallow_clone() } else { x.f_narrow(-1, start, self.dim)? };
        let half = self.dim / 2;
        let (a, b) = if self.adjacent_pairs {
            (rotated.f_slice(-1, 0, None, 2)?, rotated.f_slice(-1, 1, None, 2)?)
        } else {
            (rotated.f_narrow(-1, 0, half)?, rotated.f_narrow(-1, half, half)?)
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
        if start > 0 {
            parts.insert(0, x.f_narrow(-1, 0, start)?);
        }
        let end = start + self.dim;
        if end < d_head {
            parts.push(x.f_narrow(-1, end, d_head - end)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::f_cat(&parts, -1)? })
    }
}

/// Which angles sequences of a length have. Most models have one class; some stretch their wavelengths past the trained context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LengthClass {
    /// Sequences within the trained context, and all sequences of models whose angles do not depend on the length.
    Trained,
    /// Sequences past the trained context, of any length (LongRoPE).
    Extended,
    /// Sequences of this length, past the trained context (dynamic scaling).
    Exactly(usize),
}

impl LengthClass {
    /// The class of sequences of `len` tokens.
    pub(crate) fn of(rotary: &Rotary, len: usize) -> Self {
        match &rotary.scaling {
            RopeScaling::Dynamic { original_max_position_embeddings: trained, .. } if len > *trained => {
                LengthClass::Exactly(len)
            }
            RopeScaling::LongRope { original_max_position_embeddings: trained, .. } if len > *trained => {
                LengthClass::Extended
            }
            _ => LengthClass::Trained,
        }
    }

    /// Whether the class of a sequence depends on its length.
    pub(crate) fn varies(rotary: &Rotary) -> bool {
        matches!(rotary.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. })
    }
}

/// The angle that each pair turns from one position to the next, and what cosine and sine are multiplied by.
fn inverse_frequencies(rotary: &Rotary, class: LengthClass) -> (Vec<f64>, f64) {
    let dim = rotary.dim as f64;
    let plain = |base: f64| -> Vec<f64> { (0..rotary.dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim)).collect() };
    match &rotary.scaling {
        RopeScaling::None => (plain(rotary.base), 1.0),
        RopeScaling::Linear { factor } => (plain(rotary.base).iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Dynamic { factor, original_max_position_embeddings: trained } => {
            // As transformers: the base grows with the length once it passes the trained one.
            let trained = *trained as f64;
            let length = if let LengthClass::Exactly(len) = class { len as f64 } else { trained };
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
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, .. } => {
            let divisors = if class == LengthClass::Trained { short_factor } else { long_factor };
            let scaled = plain(rotary.base).into_iter().zip(divisors).map(|(f, d)| f / d);
            (scaled.collect(), *attention_factor)
        }
    }
}
