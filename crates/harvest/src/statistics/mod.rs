//! Running statistics of each channel, exact when they are merged (Welford 1962; Chan, Golub and LeVeque 1979).

mod file;

pub(crate) use self::file::write;
use crate::{Job, Result, ShardId};

/// How many of the largest activations of a channel are remembered.
pub const TOP: usize = 8;

/// What is known of the activations of one point.
#[derive(Clone, Debug, PartialEq)]
pub struct PointStatistics {
    /// [`KeptPoint::statistics_name`](crate::KeptPoint::statistics_name).
    pub column: String,
    /// The number of activations.
    pub count: u64,
    /// The mean of each channel.
    pub mean: Vec<f64>,
    /// The sum of the squared differences from the mean, of each channel.
    pub m2: Vec<f64>,
    /// How often each channel is not 0.
    pub active: Vec<u64>,
    /// The mean of the activations' norms.
    pub norm_mean: f64,
    /// The sum of the norms' squared differences from their mean.
    pub norm_m2: f64,
    /// The largest activations of each channel, the largest first, at most [`TOP`].
    pub top: Vec<Vec<TopValue>>,
}

/// A large activation of a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopValue {
    /// The activation.
    pub value: f32,
    /// The shard that has it.
    pub shard: ShardId,
    /// Its row in the shard's table.
    pub row: u64,
}

impl PointStatistics {
    /// The statistics of no activation.
    pub fn new(column: String, width: usize) -> Self {
        PointStatistics {
            column,
            count: 0,
            mean: vec![0.0; width],
            m2: vec![0.0; width],
            active: vec![0; width],
            norm_mean: 0.0,
            norm_m2: 0.0,
            top: vec![Vec::new(); width],
        }
    }

    /// The number of channels.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// The variance of each channel, of the activations as the whole population; 0 of none.
    pub fn variance(&self) -> Vec<f64> {
        self.m2.iter().map(|m2| if self.count == 0 { 0.0 } else { m2 / self.count as f64 }).collect()
    }

    /// Adds activations `[activation, width]`, which lie at these rows of the table.
    pub(crate) fn add(&mut self, x: &[f32], places: &[usize]) {
        let width = self.width();
        let n = places.len();
        if n == 0 || width == 0 {
            return;
        }
        let mut mean = vec![0.0f64; width];
        let mut norms = Vec::with_capacity(n);
        for row in x.chunks_exact(width) {
            let mut square = 0.0f64;
            for (sum, &x) in mean.iter_mut().zip(row) {
                *sum += f64::from(x);
                square += f64::from(x) * f64::from(x);
            }
            norms.push(square.sqrt());
        }
        mean.iter_mut().for_each(|sum| *sum /= n as f64);
        let mut m2 = vec![0.0f64; width];
        for (row, &place) in x.chunks_exact(width).zip(places) {
            for (channel, &x) in row.iter().enumerate() {
                let from_mean = f64::from(x) - mean[channel];
                m2[channel] += from_mean * from_mean;
                self.active[channel] += u64::from(x != 0.0);
            }
            self.remember(row.iter().copied().enumerate(), place);
        }
        self.add_moments(n as u64, &mean, &m2, &norms);
    }

    /// [`PointStatistics::add`] of activations by their entries that are not 0.
    pub(crate) fn add_sparse(&mut self, rows: &[Vec<(u32, f32)>], places: &[usize]) {
        let n = rows.len();
        if n == 0 {
            return;
        }
        let mut mean = vec![0.0f64; self.width()];
        let mut entries = vec![0u64; self.width()];
        let mut norms = Vec::with_capacity(n);
        for row in rows {
            let mut square = 0.0f64;
            for &(channel, x) in row {
                mean[channel as usize] += f64::from(x);
                entries[channel as usize] += 1;
                self.active[channel as usize] += u64::from(x != 0.0);
                square += f64::from(x) * f64::from(x);
            }
            norms.push(square.sqrt());
        }
        mean.iter_mut().for_each(|sum| *sum /= n as f64);
        let zeros = entries.iter().zip(&mean).map(|(&entries, mean)| (n as u64 - entries) as f64 * mean * mean);
        let mut m2: Vec<f64> = zeros.collect();
        for (row, &place) in rows.iter().zip(places) {
            for &(channel, x) in row {
                let from_mean = f64::from(x) - mean[channel as usize];
                m2[channel as usize] += from_mean * from_mean;
            }
            self.remember(row.iter().map(|&(channel, x)| (channel as usize, x)), place);
        }
        self.add_moments(n as u64, &mean, &m2, &norms);
    }

