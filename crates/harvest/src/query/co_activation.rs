//! Which channels are active together.

use super::Query;
use crate::{Error, Result};

/// How often channels are active in the same activation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoActivation {
    /// The channels.
    pub channels: Vec<usize>,
    /// The number of activations.
    pub activations: u64,
    /// In how many activations channels `i` and `j` of the list are both active, at `[i][j]`; on the diagonal, how often each is.
    pub together: Vec<Vec<u64>>,
}

impl CoActivation {
    /// The activations in which both of two channels are active among those in which either is (Jaccard's index), from 0 to 1; 0 if neither
    /// ever is. The numbers are places in the list of channels.
    pub fn jaccard(&self, i: usize, j: usize) -> f64 {
        let both = self.together[i][j];
        let either = self.together[i][i] + self.together[j][j] - both;
        both as f64 / either.max(1) as f64
    }
}

impl Query {
    /// How often some channels of a point are greater than a threshold in the same activation; of features, 0. Takes the memory of a number
    /// for each pair.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a channel that is named twice; those of [`Query::top_examples`].
    pub fn co_activation(&self, column: &str, channels: &[usize], threshold: f32) -> Result<CoActivation> {
        if let Some((at, twice)) = channels.iter().enumerate().find(|&(at, channel)| channels[..at].contains(channel)) {
            return Err(Error::Setting(format!(
                "channel {twice} is named twice, the second time at place {at}: leave it out"
            )));
        }
        let mut together = vec![vec![0; channels.len()]; channels.len()];
        let mut activations = 0;
        let mut active = Vec::new();
        self.each(column, |block| {
            channels.iter().try_for_each(|&channel| block.check(channel))?;
            activations += block.len() as u64;
            for at in 0..block.len() {
                active.clear();
                active.extend((0..channels.len()).filter(|&place| block.value(at, channels[place]) > threshold));
                for &i in &active {
                    for &j in &active {
                        together[i][j] += 1;
                    }
                }
            }
            Ok(())
        })?;
        Ok(CoActivation { channels: channels.to_vec(), activations, together })
    }
}
