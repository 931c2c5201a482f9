//! Fresh weights: random directions from a seed, whatever libtorch's generator is at.

use tch::{Device, Kind, Tensor};

use crate::tensor::scalar::Scalar;
use crate::tensor::split_mix::SplitMix64;
use crate::Result;

/// Directions at random, each of norm 1: `[row, width]`.
pub(super) fn directions(rows: usize, width: usize, seed: u64, device: Device) -> Result<Tensor> {
    let mut bits = SplitMix64::new([seed, rows as u64, width as u64]);
    let mut unit = || ((bits.next_bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let mut numbers = Vec::with_capacity(rows * width);
    for _ in 0..rows * width {
        // Box and Muller's transform of two uniform numbers.
        let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
        numbers.push((radius * angle.cos()) as f32);
    }
    let drawn = Tensor::f_from_slice(&numbers)?.f_reshape([rows as i64, width as i64])?.f_to_device(device)?;
    normed(&drawn.f_to_kind(Kind::Float)?)
}

/// The rows at norm 1.
pub(super) fn normed(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.f_div(&rows.norm_over(&[-1], true)?.at_least(1e-12)?)?)
}