    fn add_moments(&mut self, n: u64, mean: &[f64], m2: &[f64], norms: &[f64]) {
        let norm_mean = norms.iter().sum::<f64>() / n as f64;
        let norm_m2 = norms.iter().map(|norm| (norm - norm_mean) * (norm - norm_mean)).sum();
        merge_moments(self.count, n, &mut self.mean, mean, &mut self.m2, m2);
        merge_moments(
            self.count,
            n,
            std::slice::from_mut(&mut self.norm_mean),
            &[norm_mean],
            std::slice::from_mut(&mut self.norm_m2),
            &[norm_m2],
        );
        self.count += n;
    }

    /// Remembers the largest values. Of equal ones, the first row is the larger.
    fn remember(&mut self, row: impl Iterator<Item = (usize, f32)>, place: usize) {
        for (channel, value) in row {
            let top = &mut self.top[channel];
            if top.len() < TOP || top.last().is_some_and(|least| value >= least.value) {
                insert(top, TopValue { value, shard: ShardId(0), row: place as u64 });
            }
        }
    }

    /// Adds the statistics of other activations.
    pub fn merge(&mut self, other: &PointStatistics) {
        if other.count == 0 {
            return;
        }
        merge_moments(self.count, other.count, &mut self.mean, &other.mean, &mut self.m2, &other.m2);
        merge_moments(
            self.count,
            other.count,
            std::slice::from_mut(&mut self.norm_mean),
            &[other.norm_mean],
            std::slice::from_mut(&mut self.norm_m2),
            &[other.norm_m2],
        );
        self.count += other.count;
        self.active.iter_mut().zip(&other.active).for_each(|(sum, n)| *sum += n);
        for (top, others) in self.top.iter_mut().zip(&other.top) {
            others.iter().for_each(|value| insert(top, *value));
        }
    }

    /// The statistics of all points of a shard, in the manifest's order.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`](crate::Error::Missing), [`Error::Corrupted`](crate::Error::Corrupted) and those of the store.
    pub fn of_shard(job: &Job, shard: ShardId) -> Result<Vec<Self>> {
        file::read(job, shard)
    }

    /// The statistics of the whole harvest. Shards are merged in their order, so the numbers are always the same.
    ///
    /// # Errors
    ///
    /// Those of [`PointStatistics::of_shard`].
    pub fn of_harvest(job: &Job) -> Result<Vec<Self>> {
        let mut all: Vec<Self> =
            job.points().iter().map(|kept| PointStatistics::new(kept.statistics_name(), kept.width)).collect();
        for shard in job.manifest().shards() {
            for (all, of_shard) in all.iter_mut().zip(PointStatistics::of_shard(job, shard)?) {
                all.merge(&of_shard);
            }
        }
        Ok(all)
    }
}

/// Keeps the largest values in order: by value, then by shard and row.
fn insert(top: &mut Vec<TopValue>, new: TopValue) {
    let before = |old: &TopValue| match old.value.total_cmp(&new.value) {
        std::cmp::Ordering::Equal => (old.shard, old.row) < (new.shard, new.row),
        order => order.is_gt(),
    };
    let at = top.partition_point(before);
    if at < TOP {
        top.truncate(TOP - 1);
        top.insert(at, new);
    }
}

/// Chan, Golub and LeVeque: mean and sum of squares of two sets, from those of each.
fn merge_moments(n: u64, m: u64, mean: &mut [f64], other_mean: &[f64], m2: &mut [f64], other_m2: &[f64]) {
    let (n, m) = (n as f64, m as f64);
    let all = n + m;
    for channel in 0..mean.len() {
        let delta = other_mean[channel] - mean[channel];
        mean[channel] += delta * (m / all);
        m2[channel] += other_m2[channel] + delta * delta * (n * m / all);
    }
}

#[cfg(test)]
mod tests;
