//! Quantised weights: each method's stored tensors, and the numbers that they stand for.
//!
//! A weight is read row by row into fp32, as the method's reference computes it. Sizes are checked when a weight is opened,
//! before any memory is taken; the rows of a weight take no more than its file's length accounts for.

mod bitsandbytes;
pub(crate) mod ggml;
mod packed;
mod scaled;

use self::bitsandbytes::{FourBits, Int8};
use self::ggml::{Blocks, GgmlType};
use self::packed::{Awq, Gptq};
use self::scaled::{Fp8, Mxfp4};
use super::numbers::Numbers;
use super::{Dtype, FormatError};

/// How a weight is stored, with what its tensors do not say.
#[derive(Clone, Debug)]
pub(crate) enum Method {
    /// GGUF: `[data]`.
    Ggml { kind: GgmlType, columns: usize },
    /// `[qweight, qzeros, scales]`, and `g_idx` or the group's size. The first format counts zeros from one.
    Gptq { bits: usize, group_size: Option<usize>, zeros_from_one: bool },
    /// `[qweight, qzeros, scales]`.
    Awq,
    /// bitsandbytes' NF4 and FP4: `[weight, absmax, quant_map]`, and `nested_absmax, nested_quant_map`.
    FourBits(FourBitState),
    /// bitsandbytes' LLM.int8: `[weight, SCB]`.
    Int8,
    /// `[weight, weight_scale_inv]`, with the rows and columns that a scale is for; `None`: the scales' shape says.
    Fp8 { block: Option<[usize; 2]> },
    /// `[blocks, scales]`.
    Mxfp4,
}

/// What bitsandbytes writes as JSON beside a 4-bit weight.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct FourBitState {
    pub(crate) shape: Vec<i64>,
    pub(crate) blocksize: usize,
    /// What the weight was: `bfloat16`, `float16` or `float32`.
    pub(crate) dtype: String,
    pub(crate) nested_blocksize: Option<usize>,
    pub(crate) nested_offset: Option<f64>,
}

/// A weight that is read row by row.
pub(crate) trait Rows {
    /// How many rows there are, and the numbers in each; neither is zero.
    fn size(&self) -> [usize; 2];

    /// What the reference rounds the numbers to.
    fn rounded_to(&self) -> Dtype {
        Dtype::F32
    }

    /// Reads a row into `out`, which has a place for each of its numbers.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfBounds`] for an index in the file that leads nowhere.
    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError>;
}

impl Method {
    /// Opens a weight that is stored in these tensors.
    ///
    /// # Errors
    ///
    /// [`FormatError::Corrupt`] and [`FormatError::Unsupported`] for tensors whose shapes or dtypes do not go together.
    pub(crate) fn open<'a>(&self, parts: &[Numbers<'a>]) -> Result<Box<dyn Rows + 'a>, FormatError> {
        Ok(match (self, parts) {
            (Method::Ggml { kind, columns }, [data]) => Box::new(Blocks::new(*kind, *columns, data.bytes)?),
            (Method::Gptq { bits, group_size, zeros_from_one }, [weight, zeros, scales, groups @ ..]) => {
                let groups = groups.first().copied();
                Box::new(Gptq::new([*weight, *zeros, *scales], groups, *bits, *group_size, *zeros_from_one)?)
            }
            (Method::Awq, [weight, zeros, scales]) => Box::new(Awq::new(*weight, *zeros, *scales)?),
            (Method::FourBits(state), [weight, absmax, codes, nested @ ..]) => {
                Box::new(FourBits::new(state, [*weight, *absmax, *codes], nested)?)
            }
            (Method::Int8, [weight, scales]) => Box::new(Int8::new(*weight, *scales)?),
            (Method::Fp8 { block }, [weight, scales]) => Box::new(Fp8::new(*weight, *scales, *block)?),
            (Method::Mxfp4, [blocks, scales]) => Box::new(Mxfp4::new(*blocks, *scales)?),
            _ => return Err(FormatError::corrupt("a quantised weight", "lacks one of its tensors")),
        })
    }
}

/// Tensors of a quantised weight whose shapes or dtypes do not go together.
fn mismatch(part: &'static str) -> FormatError {
    FormatError::corrupt(part, "has not the shape and dtype that its other tensors imply")
}
