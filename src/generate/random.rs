//! Random numbers of one row, independent of libtorch's global generator.

/// SplitMix64 (Steele et al. 2014). Its numbers depend on the seed, the prompt's row and the sample alone, so neither other
/// rows nor other code that draws random numbers changes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowRandom {
    state: u64,
}

impl RowRandom {
    pub(crate) fn new(seed: u64, row: u64, sample: u64) -> Self {
        RowRandom { state: mixed(mixed(mixed(seed) ^ row) ^ sample.rotate_left(32)) }
    }

    /// A number of `[0, 1)`, a multiple of 2⁻⁵³.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mixed(self.state) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// SplitMix64's finaliser.
fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
