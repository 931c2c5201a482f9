//! The blocks of ggml, which GGUF files are made of: 32 or 256 numbers with a common scale.
//!
//! What each byte means is published in ggml's `ggml-quants.c`. The numbers are those of the Python package `gguf`: products and
//! sums in fp32, in its order.

use super::super::numbers::{half, power_of_two};
use super::super::{Dtype, FormatError};
use super::Rows;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// The names of ggml's types by number.
const NAMES: [&str; 40] = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_2",
    "Q4_3",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q8_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ2_S",
    "IQ4_XS",
    "I8",
    "I16",
    "I32",
    "I64",
    "F64",
    "IQ1_M",
    "BF16",
    "Q4_0_4_4",
    "Q4_0_4_8",
    "Q4_0_8_8",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
    "MXFP4",
];

impl GgmlType {
    /// ggml's type of this number.
    ///
    /// # Errors
    ///
    /// The name of a type that is not read here.
    pub(crate) fn from_number(number: u32) -> Result<Self, String> {
        Ok(match number {
            0 => GgmlType::F32,
            1 => GgmlType::F16,
            2 => GgmlType::Q4_0,
            3 => GgmlType::Q4_1,
            6 => GgmlType::Q5_0,
            7 => GgmlType::Q5_1,
            8 => GgmlType::Q8_0,
            10 => GgmlType::Q2K,
            11 => GgmlType::Q3K,
            12 => GgmlType::Q4K,
            13 => GgmlType::Q5K,
            14 => GgmlType::Q6K,
            20 => GgmlType::Iq4Nl,
            23 => GgmlType::Iq4Xs,
            30 => GgmlType::BF16,
            39 => GgmlType::Mxfp4,
            _ => {
                let name = usize::try_from(number).ok().and_then(|number| NAMES.get(number));
                return Err(name.map_or_else(|| format!("number {number}"), |name| name.to_string()));
            }
        })
    }

    /// The numbers of a block, and its bytes.
    pub(crate) const fn block(self) -> (usize, usize) {
        match self {
            GgmlType::F32 => (1, 4),
            GgmlType::F16 | GgmlType::BF16 => (1, 2),
            GgmlType::Q4_0 | GgmlType::Iq4Nl => (32, 18),
            GgmlType::Q4_1 => (32, 20),
            GgmlType::Q5_0 => (32, 22),
            GgmlType::Q5_1 => (32, 24),
            GgmlType::Q8_0 => (32, 34),
            GgmlType::Mxfp4 => (32, 17),
            GgmlType::Q2K => (256, 84),
            GgmlType::Q3K => (256, 110),
            GgmlType::Iq4Xs => (256, 136),
            GgmlType::Q4K => (256, 144),
            GgmlType::Q5K => (256, 176),
            GgmlType::Q6K => (256, 210),
        }
    }

