//! [`Temporary`]: a tensor of the forward pass, and whether it may be overwritten.

use std::ops::Deref;

use tch::Tensor;

use crate::hook::HookPoint;
use crate::run::{Flow, Tap};
use crate::Result;

/// What an operation returned, and whether the next operation may write into its memory.
///
/// It may where nothing else holds the tensor: no hook, no cache, no record of a gradient. This is decided here and nowhere else.
pub(crate) struct Temporary {
    tensor: Tensor,
    reusable: bool,
}

impl Temporary {
    /// The new tensor that an operation returned.
    pub(crate) fn new(tensor: Tensor) -> Self {
        let reusable = !tensor.requires_grad();
        Temporary { tensor, reusable }
    }

    /// A tensor that something else holds as well.
    pub(crate) fn shared(tensor: Tensor) -> Self {
        Temporary { tensor, reusable: false }
    }

    /// Passes it through a hook point. What a hook or the cache has seen is theirs as well.
    pub(crate) fn at(self, point: HookPoint, tap: &mut Tap) -> Flow<Self> {
        match tap.live(point) {
            true => Ok(Temporary::shared(tap.at(point, self.tensor)?)),
            false => Ok(self),
        }
    }

    /// The sum with a tensor of the same shape, or one that is broadcast to it.
    pub(crate) fn add(mut self, other: &Tensor) -> Result<Self> {
        match self.reusable {
            true => Ok(Temporary::new(self.tensor.f_add_(other)?)),
            false => Ok(Temporary::new(other.f_add(&self.tensor)?)),
        }
    }

    /// The tensor, and whether it may be overwritten.
    pub(crate) fn into_parts(self) -> (Tensor, bool) {
        (self.tensor, self.reusable)
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

impl Deref for Temporary {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Whether adding to it changes what a second handle on its tensor shows.
    fn overwrites(temporary: Temporary) -> bool {
        let handle = temporary.shallow_clone();
        let before = handle.detach().copy();
        let sum = temporary.add(&Tensor::ones([3], CPU)).unwrap();
        assert_eq!(sum.detach(), &before + 1.0);
        handle.detach() != before
    }

    #[test]
    fn only_what_nothing_else_holds_is_overwritten() {
        assert!(overwrites(Temporary::new(Tensor::randn([3], CPU))));
        assert!(!overwrites(Temporary::shared(Tensor::randn([3], CPU))));
        // What records a gradient is held by the record.
        let leaf = Tensor::randn([3], CPU).set_requires_grad(true);
        assert!(!overwrites(Temporary::new(&leaf * 2.0)));
    }

    #[test]
    fn a_sum_that_records_a_gradient_is_not_overwritten_either() {
        let leaf = Tensor::randn([3], CPU).set_requires_grad(true);
        let sum = Temporary::new(Tensor::randn([3], CPU)).add(&leaf).unwrap();
        assert!(!overwrites(sum));
    }
}
