//! Small floating-point numbers with a scale for each block: FP8 as in DeepSeek 3 (DeepSeek-AI 2024), and MXFP4 of the Open Compute
//! Project as in gpt-oss.

use super::super::numbers::{power_of_two, Numbers};
use super::super::{Dtype, FormatError};
use super::{mismatch, Rows};

/// A weight of FP8, with a scale for each block of rows and columns.
pub(super) struct Fp8<'a> {
    weight: Numbers<'a>,
    scales: Numbers<'a>,
    size: [usize; 2],
    block: [usize; 2],
    /// The scales of a row.
    across: usize,
}

impl<'a> Fp8<'a> {
    pub(super) fn new(
        weight: Numbers<'a>,
        scales: Numbers<'a>,
        block: Option<[usize; 2]>,
    ) -> Result<Self, FormatError> {
        const SCALES: &str = "`weight_scale_inv`";
        let size: [usize; 2] =
            weight.sizes().filter(|_| weight.dtype == Dtype::F8E4M3).ok_or_else(|| mismatch("an FP8 weight"))?;
        if !matches!(scales.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F8E8M0) {
            return Err(mismatch(SCALES));
        }
        let grid: [usize; 2] =
            if scales.len() == 1 { [1, 1] } else { scales.sizes().ok_or_else(|| mismatch(SCALES))? };
        let block = match block {
            Some(block) => block,
            None if size[0].is_multiple_of(grid[0]) && size[1].is_multiple_of(grid[1]) => {
                [size[0] / grid[0], size[1] / grid[1]]
            }
            None => return Err(mismatch(SCALES)),
        };
        let whole = |i: usize| block[i] > 0 && size[i].div_ceil(block[i]) == grid[i];
        if !whole(0) || !whole(1) {
            return Err(mismatch(SCALES));
        }
        Ok(Fp8 { weight, scales, size, block, across: grid[1] })
    }
}

impl Rows for Fp8<'_> {
    fn size(&self) -> [usize; 2] {
        self.size
    }

    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let first = row / self.block[0] * self.across;
        for (block, out) in out.chunks_mut(self.block[1]).enumerate() {
            let scale = self.scales.get(first + block);
            let start = row * self.size[1] + block * self.block[1];
            for (column, out) in out.iter_mut().enumerate() {
                *out = self.weight.get(start + column) * scale;
            }
        }
        Ok(())
    }
}

/// A weight of MXFP4: blocks of 32 numbers of four bits, each block with a power of two. `[.., blocks, 16]` bytes, the low half of a
/// byte before the high one.
pub(super) struct Mxfp4<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
    size: [usize; 2],
}

const VALUES: [f32; 16] = [0., 0.5, 1., 1.5, 2., 3., 4., 6., -0., -0.5, -1., -1.5, -2., -3., -4., -6.];

impl<'a> Mxfp4<'a> {
    pub(super) fn new(blocks: Numbers<'a>, scales: Numbers<'a>) -> Result<Self, FormatError> {
        let bytes = blocks.dtype == Dtype::U8 && scales.dtype == Dtype::U8;
        let [experts, rows, across, width]: [usize; 4] =
            blocks.sizes().filter(|_| bytes).ok_or_else(|| mismatch("`blocks`"))?;
        if width != 16 || scales.sizes() != Some([experts, rows, across]) {
            return Err(mismatch("`scales`"));
        }
        Ok(Mxfp4 { blocks: blocks.bytes, scales: scales.bytes, size: [experts * rows, across * 32] })
    }
}

impl Rows for Mxfp4<'_> {
    fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Every number has its place in bf16, which the reference rounds to.
    fn rounded_to(&self) -> Dtype {
        Dtype::BF16
    }

    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let first = row * self.size[1] / 32;
        let outside = || FormatError::out_of_bounds(format!("row {row}"), "its tensor");
        for (block, out) in out.chunks_exact_mut(32).enumerate() {
            let index = first + block;
            let bytes = self.blocks.get(index * 16..index * 16 + 16).ok_or_else(outside)?;
            let scale = power_of_two(*self.scales.get(index).ok_or_else(outside)?);
            for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
                pair[0] = VALUES[usize::from(byte & 15)] * scale;
                pair[1] = VALUES[usize::from(byte >> 4)] * scale;
            }
        }
        Ok(())
    }
}
