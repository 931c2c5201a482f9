//! [`EncoderOutput`]: what the cross-attention of a decoder reads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::linear::Linear;
use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

/// The output of an encoder: what the cross-attention of a decoder reads.
///
/// Made by [`HookedEncoderDecoder::encode`](crate::HookedEncoderDecoder::encode), or from tensors. A clone is a handle on the same
/// tensors. A generation keeps the keys and values that a decoder makes of it with it.
#[derive(Clone, Debug)]
pub struct EncoderOutput {
    /// `[batch, encoder_pos, d_encoder]`
    stream: SharedTensor,
    /// Which positions are no padding: `[batch, encoder_pos]`, bool; absent where none is.
    mask: Option<SharedTensor>,
    products: Arc<Mutex<Products>>,
}

/// The products with the weights of keys and values, by layer, each with its weights.
type Products = HashMap<usize, (SharedTensor, SharedTensor)>;

impl EncoderOutput {
    /// An encoder's output, `[batch, pos, d_encoder]`, and which of its positions are real, `[batch, pos]` of booleans or of ones and
    /// zeros.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for tensors of other shapes; [`Error::WrongInput`] for a row of which no position is real.
    pub fn new(stream: Tensor, mask: Option<Tensor>) -> Result<Self> {
        if stream.dim() != 3 || stream.numel() == 0 {
            let expected = "[batch, pos, d_encoder]".into();
            return Err(Error::Shape { what: "the encoder's output".into(), found: stream.size(), expected });
        }
        let mask = match mask {
            None => None,
            Some(mask) if mask.size() == stream.size()[..2] => {
                let mask = mask.f_to_device(stream.device())?.f_to_kind(Kind::Bool)?;
                let some = mask.f_any_dim(1, false)?;
                if some.f_all()?.f_int64_value(&[])? == 0 {
                    return Err(Error::wrong_input("a row of the encoder's input has no token that is not padding"));
                }
                let whole = mask.f_all()?.f_int64_value(&[])? != 0;
                (!whole).then(|| mask.into())
            }
            Some(mask) => {
                let expected = format!("{:?}, as the encoder's output", &stream.size()[..2]);
                return Err(Error::Shape { what: "the encoder's mask".into(), found: mask.size(), expected });
            }
        };
        Ok(EncoderOutput { stream: stream.into(), mask, products: Arc::default() })
    }

    /// The output: `[batch, pos, d_encoder]`.
    pub fn stream(&self) -> &Tensor {
        &self.stream
    }

    /// Which positions are no padding, `[batch, pos]`, bool; `None` where none is.
    pub fn mask(&self) -> Option<&Tensor> {
        self.mask.as_deref()
    }

    /// The output on another device.
    pub(crate) fn to(&self, device: Device) -> Result<Self> {
        if self.stream.device() == device {
            return Ok(self.clone());
        }
        let moved = |x: &SharedTensor| -> Result<SharedTensor> { Ok(x.f_to_device(device)?.into()) };
        let mask = self.mask.as_ref().map(moved).transpose()?;
        Ok(EncoderOutput { stream: moved(&self.stream)?, mask, products: Arc::default() })
    }

    /// The output in another kind.
    pub(crate) fn to_kind(&self, kind: Kind) -> Result<Self> {
        let stream = self.stream.f_to_kind(kind)?.into();
        Ok(EncoderOutput { stream, mask: self.mask.clone(), products: Arc::default() })
    }

    /// How many positions it has.
    pub(crate) fn positions(&self) -> i64 {
        self.stream.size().get(1).copied().unwrap_or(0)
    }

    /// Some of its rows, in this order; a row may come several times.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`] for a row that it does not have.
    pub fn rows(&self, rows: &[usize]) -> Result<Self> {
        let len = self.stream.size()[0];
        let index: Vec<i64> = rows.iter().map(|row| i64::try_from(*row).unwrap_or(i64::MAX)).collect();
        if let Some(row) = index.iter().find(|row| **row >= len) {
            return Err(Error::SliceOutOfRange { slice: row.to_string(), axis: "batch", len });
        }
        let index = Tensor::f_from_slice(&index)?.f_to_device(self.stream.device())?;
        let chosen = |x: &SharedTensor| -> Result<SharedTensor> { Ok(x.f_index_select(0, &index)?.into()) };
        let mask = self.mask.as_ref().map(chosen).transpose()?;
        Ok(EncoderOutput { stream: chosen(&self.stream)?, mask, products: Arc::default() })
    }

    /// The output for a run of so many rows. One row is for all of them.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another number of rows.
    pub(crate) fn for_batch(&self, batch: usize) -> Result<Self> {
        match self.stream.size().first() {
            Some(rows) if *rows == batch as i64 => Ok(self.clone()),
            Some(1) => self.rows(&vec![0; batch]),
            _ => Err(Error::Shape {
                what: "the encoder's output".into(),
                found: self.stream.size(),
                expected: format!("one row, or {batch}, as the decoder's input has"),
            }),
        }
    }

    /// The product with the weights of a layer's keys and values. If it is to be kept, it is computed once.
    pub(super) fn product(&self, layer: usize, kv: &Linear, keep: bool) -> Result<Tensor> {
        let records = self.stream.requires_grad() || kv.weight.requires_grad();
        if !keep || records {
            return kv.forward(&self.stream);
        }
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((weight, product)) = products.get(&layer)
            && weight.data_ptr() == kv.weight.data_ptr()
        {
            return Ok(product.shallow_clone());
        }
        let product = kv.forward(&self.stream)?;
        products.insert(layer, (kv.weight.clone(), product.shallow_clone().into()));
        Ok(product)
    }
}
