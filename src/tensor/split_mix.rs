//! [`SplitMix64`]: pseudo-random numbers that depend on a seed alone.

/// SplitMix64 (Steele et al. 2014), independent of libtorch's global generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator whose numbers depend on all of `keys`, and on their order.
    pub(crate) fn new(keys: impl IntoIterator<Item = u64>) -> Self {
        SplitMix64 { state: keys.into_iter().fold(0, |state, key| mix(state ^ key)) }
    }

    /// The next 64 bits.
    pub(crate) fn next_bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }
}

/// SplitMix64's finaliser, a bijection.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_other_implementations() {
        // Of seed 1234567, as other implementations give them.
        let mut generator = SplitMix64 { state: 1_234_567 };
        let numbers = [(); 3].map(|()| generator.next_bits());
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        assert_eq!(SplitMix64::new([1, 2]), SplitMix64::new([1, 2]));
        assert_ne!(SplitMix64::new([1, 2]), SplitMix64::new([2, 1]));
    }
}