    /// The dtype of a tensor whose numbers are stored one by one.
    pub(crate) const fn plain(self) -> Option<Dtype> {
        match self {
            GgmlType::F32 => Some(Dtype::F32),
            GgmlType::F16 => Some(Dtype::F16),
            GgmlType::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// The numbers of one block, of the lengths that [`GgmlType::block`] gives.
    fn dequantize(self, block: &[u8], out: &mut [f32]) {
        match self {
            GgmlType::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            GgmlType::F16 => out[0] = scale(block, 0),
            GgmlType::BF16 => out[0] = f32::from_bits(u32::from(u16::from_le_bytes([block[0], block[1]])) << 16),
            GgmlType::Q4_0 => {
                let d = scale(block, 0);
                nibbles(&block[2..], out, |q, _| d * (f32::from(q) - 8.0));
            }
            GgmlType::Q4_1 => {
                let (d, m) = (scale(block, 0), scale(block, 2));
                nibbles(&block[4..], out, |q, _| d * f32::from(q) + m);
            }
            GgmlType::Q5_0 => {
                let (d, high) = (scale(block, 0), &block[2..6]);
                nibbles(&block[6..], out, |q, i| d * (f32::from(q | bit(high, i) << 4) - 16.0));
            }
            GgmlType::Q5_1 => {
                let (d, m, high) = (scale(block, 0), scale(block, 2), &block[4..8]);
                nibbles(&block[8..], out, |q, i| d * f32::from(q | bit(high, i) << 4) + m);
            }
            GgmlType::Q8_0 => {
                let d = scale(block, 0);
                for (out, q) in out.iter_mut().zip(&block[2..]) {
                    *out = f32::from(*q as i8) * d;
                }
            }
            GgmlType::Mxfp4 => {
                const DOUBLED: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];
                // Half of the scale, as the values are doubled: exact, down to the smallest number.
                let e = block[0];
                let d = if e == 255 { f32::from_bits(254 << 23) } else { power_of_two(e) * 0.5 };
                nibbles(&block[1..], out, |q, _| d * DOUBLED[usize::from(q)]);
            }
            GgmlType::Iq4Nl => {
                let d = scale(block, 0);
                nibbles(&block[2..], out, |q, _| d * IQ4_VALUES[usize::from(q)]);
            }
            GgmlType::Iq4Xs => iq4_xs(block, out),
            GgmlType::Q2K => q2_k(block, out),
            GgmlType::Q3K => q3_k(block, out),
            GgmlType::Q4K => q4_k(block, out),
            GgmlType::Q5K => q5_k(block, out),
            GgmlType::Q6K => q6_k(block, out),
        }
    }
}

/// The fp16 number at this byte.
fn scale(block: &[u8], at: usize) -> f32 {
    half(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// One of a sequence of bits.
fn bit(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 8] >> (index % 8) & 1
}

/// 16 bytes with two numbers each: the low halves come first.
fn nibbles(bytes: &[u8], out: &mut [f32], number: impl Fn(u8, usize) -> f32) {
    for i in 0..16 {
        out[i] = number(bytes[i] & 15, i);
        out[i + 16] = number(bytes[i] >> 4, i + 16);
    }
}

/// The scale and the minimum of the eight parts of a block, six bits each, packed in twelve bytes.
fn scale_and_min(packed: &[u8], part: usize) -> (f32, f32) {
    let (d, m) = match part {
        0..4 => (packed[part] & 63, packed[part + 4] & 63),
        _ => {
            let both = packed[part + 4];
            (both & 15 | packed[part - 4] >> 2 & 48, both >> 4 | packed[part] >> 2 & 48)
        }
    };
    (f32::from(d), f32::from(m))
}

/// The values of ggml's four-bit types that are not spread evenly.
const IQ4_VALUES: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (d, high) = (scale(block, 0), u16::from_le_bytes([block[2], block[3]]));
    let (low, qs) = (&block[4..8], &block[8..]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let four = low[part / 2] >> (part % 2 * 4) & 15;
        let two = (high >> (2 * part) & 3) as u8;
        let d = d * (f32::from(four | two << 4) - 32.0);
        nibbles(&qs[part * 16..], out, |q, _| d * IQ4_VALUES[usize::from(q)]);
    }
}

fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, min) = (scale(block, 80), scale(block, 82));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, shift, byte) = (i / 128, i / 32 % 4 * 2, i % 32); // two halves, each of four passes over 32 bytes
        let packed = scales[i / 16];
        let q = qs[half * 32 + byte] >> shift & 3;
        *out = d * f32::from(packed & 15) * f32::from(q) - min * f32::from(packed >> 4);
    }
}

fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, qs, scales, d) = (&block[..32], &block[32..96], &block[96..108], scale(block, 108));
    for (i, out) in out.iter_mut().enumerate() {
        let part = i / 16;
        let low = scales[part % 8] >> (part / 8 * 4) & 15;
        let factor = i32::from(low | (scales[8 + part % 4] >> (part / 4 * 2) & 3) << 4) - 32;
        let (half, shift, byte) = (i / 128, i / 32 % 4 * 2, i % 32);
        let q = i32::from(qs[half * 32 + byte] >> shift & 3);
        let q = if high[byte] >> (i / 32) & 1 == 1 { q } else { q - 4 };
        *out = d * factor as f32 * q as f32;
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, min) = (scale(block, 0), scale(block, 2));
    let (packed, qs) = (&block[4..16], &block[16..]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (factor, offset) = scale_and_min(packed, part);
        let (d, min) = (d * factor, min * offset);
        for (out, q) in out.iter_mut().zip(&qs[part / 2 * 32..]) {
            *out = d * f32::from(q >> (part % 2 * 4) & 15) - min;
        }
    }
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, min) = (scale(block, 0), scale(block, 2));
    let (packed, high, qs) = (&block[4..16], &block[16..48], &block[48..]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (factor, offset) = scale_and_min(packed, part);
        let (d, min) = (d * factor, min * offset);
        for (i, out) in out.iter_mut().enumerate() {
            let q = qs[part / 2 * 32 + i] >> (part % 2 * 4) & 15 | (high[i] >> part & 1) << 4;
            *out = d * f32::from(q) - min;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], scale(block, 208));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, within) = (i / 128, i % 128); // each half: 64 bytes of low bits, 32 of high ones
        let four = low[half * 64 + within % 64] >> (within / 64 * 4) & 15;
        let two = high[half * 32 + within % 32] >> (within / 32 * 2) & 3;
        *out = d * f32::from(scales[i / 16] as i8) * (f32::from(four | two << 4) - 32.0);
    }
}

