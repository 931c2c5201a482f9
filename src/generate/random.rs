//! Random numbers of one row, independent of libtorch's global generator.

use crate::tensor::split_mix::SplitMix64;

/// Random numbers that depend on the seed, the prompt's row and the sample alone, so neither other rows nor other code that draws
/// changes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowRandom(SplitMix64);

impl RowRandom {
    pub(crate) fn new(seed: u64, row: u64, sample: u64) -> Self {
        RowRandom(SplitMix64::new([seed, row, sample]))
    }

    /// A number of `[0, 1)`, a multiple of 2⁻⁵³.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.0.next_bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, row, sample| RowRandom::new(seed, row, sample).uniform();
        assert_eq!(draw(0, 0, 0), draw(0, 0, 0));
        let mut all = Vec::new();
        for seed in 0..10 {
            for row in 0..10 {
                for sample in 0..10 {
                    all.push(draw(seed, row, sample));
                }
            }
        }
        all.sort_by(f64::total_cmp);
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        let mean = all.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.04, "{mean}"); // four standard errors
    }
}
