//! [`Linear`]: a matrix product and what is added to it.

use tch::Tensor;

use super::parameters::module;
use super::part::Part;

use crate::unchecked::few_rows;
use crate::unchecked::onednn::{self, Epilogue};
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// `x @ w + b`.
///
/// `weight` has libtorch's orientation, `[out, in]`; in memory it may lie either way round, as the
/// matrix product takes both without a copy.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: SharedTensor,       // [out, in]
    pub(crate) bias: Option<SharedTensor>, // [out]
}

module!(Linear, (w, b) => (Part, Part), { weight: w, bias: b } plain {});

impl Linear {
    /// `[…, in]` to `[…, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.product(x, Epilogue::Identity) {
            Some(product) => Ok(product),
            None => Ok(x.f_linear(&self.weight, self.bias.as_deref())?),
        }
    }

    /// The product with an elementwise function of it in one go, where the machine has that.
    pub(crate) fn product(&self, x: &Tensor, epilogue: Epilogue) -> Option<Tensor> {
        let (weight, bias) = (&self.weight, self.bias.as_deref());
        match epilogue {
            Epilogue::Identity => {
                few_rows::linear(x, weight, bias).or_else(|| onednn::linear(x, weight, bias, epilogue))
            }
            // The function by itself costs less than a slower product.
            _ if few_rows::takes(x, weight, bias) => None,
            _ => onednn::linear(x, weight, bias, epilogue),
        }
    }

    /// The columns `start..start + len` alone.
    pub(crate) fn narrow(&self, start: i64, len: i64) -> Result<Linear> {
        let bias = self.bias.as_ref().map(|b| b.f_narrow(0, start, len)).transpose()?.map(SharedTensor::from);
        Ok(Linear { weight: self.weight.f_narrow(0, start, len)?.into(), bias })
    }

    /// The weight as `[in, out]`, a view.
    pub(crate) fn w(&self) -> Result<Tensor> {
        Ok(self.weight.f_tr()?)
    }
}
