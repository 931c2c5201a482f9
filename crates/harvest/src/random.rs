//! Random numbers that are the same everywhere and in every version: SplitMix64 (Steele, Lea and Flood 2014).

#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of a seed, for a purpose and a part of it, such as a shard.
    pub(crate) fn new(seed: u64, purpose: &str, part: u64) -> Self {
        let mut random = Random(seed);
        for number in purpose.bytes().map(u64::from).chain([part]) {
            random.0 = random.next() ^ number;
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    }

    /// A number below `n`, all equally likely (Lemire 2019).
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let n = n.max(1) as u64;
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.next()) * u128::from(n);
            if wide as u64 >= threshold {
                return (wide >> 64) as usize;
            }
        }
    }

    /// All orders are equally likely (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    /// Shuffles of files that exist must stay what they are.
    #[test]
    fn a_seed_gives_the_same_order_in_every_version() {
        let mut order: Vec<u32> = (0..8).collect();
        Random::new(7, "blocks", 0).shuffle(&mut order);
        let mut again: Vec<u32> = (0..8).collect();
        Random::new(7, "blocks", 0).shuffle(&mut again);
        assert_eq!(order, again);
        let mut other: Vec<u32> = (0..8).collect();
        Random::new(8, "blocks", 0).shuffle(&mut other);
        assert_ne!(order, other);
    }

    #[test]
    fn orders_are_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        let mut random = Random::new(1, "test", 0);
        for _ in 0..6000 {
            let mut order = [0, 1, 2];
            random.shuffle(&mut order);
            *counts.entry(order).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }
}
