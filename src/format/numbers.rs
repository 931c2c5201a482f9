//! [`Numbers`]: the entries of a contiguous tensor in a file, read one by one.

use super::Dtype;

/// A contiguous tensor: its shape and its bytes, little endian.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [i64],
    pub(crate) bytes: &'a [u8],
}

impl<'a> Numbers<'a> {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.dtype.width()
    }

    /// The sizes of a tensor of `N` dimensions; `None` for one of others, or without entries.
    pub(crate) fn sizes<const N: usize>(&self) -> Option<[usize; N]> {
        let shape = <[i64; N]>::try_from(self.shape).ok()?;
        let sizes = shape.map(|n| usize::try_from(n).unwrap_or(0));
        let count = sizes.iter().try_fold(1usize, |count, n| count.checked_mul(*n))?;
        (count > 0 && count == self.len()).then_some(sizes)
    }

    /// An entry as fp32; zero outside the tensor.
    pub(crate) fn get(&self, index: usize) -> f32 {
        match self.dtype {
            Dtype::F64 => f64::from_le_bytes(self.entry(index)) as f32,
            Dtype::F32 => f32::from_le_bytes(self.entry(index)),
            Dtype::F16 => half(u16::from_le_bytes(self.entry(index))),
            Dtype::BF16 => f32::from_bits(u32::from(u16::from_le_bytes(self.entry(index))) << 16),
            Dtype::F8E4M3 => float8(self.entry::<1>(index)[0]),
            Dtype::F8E8M0 => power_of_two(self.entry::<1>(index)[0]),
            Dtype::I64 => i64::from_le_bytes(self.entry(index)) as f32,
            Dtype::I32 => i32::from_le_bytes(self.entry(index)) as f32,
            Dtype::I16 => f32::from(i16::from_le_bytes(self.entry(index))),
            Dtype::I8 => f32::from(i8::from_le_bytes(self.entry(index))),
            Dtype::U8 | Dtype::Bool => f32::from(self.entry::<1>(index)[0]),
        }
    }

    /// An entry of a tensor of 32-bit integers.
    pub(crate) fn bits(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.entry(index))
    }

    fn entry<const WIDTH: usize>(&self, index: usize) -> [u8; WIDTH] {
        let start = index.saturating_mul(WIDTH);
        let bytes = self.bytes.get(start..start.saturating_add(WIDTH));
        bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; WIDTH])
    }
}

/// fp16 as fp32, exactly.
pub(crate) fn half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, mantissa) = (u32::from(bits >> 10) & 0x1f, u32::from(bits & 0x3ff));
    match exponent {
        0 => {
            let size = mantissa as f32 * (1.0 / 16_777_216.0); // 2^-24
            f32::from_bits(size.to_bits() | sign)
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | mantissa << 13),
    }
}

/// fp8 with four bits of exponent and three of mantissa, no infinities (`e4m3fn`), as fp32, exactly.
pub(crate) fn float8(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    let (exponent, mantissa) = (u32::from(bits >> 3) & 0xf, u32::from(bits & 7));
    match (exponent, mantissa) {
        (0, _) => f32::from_bits((mantissa as f32 * (1.0 / 512.0)).to_bits() | sign),
        (15, 7) => f32::from_bits(sign | 0x7fc0_0000),
        _ => f32::from_bits(sign | (exponent + 120) << 23 | mantissa << 20),
    }
}

/// `2^(exponent - 127)`, exactly: a scale of eight bits (`e8m0`).
pub(crate) fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(exponent) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_are_what_their_bits_say() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(half(bits), value, "{bits:x}");
        }
        assert!(half(0x7e00).is_nan() && half(0x8000).is_sign_negative());
        for (bits, value) in [(0x00, 0.0), (0x01, 0.001_953_125), (0x08, 0.015_625), (0x38, 1.0), (0xfe, -448.0)] {
            assert_eq!(float8(bits), value, "{bits:x}");
        }
        assert!(float8(0x7f).is_nan() && float8(0x80).is_sign_negative());
        assert_eq!([127, 126, 1, 0].map(power_of_two), [1.0, 0.5, 1.175_494_4e-38, 5.877_472e-39]);
    }

    #[test]
    fn what_lies_outside_is_zero() {
        let numbers = Numbers { dtype: Dtype::F32, shape: &[1], bytes: &1f32.to_le_bytes() };
        assert_eq!((numbers.get(0), numbers.get(1), numbers.get(usize::MAX)), (1.0, 0.0, 0.0));
        assert_eq!((numbers.sizes::<1>(), numbers.sizes::<2>()), (Some([1]), None));
        assert_eq!(Numbers { shape: &[2], ..numbers }.sizes::<1>(), None);
        assert_eq!(Numbers { shape: &[-1], ..numbers }.sizes::<1>(), None);
    }
}
