//! A number that differs between weights.

use std::sync::PoisonError;

use tch::{Kind, Tensor};

use super::Transformer;
use crate::tensor::split_mix::mix;
use crate::{Error, Result};

/// Entries at a time.
const CHUNK: usize = 1 << 16;
/// The golden ratio in 64 bits: multiples of it are spread evenly.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Transformer {
    /// A number that differs between weights, in 16 hexadecimal digits: of the name, the shape and every bit of each parameter. The order in
    /// which a matrix lies in memory, the device and the machine do not count. It tells models apart; it is no cryptographic hash.
    ///
    /// It is computed when it is first asked for, with one pass over the weights, and then remembered until a weight is changed in place.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, LoadOptions};
    /// let (processed, raw) = (HookedTransformer::toy()?, LoadOptions::new().no_processing().toy()?);
    /// assert_eq!(processed.weights_hash()?, HookedTransformer::toy()?.weights_hash()?);
    /// assert_ne!(processed.weights_hash()?, raw.weights_hash()?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoWeights`]; [`Error::Torch`] if memory runs out.
    pub fn weights_hash(&self) -> Result<String> {
        let mut versions = 0;
        for (_, tensor) in self.weights()?.tensors() {
            versions += tensor.f_internal_version()?;
        }
        let mut known = self.weights_hash.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, hash)) = &*known
            && *of == versions
        {
            return Ok(format!("{hash:016x}"));
        }
        let hash = self.compute_hash()?;
        *known = Some((versions, hash));
        Ok(format!("{hash:016x}"))
    }

    fn compute_hash(&self) -> Result<u64> {
        let mut factors = Vec::new();
        factors.try_reserve_exact(CHUNK).map_err(|_| Error::OutOfMemory { bytes: 8 * CHUNK as u64 })?;
        factors.extend((1..=CHUNK as u64).map(|place| (mixed(place) | 1) as i64));
        let factors = Tensor::f_from_slice(&factors)?.f_to_device(self.device())?;
        let mut hash = 0;
        for (address, tensor) in self.weights()?.tensors() {
            let name = address.to_string();
            let sizes = tensor.size().into_iter().map(|n| n as u64);
            hash = name.bytes().map(u64::from).chain(sizes).fold(hash, |hash, n| mixed(hash ^ n.wrapping_add(SPREAD)));
            hash = tch::no_grad(|| bits_of(tensor, &factors, hash))?;
        }
        Ok(hash)
    }
}

/// A hash with all bits of a tensor: of each chunk, the sum of its entries' bits, each times the factor of its place.
fn bits_of(tensor: &Tensor, factors: &Tensor, mut hash: u64) -> Result<u64> {
    let bits = match tensor.f_kind()?.elt_size_in_bytes() {
        8 => Kind::Int64,
        4 => Kind::Int,
        2 => Kind::Int16,
        _ => Kind::Int8,
    };
    let flat = tensor.f_contiguous()?.f_view(-1)?.f_view_dtype(bits)?;
    let numel = flat.numel();
    for start in (0..numel).step_by(CHUNK) {
        let len = CHUNK.min(numel - start) as i64;
        let part = flat.f_narrow(0, start as i64, len)?.f_to_kind(Kind::Int64)?;
        let sum = part.f_mul(&factors.f_narrow(0, 0, len)?)?.f_sum(Kind::Int64)?;
        hash = mixed(hash ^ sum.f_int64_value(&[])? as u64);
    }
    Ok(hash)
}

/// A number each bit of which depends on all of another one's.
fn mixed(n: u64) -> u64 {
    mix(n.wrapping_add(SPREAD))
}
