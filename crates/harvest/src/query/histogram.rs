//! How the numbers of channels are spread.

use super::Query;
use crate::{Error, Result};

/// How often a channel's numbers fall into each of several ranges.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Where the first range begins.
    pub low: f32,
    /// Where the last range ends; it belongs to that range.
    pub high: f32,
    /// How many numbers are in each range. All ranges are equally wide.
    pub counts: Vec<u64>,
    /// How many are under the first range.
    pub below: u64,
    /// How many are over the last one.
    pub above: u64,
    /// How many are exactly 0, whatever their range.
    pub zeros: u64,
}

/// How often each channel of a point is active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Density {
    /// The number of activations.
    pub activations: u64,
    /// In how many of them each channel is greater than the threshold. Channels of a sparse point after the last active one are left out.
    pub active: Vec<u64>,
}

impl Density {
    /// The share of activations in which a channel is active, from 0 to 1; 0 of a channel that never is.
    pub fn of(&self, channel: usize) -> f64 {
        self.active.get(channel).copied().unwrap_or(0) as f64 / self.activations.max(1) as f64
    }
}

impl Query {
    /// How a channel's numbers are spread over ranges: those between the numbers given, or between the smallest and the largest, which
    /// takes a second pass. A sparse activation counts as 0 where it has no entry.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for no ranges, and for bounds that are not two finite numbers in order; those of [`Query::top_examples`].
    pub fn histogram(
        &self,
        column: &str,
        channel: usize,
        ranges: usize,
        bounds: Option<(f32, f32)>,
    ) -> Result<Histogram> {
        if ranges == 0 {
            return Err(Error::Setting("a histogram has at least one range, and not 0".into()));
        }
        let (low, high) = match bounds {
            Some((low, high)) if low.is_finite() && high.is_finite() && low < high => (low, high),
            Some((low, high)) => {
                let why =
                    format!("the bounds of a histogram are two finite numbers in order, and not {low} and {high}");
                return Err(Error::Setting(why));
            }
            None => {
                let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
                self.each(column, |block| {
                    block.check(channel)?;
                    for at in 0..block.len() {
                        let value = block.value(at, channel);
                        (low, high) = (low.min(value), high.max(value));
                    }
                    Ok(())
                })?;
                if low < high {
                    (low, high)
                } else {
                    (low, low + 1.0)
                }
            }
        };
        let mut histogram = Histogram { low, high, counts: vec![0; ranges], below: 0, above: 0, zeros: 0 };
        let width = (f64::from(high) - f64::from(low)) / ranges as f64;
        self.each(column, |block| {
            block.check(channel)?;
            for at in 0..block.len() {
                let value = block.value(at, channel);
                histogram.zeros += u64::from(value == 0.0);
                if value < low {
                    histogram.below += 1;
                } else if value > high {
                    histogram.above += 1;
                } else {
                    let range = ((f64::from(value) - f64::from(low)) / width) as usize;
                    histogram.counts[range.min(ranges - 1)] += 1;
                }
            }
            Ok(())
        })?;
        Ok(histogram)
    }

    /// How often each channel of a point is greater than a threshold; of features, 0.
    ///
    /// # Errors
    ///
    /// Those of [`Query::top_examples`].
    pub fn density(&self, column: &str, threshold: f32) -> Result<Density> {
        let mut density = Density { activations: 0, active: Vec::new() };
        self.each(column, |block| {
            density.activations += block.len() as u64;
            for at in 0..block.len() {
                block.entries(at, |channel, value| {
                    if density.active.len() <= channel {
                        density.active.resize(channel + 1, 0);
                    }
                    density.active[channel] += u64::from(value > threshold);
                });
            }
            Ok(())
        })?;
        Ok(density)
    }
}