/// A tensor of blocks. Each block lies within one row.
pub(super) struct Blocks<'a> {
    kind: GgmlType,
    columns: usize,
    bytes: &'a [u8],
}

impl<'a> Blocks<'a> {
    pub(super) fn new(kind: GgmlType, columns: usize, bytes: &'a [u8]) -> Result<Self, FormatError> {
        let (numbers, width) = kind.block();
        let row = (columns / numbers).checked_mul(width).filter(|row| *row > 0 && columns.is_multiple_of(numbers));
        match row.filter(|row| !bytes.is_empty() && bytes.len().is_multiple_of(*row)) {
            Some(_) => Ok(Blocks { kind, columns, bytes }),
            None => Err(FormatError::corrupt("a tensor", "is no whole number of blocks")),
        }
    }

    /// The bytes of a row.
    fn width(&self) -> usize {
        let (numbers, width) = self.kind.block();
        self.columns / numbers * width
    }
}

impl Rows for Blocks<'_> {
    fn size(&self) -> [usize; 2] {
        [self.bytes.len() / self.width(), self.columns]
    }

    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let (numbers, width) = self.kind.block();
        let outside = || FormatError::out_of_bounds(format!("row {row}"), "its tensor");
        let start = row.checked_mul(self.width()).ok_or_else(outside)?;
        let bytes = self.bytes.get(start..start + self.width()).ok_or_else(outside)?;
        for (block, out) in bytes.chunks_exact(width).zip(out.chunks_exact_mut(numbers)) {
            self.kind.dequantize(block, out);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::gguf::Gguf;
    use super::super::super::numbers::Numbers;
    use super::super::super::safetensors;
    use super::*;

    /// Every type of `tests/fixtures/quantized/types.gguf` against the numbers of the package `gguf`.
    #[test]
    fn blocks_are_the_numbers_of_gguf_bit_for_bit() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized");
        let file = std::fs::read(folder.join("types.gguf")).unwrap();
        let expected = std::fs::read(folder.join("types.safetensors")).unwrap();
        let gguf = Gguf::read(&file).unwrap();
        let places = safetensors::entries(&expected).unwrap();
        assert_eq!((places.len(), gguf.tensors.len()), (16, 16));
        for (name, place) in places {
            let tensor = &gguf.tensors[name.as_str()];
            let rows = Blocks::new(tensor.kind, 512, &file[tensor.bytes.clone()]).unwrap();
            assert_eq!(rows.size(), [3, 512]);
            let want = Numbers { dtype: place.dtype, shape: &place.shape, bytes: &expected[place.bytes().unwrap()] };
            let mut out = vec![0.0; 512];
            for row in 0..3 {
                rows.read(row, &mut out).unwrap();
                for (column, found) in out.iter().enumerate() {
                    let want = want.get(row * 512 + column);
                    assert_eq!(found.to_bits(), want.to_bits(), "{name}: {found} for {want} at {row}, {column}");
                }
            }
            assert!(rows.read(3, &mut out).is_err());
        }
    }

    #[test]
    fn a_tensor_is_whole_blocks() {
        for (columns, bytes) in [(0, 18), (31, 18), (32, 17), (32, 0), (64, 18)] {
            assert!(Blocks::new(GgmlType::Q4_0, columns, &vec![0; bytes]).is_err(), "{columns}, {bytes}");
        }
        assert!(Blocks::new(GgmlType::F32, usize::MAX / 2, &[0; 4]).is_err());
    }
}
