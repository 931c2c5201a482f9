//! GPTQ (Frantar et al. 2022) and AWQ (Lin et al. 2023): integers of a few bits, several to a 32-bit word, and for each group of
//! inputs and each output a scale and a zero. A number is `(q - zero) * scale`, rounded to the scales' dtype.

use super::super::numbers::Numbers;
use super::super::{Dtype, FormatError};
use super::{mismatch, Rows};

/// The inputs' groups, and what they need: scales and zeros, `[group, output]`.
struct Groups<'a> {
    scales: Numbers<'a>,
    count: usize,
    outputs: usize,
}

impl<'a> Groups<'a> {
    fn new(scales: Numbers<'a>) -> Result<Self, FormatError> {
        let floats = matches!(scales.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
        let [count, outputs] = scales.sizes().filter(|_| floats).ok_or_else(|| mismatch("`scales`"))?;
        Ok(Groups { scales, count, outputs })
    }
}

/// A weight of GPTQ: rows are inputs, columns outputs.
pub(super) struct Gptq<'a> {
    bits: usize,
    weight: Numbers<'a>,
    zeros: Numbers<'a>,
    groups: Groups<'a>,
    inputs: usize,
    group: GroupOf<'a>,
    /// What a word of zeros lacks.
    add: u32,
}

/// Which group an input belongs to.
enum GroupOf<'a> {
    Listed(Numbers<'a>),
    Consecutive(usize),
}

impl<'a> Gptq<'a> {
    /// `qweight` `[inputs * bits / 32, outputs]`, `qzeros` `[groups, outputs * bits / 32]`, `scales` `[groups, outputs]`.
    pub(super) fn new(
        [weight, zeros, scales]: [Numbers<'a>; 3],
        listed: Option<Numbers<'a>>,
        bits: usize,
        group_size: Option<usize>,
        zeros_from_one: bool,
    ) -> Result<Self, FormatError> {
        if !matches!(bits, 2 | 4 | 8) {
            return Err(FormatError::unsupported("a weight of GPTQ", format!("has {bits} bits")));
        }
        let groups = Groups::new(scales)?;
        let a_word = 32 / bits;
        let words = weight.sizes().filter(|_| weight.dtype == Dtype::I32);
        let words = words.filter(|[_, outputs]| *outputs == groups.outputs).map(|[words, _]| words);
        let inputs = words.and_then(|words| words.checked_mul(a_word)).ok_or_else(|| mismatch("`qweight`"))?;
        let zeros_fit = zeros.dtype == Dtype::I32 && zeros.sizes() == Some([groups.count, groups.outputs / a_word]);
        if !zeros_fit || groups.outputs % a_word != 0 {
            return Err(mismatch("`qzeros`"));
        }
        let group = match listed {
            Some(listed) if listed.dtype == Dtype::I32 && listed.sizes() == Some([inputs]) => GroupOf::Listed(listed),
            Some(_) => return Err(mismatch("`g_idx`")),
            None => {
                let size = group_size.unwrap_or(inputs);
                if size == 0 || inputs.div_ceil(size) != groups.count {
                    return Err(mismatch("`scales`"));
                }
                GroupOf::Consecutive(size)
            }
        };
        let ones = [0x5555_5555, 0x1111_1111, 0x0101_0101][bits / 4]; // of 2, 4 and 8 bits
        Ok(Gptq { bits, weight, zeros, groups, inputs, group, add: if zeros_from_one { ones } else { 0 } })
    }
}

impl Rows for Gptq<'_> {
    fn size(&self) -> [usize; 2] {
        [self.inputs, self.groups.outputs]
    }

    fn rounded_to(&self) -> Dtype {
        self.groups.scales.dtype
    }

    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let (a_word, outputs) = (32 / self.bits, self.groups.outputs);
        let mask = (1u32 << self.bits) - 1;
        let group = match &self.group {
            GroupOf::Listed(listed) => listed.bits(row) as usize,
            GroupOf::Consecutive(size) => row / size,
        };
        if group >= self.groups.count {
            return Err(FormatError::out_of_bounds(format!("group {group} of `g_idx`"), "`scales`"));
        }
        for (column, out) in out.iter_mut().enumerate() {
            let q = self.weight.bits(row / a_word * outputs + column) >> (row % a_word * self.bits) & mask;
            let zero = self.zeros.bits((group * outputs + column) / a_word).wrapping_add(self.add);
            let zero = zero >> (column % a_word * self.bits) & mask;
            *out = (q as f32 - zero as f32) * self.groups.scales.get(group * outputs + column);
        }
        Ok(())
    }
}

/// A weight of AWQ: rows are inputs, columns outputs, eight of them to a word.
pub(super) struct Awq<'a> {
    weight: Numbers<'a>,
    zeros: Numbers<'a>,
    groups: Groups<'a>,
    inputs: usize,
}

/// Which of a word's eight numbers of four bits a column is.
const ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl<'a> Awq<'a> {
    /// `qweight` `[inputs, outputs / 8]`, `qzeros` `[groups, outputs / 8]`, `scales` `[groups, outputs]`.
    pub(super) fn new(weight: Numbers<'a>, zeros: Numbers<'a>, scales: Numbers<'a>) -> Result<Self, FormatError> {
        let groups = Groups::new(scales)?;
        let words = groups.outputs / 8;
        let [inputs, _] = weight
            .sizes()
            .filter(|[_, found]| weight.dtype == Dtype::I32 && *found == words && groups.outputs % 8 == 0)
            .ok_or_else(|| mismatch("`qweight`"))?;
        if zeros.dtype != Dtype::I32 || zeros.sizes() != Some([groups.count, words]) {
            return Err(mismatch("`qzeros`"));
        }
        if inputs % groups.count != 0 {
            return Err(mismatch("`scales`"));
        }
        Ok(Awq { weight, zeros, groups, inputs })
    }
}

impl Rows for Awq<'_> {
    fn size(&self) -> [usize; 2] {
        [self.inputs, self.groups.outputs]
    }

    fn rounded_to(&self) -> Dtype {
        self.groups.scales.dtype
    }

    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let outputs = self.groups.outputs;
        let group = row / (self.inputs / self.groups.count);
        for (column, out) in out.iter_mut().enumerate() {
            let four =
                |words: &Numbers, row: usize| words.bits((row * outputs + column) / 8) >> (ORDER[column % 8] * 4) & 15;
            let (q, zero) = (four(&self.weight, row), four(&self.zeros, group));
            *out = (q as f32 - zero as f32) * self.groups.scales.get(group * outputs + column);
        }
        Ok(())
    }
}
