//! bitsandbytes' NF4 and FP4 (Dettmers et al. 2023) and its int8 (LLM.int8, Dettmers et al. 2022).

use super::super::numbers::Numbers;
use super::super::{Dtype, FormatError};
use super::{mismatch, FourBitState, Rows};

/// A weight of four bits a number: a table of 16 values, times the largest size of the number's block.
pub(super) struct FourBits<'a> {
    bytes: &'a [u8],
    size: [usize; 2],
    block: usize,
    values: [f32; 16],
    scales: Scales<'a>,
    dtype: Dtype,
}

/// The largest size of each block.
enum Scales<'a> {
    Plain(Numbers<'a>),
    /// Of eight bits, for each block of them a scale and a common offset.
    Nested {
        codes: &'a [u8],
        values: Box<[f32; 256]>,
        scales: Numbers<'a>,
        block: usize,
        offset: f32,
    },
}

impl<'a> FourBits<'a> {
    pub(super) fn new(
        state: &FourBitState,
        [weight, absmax, values]: [Numbers<'a>; 3],
        nested: &[Numbers<'a>],
    ) -> Result<Self, FormatError> {
        const STATE: &str = "`quant_state`";
        let size = |n: &i64| usize::try_from(*n).ok().filter(|n| *n > 0);
        let size = match state.shape.as_slice() {
            [rows, columns] => size(rows).zip(size(columns)),
            _ => None,
        };
        let (rows, columns) = size.ok_or_else(|| mismatch(STATE))?;
        let numbers = rows.checked_mul(columns).filter(|numbers| numbers.div_ceil(2) == weight.bytes.len());
        let numbers = numbers.ok_or_else(|| mismatch(STATE))?;
        if state.blocksize == 0 || values.dtype != Dtype::F32 || values.sizes() != Some([16]) {
            return Err(mismatch("`quant_map`"));
        }
        let blocks = numbers.div_ceil(state.blocksize);
        if absmax.sizes() != Some([blocks]) {
            return Err(mismatch("`absmax`"));
        }
        let scales = match nested {
            [] if absmax.dtype == Dtype::F32 => Scales::Plain(absmax),
            [scales, table] if absmax.dtype == Dtype::U8 && scales.dtype == Dtype::F32 => {
                let block = state.nested_blocksize.filter(|block| *block > 0).ok_or_else(|| mismatch(STATE))?;
                if scales.sizes() != Some([blocks.div_ceil(block)]) {
                    return Err(mismatch("`nested_absmax`"));
                }
                if table.dtype != Dtype::F32 || table.sizes() != Some([256]) {
                    return Err(mismatch("`nested_quant_map`"));
                }
                let values = Box::new(std::array::from_fn(|i| table.get(i)));
                let offset = state.nested_offset.ok_or_else(|| mismatch(STATE))? as f32;
                Scales::Nested { codes: absmax.bytes, values, scales: *scales, block, offset }
            }
            _ => return Err(mismatch("`absmax`")),
        };
        let dtype = match state.dtype.as_str() {
            "float32" => Dtype::F32,
            "float16" => Dtype::F16,
            "bfloat16" => Dtype::BF16,
            _ => return Err(mismatch(STATE)),
        };
        let values = std::array::from_fn(|i| values.get(i));
        Ok(FourBits { bytes: weight.bytes, size: [rows, columns], block: state.blocksize, values, scales, dtype })
    }
}

impl Scales<'_> {
    fn get(&self, index: usize) -> f32 {
        match self {
            Scales::Plain(numbers) => numbers.get(index),
            Scales::Nested { codes, values, scales, block, offset } => {
                let code = codes.get(index).copied().unwrap_or(0);
                values[usize::from(code)] * scales.get(index / block) + offset
            }
        }
    }
}

impl Rows for FourBits<'_> {
    fn size(&self) -> [usize; 2] {
        self.size
    }

    fn rounded_to(&self) -> Dtype {
        self.dtype
    }

    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let first = row * self.size[1];
        let mut scale = self.scales.get(first / self.block);
        for (column, out) in out.iter_mut().enumerate() {
            let index = first + column;
            if index.is_multiple_of(self.block) {
                scale = self.scales.get(index / self.block);
            }
            let byte = self.bytes.get(index / 2).copied().unwrap_or(0);
            let code = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            *out = self.values[usize::from(code)] * scale;
        }
        Ok(())
    }
}

/// A weight of eight bits a number, and for each row the largest size.
pub(super) struct Int8<'a> {
    weight: Numbers<'a>,
    scales: Numbers<'a>,
    size: [usize; 2],
}

impl<'a> Int8<'a> {
    pub(super) fn new(weight: Numbers<'a>, scales: Numbers<'a>) -> Result<Self, FormatError> {
        let size: [usize; 2] =
            weight.sizes().filter(|_| weight.dtype == Dtype::I8).ok_or_else(|| mismatch("an int8 weight"))?;
        if scales.dtype != Dtype::F32 || scales.sizes() != Some([size[0]]) {
            return Err(mismatch("`SCB`"));
        }
        Ok(Int8 { weight, scales, size })
    }
}

impl Rows for Int8<'_> {
    fn size(&self) -> [usize; 2] {
        self.size
    }

    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        /// bitsandbytes' 1 / 127.
        const INVERSE: f32 = 7.874_016e-3;
        let scale = self.scales.get(row);
        for (column, out) in out.iter_mut().enumerate() {
            *out = self.weight.get(row * self.size[1] + column) * scale * INVERSE;
        }
        Ok(())
    }
}
